"""Sparse attention: what is chosen and read; caches and padding change nothing; what the indexer learns from."""

import contextlib
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from common import params
from common.accounting import flops, memory
from common.accounting.work import SCORES, Work
from common.config import GPTConfig
from common.errors import UserError
from common.oracle.gradient import slope
from common.taps import Taps
from common.variants.grouped_query import GroupedQuery
from common.variants.rotary import Rotary
from common.variants.sparse import INDEX_SCORES, Sparse

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims

BOUND = 1e-12  # float64 rounding in sums of another order: 1e-14 here
LENGTH, CAPACITY = 20, 23
TURNED = Sparse(
    2,
    rotary=Rotary(base=100.0),
    top_k=5,
    index_heads=3,
    index_dim=6,
    index_rotary=Rotary(base=50.0, fraction=0.7),
)
RICH = Sparse(
    2,
    head_dim=10,
    alibi=True,
    qk_norm="head",
    softcap=3.0,
    sinks=True,
    gate=True,
    top_k=4,
    index_heads=2,
    index_dim=5,
    index_norm=False,
    weighting="softmax",
)
CONFIGS = {
    name: GPTConfig(61, 24, 32, 2, 4, ff_dim=44, tie_embeddings=False, attention=entry)
    for name, entry in {"turned": TURNED, "rich": RICH}.items()
}
PATH = "model.layers.0.self_attn"


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def close(got, want, bound=BOUND):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


def with_top_k(config, top_k):
    return config.with_(attention=config.attention[0].with_(top_k=top_k))


def dense(config):
    """The same model with grouped-query attention to all visible keys."""
    own = {f.name: getattr(config.attention[0], f.name) for f in fields(GroupedQuery)}
    return config.with_(attention=GroupedQuery(**own))


def test_the_other_settings_are_those_of_grouped_query_attention():
    """No window, because the cache holds all tokens, and keys of its own; a copy and a dictionary know that too."""
    assert {f.name for f in fields(GroupedQuery)} - {f.name for f in fields(Sparse)} == {"window", "shares"}
    assert RICH.window is None
    assert Sparse.from_dict({k: v for k, v in RICH.to_dict().items() if k != "kind"}) == RICH
    assert TURNED.with_(top_k=9).index_rotary == TURNED.index_rotary


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.full_for("turned-jax")
def test_as_many_keys_as_there_are_is_dense(fresh_model, model_of, tokens, config, name):
    ids, weights = tokens(2, LENGTH), params.randomise(config, 20)
    plain = {key: weights[key] for key in params.table(dense(config))}
    want = fresh_model(name, dense(config), weights=plain).forward(ids).logits
    for top_k in (LENGTH, 1000):
        got = fresh_model(name, with_top_k(config, top_k), weights=weights).forward(ids).logits
        close(got, want)
    fewer = model_of(name, config).forward(ids).logits
    assert np.abs(fewer - want)[:, : config.attention[0].top_k].max() < BOUND * np.abs(want).max()
    assert np.abs(fewer - want).max() > 1e-3 * np.abs(want).max()


def test_what_is_chosen_and_attended_to(model_of, tokens, config, name):
    """The top_k of what is visible, none of a smaller score than one that is left, and nobody else has a weight."""
    top_k = config.attention[0].top_k
    ids = tokens(2, LENGTH)
    positions = np.stack([np.arange(LENGTH), np.maximum(np.arange(LENGTH) - 7, -1)]).astype(np.int32)
    taps = model_of(name, config).forward(ids, positions, taps=("*",)).taps
    visible = (positions[:, None] <= positions[:, :, None]) & (positions[:, None] >= 0)
    for layer in range(2):
        scores, chosen, weights = (
            taps[f"model.layers.{layer}.self_attn.{what}"] for what in ("index_scores", "chosen", "weights")
        )
        np.testing.assert_array_equal(np.isfinite(scores), visible)
        assert (np.asarray(chosen, bool) <= visible).all()
        np.testing.assert_array_equal(chosen.sum(-1), np.minimum(visible.sum(-1), top_k))
        least = np.where(chosen, scores, np.inf).min(-1)
        best_left = np.where(visible & ~np.asarray(chosen, bool), scores, -np.inf).max(-1)
        assert (least >= best_left).all()
        seen = positions >= 0
        np.testing.assert_array_equal((weights > 0).all(1)[seen], chosen[seen])
        np.testing.assert_array_equal((weights > 0).any(1)[seen], chosen[seen])


def test_all_choose_the_same(model_of, tokens, config):
    ids = tokens(2, LENGTH, seed=4)
    found = [model_of(name, config).forward(ids, taps=("*.chosen",)).taps for name in ("numpy", "torch", "jax")]
    for tap, want in found[0].items():
        for other in found[1:]:
            np.testing.assert_array_equal(np.asarray(other[tap], bool), want, err_msg=tap)


def chooser(name):
    """`choose` of an implementation, as a function of NumPy's arrays."""
    if name == "numpy":
        from common.oracle.attention.sparse import choose

        return choose
    if name == "torch":
        import torch

        from torch_impl.attention.sparse import choose

        return lambda scores, count: choose(torch.from_numpy(scores), count).numpy()
    import jax.numpy as jnp

    from jax_impl.attention.sparse import choose

    return lambda scores, count: np.asarray(choose(jnp.asarray(scores), count))


def test_of_equal_scores_the_first_are_chosen(name):
    """Zeros of both signs are equal; hidden keys (-inf) are never chosen."""
    kinds = np.array([-np.inf, -1.5, -0.0, 0.0, 2.0], np.float32)
    scores, choose = np.random.default_rng(1).choice(kinds, (4, 7, 9)), chooser(name)
    scores[0, 0] = -np.inf
    for count in range(1, 10):
        got = choose(scores, count)
        for row, own in zip(scores.reshape(-1, 9), got.reshape(-1, 9), strict=True):
            order = sorted(range(9), key=lambda slot, row=row: (-row[slot], slot))
            assert set(np.flatnonzero(own)) == {slot for slot in order[:count] if row[slot] > -np.inf}


@pytest.mark.parametrize("count", [1, 2, 128, 800, 2999, 3000])
def test_of_many_scores_the_largest_are_chosen(name, count):
    """Numbers of all sizes and both signs, some of them equal, infinite ones among them."""
    draw = np.random.default_rng(2)
    scores = draw.standard_normal((2, 1, 3000)) * 10.0 ** draw.integers(-40, 38, (2, 1, 3000))
    scores = scores.astype(np.float32)  # 429 of them are equal: the 800th largest is one of these
    scores[:, :, 5], scores[:, :, ::7] = np.inf, 0.5
    found = chooser(name)(scores, count)
    for row, own in zip(scores[:, 0], found[:, 0], strict=True):
        assert set(np.flatnonzero(own)) == set(np.argsort(-row, kind="stable")[:count])


@pytest.mark.parametrize("silent", ["index_queries", "index_weights"])
def test_equal_scores_in_the_model(fresh_model, tokens, name, silent):
    """All index scores are zero, of either sign: the first top_k positions are chosen."""
    config = CONFIGS["turned"]
    weights = {k: v * (f".{silent}." not in k) for k, v in params.randomise(config, 20).items()}
    taps = fresh_model(name, config, weights=weights).forward(tokens(2, LENGTH), taps=("*.chosen",)).taps
    key, query = np.arange(LENGTH), np.arange(LENGTH)[:, None]
    for chosen in taps.values():
        np.testing.assert_array_equal(chosen, np.broadcast_to((key <= query) & (key < 5), chosen.shape))


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.full_for("rich-jax")
@pytest.mark.parametrize(
    "cuts", [[], list(range(1, LENGTH)), [7], [3, 4, 5, 12], [12, 13, 14]], ids=lambda cuts: f"{len(cuts) + 1} parts"
)
def test_any_split(model_of, tokens, config, name, cuts):
    """Past top_k, in chunks and in single tokens, which leave most of the cache unread."""
    model, ids = model_of(name, config), tokens(2, LENGTH)
    cache = model.new_cache(2, CAPACITY)
    got = [model.extend(cache, ids[:, a:b]) for a, b in pairwise([0, *cuts, LENGTH])]
    close(np.concatenate(got, axis=1), model_of("numpy", config).forward(ids).logits)


@pytest.mark.full_for("rich-jax")
@pytest.mark.parametrize("cut", [9, 18])
def test_rows_of_unequal_length(model_of, tokens, config, name, cut):
    """Padded on the left; a prefill, then single tokens. What stands in the padding changes no bit."""
    model, ids, lengths = model_of(name, config), tokens(3, LENGTH), (LENGTH, 12, 2)
    positions = np.stack([np.maximum(np.arange(LENGTH) - (LENGTH - n), -1) for n in lengths]).astype(np.int32)
    cuts = [0, cut, *range(cut + 1, LENGTH + 1)]

    def through_cache(ids):
        cache = model.new_cache(3, CAPACITY)
        parts = [model.extend(cache, ids[:, a:b], positions[:, a:b]) for a, b in pairwise(cuts)]
        return np.concatenate(parts, axis=1)

    got, full = through_cache(ids), model.forward(ids, positions).logits
    assert np.isfinite(got).all()
    assert np.isfinite(full).all()
    for row, length in enumerate(lengths):
        want = model_of("numpy", config).forward(ids[[row], -length:]).logits[0]
        close(got[row, -length:], want)
        close(full[row, -length:], want)
    other = np.where(positions < 0, (ids + 9) % config.vocab_size, ids)
    np.testing.assert_array_equal(through_cache(other)[positions >= 0], got[positions >= 0])


OFFERED = [("numpy", "float64"), *((wing, d) for wing in ("torch", "jax") for d in memory.ITEM_BYTES)]


@pytest.mark.parametrize(("name", "dtype"), OFFERED)
def test_bytes_are_those_of_the_closed_form(model_of, config, name, dtype):
    """Keys and values of two heads, one key of the indexer for every token: nothing of x."""
    cache, entry = model_of(name, config, dtype).new_cache(3, CAPACITY), config.attention[0]
    assert cache.nbytes == memory.kv_cache(config, 3, CAPACITY, dtype)
    _, groups, dim = entry.heads(config)
    numbers = 2 * 3 * CAPACITY * (2 * groups * dim + entry.index_dim)
    assert cache.nbytes == numbers * {"float32": 4, "float64": 8, "bfloat16": 2}[dtype]


def scope(name, model):
    """The context in which a model's layers may be called from outside."""
    if name == "torch":
        import torch

        return torch.inference_mode()
    return model.scope() if name == "jax" else contextlib.nullcontext()


def arrays(name, *values):
    """NumPy's arrays as an implementation takes them."""
    if name == "numpy":
        return values
    if name == "torch":
        import torch

        return tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in values)
    import jax.numpy as jnp

    return tuple(jnp.asarray(value) for value in values)


def layer_of(name, model):
    net = model.programs.rebuild(model.params) if name == "jax" else model.net
    return net.model.layers[0].self_attn


@pytest.mark.full_for("jax")
def test_a_single_query_reads_only_what_it_chose(model_of, name):
    """All other keys and values of its cache, and empty slots, may be anything: here they are no numbers."""
    config, model = CONFIGS["turned"], model_of(name, CONFIGS["turned"])
    x, positions = np.random.default_rng(2).standard_normal((2, 9, 32)), np.arange(9, dtype=np.int32)[None]
    execution = () if name == "numpy" else (model.execution,)
    with scope(name, model):
        layer, taps = layer_of(name, model), Taps(("chosen",))
        whole, _ = layer(*arrays(name, x, positions), taps=taps)
        chosen = np.zeros((2, 12), bool)
        chosen[:, :9] = np.asarray(taps.found["chosen"])[:, -1]
        assert (chosen.sum(1) == 5).all()
        cache = layer.empty_cache(config, config.attention[0], 2, 12, *execution)
        _, cache = layer(*arrays(name, x[:, :8], positions[:, :8]), cache)
        kept = [np.where(chosen[:, None, :, None], np.asarray(v), np.nan) for v in (cache.keys_BKSD, cache.values_BKSD)]
        keys, values = arrays(name, *kept)
        got, _ = layer(*arrays(name, x[:, 8:], positions[:, 8:]), cache._replace(keys_BKSD=keys, values_BKSD=values))
    close(np.asarray(got)[:, 0], np.asarray(whole)[:, -1])


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_closed_form_by_hand():
    """A step multiplies 5 keys and values whatever the cache holds; index scores are of all its slots."""
    config = CONFIGS["turned"]
    for slots in (17, 23):
        step = TURNED.products(config, Work(3, 1, slots, 3, cached=True))
        assert step == {SCORES: 2 * 2 * 3 * 5 * 4 * 8, INDEX_SCORES: 2 * 3 * slots * 3 * (6 + 1)}
    chunk = TURNED.products(config, Work(3, 4, 17, 3, cached=True))
    assert chunk == {SCORES: 2 * 2 * 3 * 4 * 17 * 4 * 8, INDEX_SCORES: 2 * 3 * 4 * 17 * 3 * (6 + 1)}
    due = TURNED.products(config, Work(1, 7, 7, 7, causal=True))
    assert due == {SCORES: 2 * 2 * (1 + 2 + 3 + 4 + 5 + 5 + 5) * 4 * 8, INDEX_SCORES: 2 * 28 * 3 * 7}
    assert TURNED.read_numbers(config, 3, 17) == 3 * (17 * 6 + 2 * 5 * 2 * 8)
    assert TURNED.cached_numbers(config, 3, 17) == 3 * 17 * (6 + 2 * 2 * 8)


def test_counters_equal_the_closed_form(model_of, config, wing):
    model = model_of(wing, config, "float32")
    for task, what in {"forward": "forward", "train": "gradients"}.items():
        assert model.matmul_flops(what, 2, 9) == flops.flops_full(config, task, 2, 9), task
    assert model.matmul_flops("prefill", 3, 7, slots=15) == flops.flops_full(config, "prefill", 3, 7, slots=15)
    for slots in (3, 15, 24):
        assert model.matmul_flops("decode", 3, slots) == flops.flops_full(config, "decode", 3, slots), slots


def test_decoding_token_by_token_is_one_causal_forward(config):
    steps = [flops.decode_step(config, 2, 16, causal=True, visible=seen + 1) for seen in range(16)]
    forward = flops.forward(config, 2, 16, causal=True)
    assert {name: sum(step[name] for step in steps) for name in forward} == forward


# --- what the indexer learns from -------------------------------------------------------------------------------------


@pytest.mark.full_for("jax")
def test_the_models_loss_does_not_reach_the_indexer(model_of, fresh_model, tokens, config, wing):
    """Not by rounding either; all else has the gradient that dense attention to the same keys has."""
    ids = tokens(2, LENGTH + 1)
    grads = model_of(wing, config).gradients(ids[:, :-1], ids[:, 1:]).grads
    for key, parameter in params.table(config).items():
        if ".index_" in key:
            assert (grads[key] == 0).all(), key
        else:
            assert parameter.dead or (grads[key] != 0).any(), key
    weights = params.randomise(config, 20)
    plain = {key: weights[key] for key in params.table(dense(config))}
    want = fresh_model(wing, dense(config), weights=plain).gradients(ids[:, :-1], ids[:, 1:]).grads
    wide = fresh_model(wing, with_top_k(config, LENGTH), weights=weights).gradients(ids[:, :-1], ids[:, 1:]).grads
    for key, parameter in params.table(dense(config)).items():
        assert parameter.dead or np.abs(wide[key] - want[key]).max() < 10 * BOUND * np.abs(want[key]).max(), key


def test_the_indexers_loss_by_hand(model_of, tokens, config, name):
    """KL(mean weights of the heads || softmax of index scores) over what is chosen; 0 where only one key is visible."""
    taps = model_of(name, config).forward(tokens(2, LENGTH), taps=("*",)).taps
    for layer in range(2):
        scores, chosen, weights, loss = (
            taps[f"model.layers.{layer}.self_attn.{what}"]
            for what in ("index_scores", "chosen", "weights", "indexer_loss")
        )
        shares = weights.sum(1) / weights.sum((1, 3))[..., None]
        odds = np.exp(np.where(chosen, scores, -np.inf))
        log_ratio = np.log(np.where(chosen, shares, 1.0)) - np.log(np.where(chosen, odds / odds.sum(-1)[..., None], 1))
        close(loss, (shares * log_ratio).sum(-1))
        assert loss.shape == (2, LENGTH)
        assert np.abs(loss[:, 0]).max() < BOUND
        assert (loss[:, 1:] > 0).all()


def oracle_slopes(model, x, positions):
    """The indexer's loss of all queries, differentiated along a random direction for every parameter of the layer."""
    names = [key for key in model.params if key.startswith(f"{PATH}.")]
    along = {key: params.draw(0, f"slope/{key}", model.params[key].shape) for key in names}

    def loss(weights):
        taps = Taps(("indexer_loss",))
        model.rebuild(weights).at(PATH)(x, positions, taps=taps)
        return taps.found["indexer_loss"].sum()

    return along, {key: slope(loss, model.params, {key: along[key]}) for key in names}


def wing_gradients(wing, model, x, positions):
    """The gradient of the same loss by parameter, and of the input."""
    taps = Taps(("indexer_loss",))
    if wing == "torch":
        import torch

        layer, (x, positions) = layer_of(wing, model), arrays(wing, x, positions)
        own = dict(layer.named_parameters(prefix=PATH)) | {"input": x.requires_grad_()}
        layer(x, positions, taps=taps)
        found = torch.autograd.grad(taps.found["indexer_loss"].sum(), list(own.values()), materialize_grads=True)
        return {key: value.numpy() for key, value in zip(own, found, strict=True)}
    import jax

    def loss(weights, x):
        taps = Taps(("indexer_loss",))
        model.programs.rebuild(weights).model.layers[0].self_attn(x, positions, taps=taps)
        return taps.found["indexer_loss"].sum()

    with model.scope():
        x, positions = arrays(wing, x, positions)
        grads, own = jax.grad(loss, (0, 1))(model.params, x)
    return {key: np.asarray(value) for key, value in grads.items()} | {"input": np.asarray(own)}


@pytest.mark.full_for("jax")
def test_the_indexers_loss_trains_the_indexer_alone(model_of, config, wing):
    x, positions = np.random.default_rng(6).standard_normal((2, 11, 32)), np.arange(11, dtype=np.int32)[None]
    along, want = oracle_slopes(model_of("numpy", config), x, positions)
    grads = wing_gradients(wing, model_of(wing, config), x, positions)
    assert (grads["input"] == 0).all()
    for key, true in want.items():
        got = (grads[key] * along[key]).sum()
        if ".index_" in key:
            assert abs(true) > 1e-6, key
            assert got == pytest.approx(true, rel=1e-9), key
        else:
            assert true == 0
            assert (grads[key] == 0).all(), key


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"top_k": 0}, r"Sparse\.top_k is 0; allowed is a whole number > 0"),
        ({"index_heads": 1.5}, r"Sparse\.index_heads is 1\.5"),
        ({"index_dim": -4}, r"Sparse\.index_dim is -4"),
        ({"index_norm": "yes"}, r"Sparse\.index_norm is 'yes'; allowed is true or false"),
        ({"index_rotary": 7}, r"Sparse\.index_rotary is 7; allowed is settings of Rotary, or none"),
        ({"index_loss": -0.5}, r"Sparse\.index_loss is -0\.5; allowed is a number >= 0"),
        ({"weighting": "sofmax"}, r"Unknown weighting of index heads 'sofmax': did you mean 'softmax'\?"),
        ({"topk": 3}, r"Unknown field of Sparse 'topk': did you mean 'top_k'"),
        ({"window": 3}, r"Unknown field of Sparse 'window'"),
    ],
)
def test_settings_that_make_no_sense(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Sparse.from_dict(settings)


def test_models_that_cannot_have_it():
    with pytest.raises(UserError, match="index heads of size 5 are odd"):
        CONFIGS["turned"].with_(attention=TURNED.with_(index_dim=5))
    with pytest.raises(UserError, match="a divisor of num_heads"):
        CONFIGS["turned"].with_(attention=TURNED.with_(num_kv_heads=3))
    with pytest.raises(UserError, match="did you mean 'sparse'"):
        CONFIGS["turned"].with_(attention="sparce")


@pytest.mark.parametrize("kernel", ["fused", "loop"])
def test_kernels_that_it_has_not(model_of, wing, kernel):
    with pytest.raises(UserError, match=f"Sparse attention has no attention='{kernel}': use attention='plain'"):
        model_of(wing, CONFIGS["turned"], "float32", attention=kernel)
