"""The frameworks' own norms and optimizers compute what the plain ones do, as exactly."""

import numpy as np
import pytest
from fast import EXACT, batch, check_gradients, trained

from common import compare, params
from common.backend import IGNORED
from common.config import TrainConfig
from common.errors import UserError
from common.variants import GatedDeltaNet, GroupedQuery, Latent, Sparse

FUSED = {"norm": "fused", "optimizer": "fused"}


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.full)], ids=["tied", "untied"])
def config(request, small):
    return small.with_(tie_embeddings=request.param)


NORMED = {  # the norms of layers, and others inside of attention
    "layer_norm": {},
    "rms_norm": {"norm": "rms_norm", "attention": (GroupedQuery(num_kv_heads=1, qk_norm="head"),)},
    "latent": {"attention": (Latent(query_rank=6),)},
    "sparse": {"attention": (Sparse(top_k=4),)},
    "gated_deltanet": {"attention": (GatedDeltaNet(),)},
}


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_fused_norms_and_optimizers(wing, config, fresh_model, decay):
    """The frameworks' own, in float64: logits, gradients, and the weights after six steps with some decay."""
    plain, fused = (fresh_model(wing, config, **options) for options in ({}, FUSED))
    ids, targets = batch(config, 4, 8)
    assert compare.rms(fused.forward(ids).logits - plain.forward(ids).logits) <= EXACT * 10
    check_gradients(plain, fused, ids, targets)
    settings = TrainConfig(steps=6, warmup_steps=2, learning_rate=1e-2, clip_norm=0.5, decay=decay)
    for model in (plain, fused):
        model.start_training(settings)
        for _ in range(6):
            model.train_step(ids, targets)
    table, want, got = params.table(config), plain.weights(), fused.weights()
    for name, weight in want.items():
        if not table[name].dead:
            assert compare.rms(got[name] - weight) <= EXACT * compare.rms(weight), name


@pytest.mark.full_for("layer_norm", "latent", "sparse", "deltanet")
@pytest.mark.parametrize("name", NORMED)
def test_fused_norms_wherever_there_are_norms(wing, small, fresh_model, name):
    plain, fused = (fresh_model(wing, small.with_(**NORMED[name]), norm=norm) for norm in ("plain", "fused"))
    check_gradients(plain, fused, *batch(small, 4, 8))


@pytest.mark.parametrize("mean", [0.0, 3e4])
def test_fused_norms_are_as_exact_as_the_plain_ones(wing, small, fresh_model, mean):
    """In float32 a row whose mean is large keeps the digits that it has; in bfloat16 it is rounded at the end alone."""
    x = (mean + np.random.default_rng(0).normal(size=(2, 8, small.embed_dim))).astype(np.float32)
    for dtype in ("float32", "bfloat16"):
        unit = compare.UNIT_ROUNDOFF[dtype]
        own = x if dtype == "float32" else (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # cut
        want, got = (
            fresh_model(name, small, kind, **how).component("model.norm", own, np.ones_like(own))[0]
            for name, kind, how in (("numpy", "float64", {}), (wing, dtype, {"norm": "fused"}))
        )
        free = max(unit, mean * compare.UNIT_ROUNDOFF["float32"])  # of a mean in float32
        assert compare.rms(got - want) <= 8 * free * compare.rms(want)


@pytest.mark.full_for("jax-layer_norm-bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["layer_norm", pytest.param("rms_norm", marks=pytest.mark.full)])
def test_fused_forms_round_no_more_than_the_plain_ones(wing, small, fresh_model, name, dtype):
    """Losses and weights of five steps, held against those of float64."""
    config = small.with_(**NORMED[name])
    data, settings = batch(config, 4, 8), TrainConfig(steps=5, warmup_steps=0, learning_rate=1e-2, clip_norm=0.5)
    runs = [(dtype, FUSED), (dtype, {}), ("float64", {})]
    fused, plain, true = (trained(fresh_model(wing, config, kind, **how), settings, data, 5) for kind, how in runs)
    unit = compare.UNIT_ROUNDOFF[dtype]
    assert fused[0] == pytest.approx(plain[0], rel=64 * unit)
    alive = [name for name, one in params.table(config).items() if not one.dead]
    off = [np.sqrt(sum(np.square(run[1][n] - true[1][n]).sum() for n in alive)) for run in (fused, plain)]
    assert off[0] <= 1.5 * off[1]


@pytest.mark.full_for("jax-muon", "jax-everything")
@pytest.mark.parametrize("name", ["last block", "muon", "everything"])
def test_fused_optimizers_take_the_same_steps(wing, small, fresh_model, name):
    """In JAX of a scan's folded parameters; of a part of a model, beside Muon, and when a run goes on."""
    config = small.with_(num_layers=3, num_labels=4)
    ids, targets = batch(config, 4, 8)
    data = ids, np.where(targets == IGNORED, IGNORED, targets % 4)
    settings = TrainConfig(steps=9, warmup_steps=2, learning_rate=1e-2, clip_norm=0.5, decay="all")
    more = {"last block": {"trained": ("model.layers.2.*", "model.norm.*", "score.*")}, "muon": {"optimizer": "muon"}}
    settings = settings.with_(**more.get(name, {}))
    how = {"optimizer": "fused", **({"layers": "scan"} if wing == "jax" else {})}
    models = [fresh_model(wing, config, **options) for options in ({}, how)]
    want, got = (trained(model, settings, data) for model in models)
    assert got[0] == pytest.approx(want[0], rel=EXACT)
    assert set(got[2]) == set(want[2]) == set(params.slots(config, settings))
    table = params.table(config)
    for one in (1, 2):
        for key, value in want[one].items():
            if not table.get(key, table["model.norm.weight"]).dead and "k_proj.bias" not in key:
                assert compare.rms(got[one][key] - value) <= EXACT * compare.rms(value), key
    resumed = fresh_model(wing, config, weights=got[1], **how)
    resumed.start_training(settings, got[2], 3)
    assert resumed.train_step(*data).loss == pytest.approx(models[0].train_step(*data).loss, rel=EXACT)


def test_optax_is_asked_to_correct_no_beta_that_is_1(small, fresh_model):
    """Which 1 - 1e-9 is in float32; tests/interop/test_frameworks.py has it in float64."""
    model = fresh_model("jax", small, "float32", optimizer="fused")
    model.start_training(TrainConfig(steps=2, warmup_steps=0, beta2=1 - 1e-9))
    with pytest.raises(UserError, match="A beta is 1 in float32, which optax cannot correct: use optimizer='plain'"):
        model.train_step(*batch(small, 4, 8))
