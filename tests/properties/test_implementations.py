"""One attention, many implementations: the same function of the same parameters, forward and backward, in any split."""

import numpy as np
import pytest

from common import params
from common.config import ATTENTION_KERNELS, COMPILED_KERNELS, PROJECTIONS, GPTConfig
from common.errors import UserError

BOUND = 1e-12  # float64 rounding in sums of another order: 1e-14 here
LONG = GPTConfig(7, 300, 8, 2, 2, ff_dim=8, tie_embeddings=False)  # its keys fill three blocks, the last one in part
KERNELS = [name for name in ATTENTION_KERNELS[1:] if name not in COMPILED_KERNELS]  # test_compiled_kernels.py has those
WAYS = [{"attention": kernel} for kernel in KERNELS] + [{"projections": how} for how in PROJECTIONS[1:]]
ONE_EACH = pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way.values())))
BIASES = pytest.mark.parametrize("bias", [True, pytest.param(False, marks=pytest.mark.full)], ids=["bias", "no bias"])


def exact(wing, way):
    """The dtype and bound in which a way can be held to the plain one: JAX's own kernels reduce in float32."""
    narrow = wing == "jax" and way.get("attention") in ("fused", "masked", "module")
    return ("float32", 1e-5) if narrow else ("float64", BOUND)


def close(got, want, bound):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


@pytest.fixture(scope="module")
def padded_batch():
    """(ids, positions, where no padding is) of two rows, padded on the left, the longer one past two blocks of keys."""
    ids = np.random.default_rng(3).integers(0, LONG.vocab_size, (2, 280)).astype(np.int32)
    positions = np.stack([np.arange(280), np.maximum(np.arange(280) - 141, -1)]).astype(np.int32)
    return ids, positions, positions >= 0


@pytest.mark.full_for(*(f"jax-bias-{way}" for way in ("loop", "blockwise", "einsum", "masked", "module", "joined")))
@ONE_EACH
@BIASES
def test_outputs_and_gradients_are_those_of_the_plain_one(model_of, padded_batch, wing, way, bias):
    (ids, positions, there), (dtype, bound) = padded_batch, exact(wing, way)
    config = LONG.with_(qkv_bias=bias)
    plain, other = (model_of(wing, config, dtype, **how) for how in ({}, way))
    close(other.forward(ids, positions).logits[there], plain.forward(ids, positions).logits[there], bound)
    want, got = (model.gradients(ids[:, :-1], ids[:, 1:]) for model in (plain, other))
    assert got.value == pytest.approx(want.value, rel=bound)
    for name, parameter in params.table(config).items():
        assert parameter.dead or np.isfinite(got.grads[name]).all()
        if not parameter.dead:
            close(got.grads[name], want.grads[name], 10 * bound)


@pytest.mark.full_for("jax-loop", "jax-blockwise", "jax-einsum", "jax-joined")
@pytest.mark.parametrize(
    "way", [way for way in WAYS if "module" not in str(way)], ids=lambda way: next(iter(way.values()))
)
def test_through_a_cache_in_chunks(model_of, padded_batch, wing, way):
    """Chunks that end inside a block of keys, and single tokens; slots not yet written are seen by nobody."""
    (ids, positions, there), (dtype, bound) = padded_batch, exact(wing, way)
    want = model_of("numpy", LONG).forward(ids, positions).logits
    model = model_of(wing, LONG, dtype, **way)
    cache = model.new_cache(2, 290)
    parts = [slice(0, 139), slice(139, 278), slice(278, 279), slice(279, 280)]  # of two lengths, compiled once each
    got = np.concatenate([model.extend(cache, ids[:, part], positions[:, part]) for part in parts], axis=1)
    close(got[there], want[there], bound)


@pytest.mark.full_for("jax-way1", "jax-way2", "jax-way0")
@pytest.mark.parametrize("way", [{"attention": "loop"}, *({"projections": how} for how in PROJECTIONS[1:])])
def test_dropout_draws_the_shared_masks(model_of, with_dropout, tokens, wing, way):
    ids, targets = tokens(2, 2, 8)
    config = with_dropout.with_(num_layers=1, dropout_embed=0.0, dropout_shortcut=0.0)
    want = model_of("torch", config).gradients(ids, targets, dropout=(1, 2))
    got = model_of(wing, config, **way).gradients(ids, targets, dropout=(1, 2))
    assert got.value == pytest.approx(want.value, rel=BOUND)
    name = "model.layers.0.self_attn.v_proj.weight"
    close(got.grads[name], want.grads[name], 10 * BOUND)


@pytest.mark.parametrize("kernel", ["module", "module_weights"])
def test_the_frameworks_own_module_takes_no_cache(model_of, tokens, wing, kernel):
    model = model_of(wing, dtype="float32", attention=kernel)
    with pytest.raises(UserError, match="own attention takes no cache of keys and values: use attention='plain'"):
        model.extend(model.new_cache(2, 8), tokens(2, 8))


@pytest.mark.full_for("jax")
@pytest.mark.parametrize(
    ("kernel", "title"), [("blockwise", "Blockwise"), ("masked", "Fused"), ("module", "The framework's own")]
)
def test_what_holds_no_weights_draws_no_dropout(model_of, with_dropout, tokens, wing, kernel, title):
    config, (ids, targets) = with_dropout.with_(num_layers=1), tokens(2, 2, 8)
    model = model_of(wing, config, "float32", attention=kernel)
    assert np.isfinite(model.gradients(ids, targets).value)
    with pytest.raises(
        UserError, match=f"{title} attention cannot draw the shared dropout mask: use attention='plain'"
    ):
        model.gradients(ids, targets, dropout=(0, 0))


@pytest.mark.full_for("jax-loop")
@pytest.mark.parametrize("kernel", ["blockwise", "loop"])
def test_scores_beyond_what_exp_can_take(model_of, wing, kernel):
    """Weights times 1,000: exp of a score is infinite, of a difference it is not."""
    large = {name: 1000 * w for name, w in params.randomise(LONG, 20).items()}
    from common import backend
    from common.config import Execution

    ids = np.arange(290, dtype=np.int32)[None] % LONG.vocab_size
    plain, other = (
        backend.load(wing).build(LONG, large, Execution("float64", attention=k)).forward(ids).logits
        for k in ("plain", kernel)
    )
    assert np.isfinite(other).all()
    close(other, plain, 1e-9)


@pytest.mark.full_for("jax")
def test_masked_hands_on_the_mask_that_fused_leaves_out(model_of, tokens, wing, monkeypatch):
    import jax
    from torch.nn import functional

    owner, name = {"torch": (functional, "scaled_dot_product_attention"), "jax": (jax.nn, "dot_product_attention")}[
        wing
    ]
    seen, honest = [], getattr(owner, name)

    def watched(*args, **options):
        seen.append(options.get("attn_mask", options.get("mask")))
        return honest(*args, **options)

    monkeypatch.setattr(owner, name, watched)
    compiled = {} if wing == "torch" else {"compile": False}
    for kernel in ("fused", "masked"):
        model_of(wing, dtype="float32", attention=kernel, **compiled).forward(tokens(2, 8))
    half = len(seen) // 2
    assert seen[:half] == [None] * half
    assert all(mask is not None and bool(mask[..., 0, 0].all()) and not mask[..., 0, 1].any() for mask in seen[half:])
