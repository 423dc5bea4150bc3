"""Fast paths compute what the plain ones do: chunked loss, fused kernels, wide products, streaming, native noise."""

import numpy as np
import pytest

from common import allocator, compare, params, quantised
from common.backend import IGNORED
from common.config import MODES, Execution, SamplingConfig, TrainConfig, mode
from common.errors import UserError

EXACT = 1e-12
LONG = 300  # rows of a batch, so that a chunk is full and another is not
FUSED = {"norm": "fused", "optimizer": "fused"}
REFUSED = {
    ("torch", "scan"),
    ("jax", "fused norm"),
    ("jax", "fused optimizer"),
    ("jax", "flex"),
    ("torch", "cudnn"),
    ("torch", "pallas"),
    ("jax", "cudnn"),  # on a CPU
    ("torch", "graphs"),  # likewise
    ("jax", "graphs"),
    ("torch", "tf32"),
    ("jax", "tf32"),
    ("torch", "undonated"),
}  # what only the other wing has


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.full)], ids=["tied", "untied"])
def config(request, small):
    return small.with_(tie_embeddings=request.param)


def batch(config, rows=LONG // 20, length=20):
    """Ids and targets of unequal counts: a row without any, and single places."""
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[0], targets[3, ::2], targets[-1, -1] = IGNORED, IGNORED, IGNORED
    return ids[:, :-1], targets


def check_gradients(plain, fast, ids, targets):
    want, got = plain.gradients(ids, targets), fast.gradients(ids, targets)
    assert got.value == pytest.approx(want.value, rel=EXACT)
    table = params.table(plain.config)
    for name, gradient in want.grads.items():
        if not table[name].dead:
            assert compare.rms(got.grads[name] - gradient) <= EXACT * compare.rms(gradient), name


@pytest.mark.full_for("jax-tied")
def test_the_chunked_loss(wing, config, fresh_model):
    plain, chunked = (fresh_model(wing, config, loss=loss) for loss in ("plain", "chunked"))
    ids, targets = batch(config)
    assert chunked.loss(ids, targets) == pytest.approx(plain.loss(ids, targets), rel=EXACT)
    twice = [np.stack([array, array[::-1]]) for array in (ids, targets)]
    check_gradients(plain, chunked, *twice)  # micro-batches of a chunk and a rest
    check_gradients(plain, chunked, ids[:3], targets[:3])  # less than a chunk


def test_the_chunked_loss_of_nothing(wing, small, fresh_model):
    found = fresh_model(wing, small, loss="chunked").gradients(*(np.full((2, 4), v, np.int32) for v in (1, IGNORED)))
    assert found.value == 0
    assert all(not gradient.any() for gradient in found.grads.values())


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_fused_norms_and_optimizer_of_pytorch(config, fresh_model, decay):
    plain, fused = (fresh_model("torch", config, **options) for options in ({}, FUSED))
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


def test_wide_products_are_those_of_bfloat16(model_of, tokens):
    """The same numbers are multiplied: the results differ by where they are rounded, by few units of the last place."""
    names = ("model.layers.0.self_attn.q", "model.layers.0.mlp.output")
    plain, wide = (model_of("torch", dtype="bfloat16", products=products) for products in ("plain", "wide"))
    want, got = (model.forward(tokens(2, 8), taps=names).taps for model in (plain, wide))
    for name, free in zip(names, (compare.UNIT_ROUNDOFF["bfloat16"], 0.02), strict=True):
        assert compare.rms(got[name] - want[name]) <= free * compare.rms(want[name]), name


def test_a_chunked_loss_takes_wide_products(small, fresh_model):
    """In float64 nothing changes; in bfloat16 the products are the same but for where they are rounded."""
    ids, targets = batch(small)
    plain, wide = (fresh_model("torch", small, loss="chunked", products=way) for way in ("plain", "wide"))
    check_gradients(plain, wide, ids, targets)
    models = [fresh_model("torch", small, "bfloat16", loss="chunked", products=way) for way in ("plain", "wide")]
    want, got = (model.gradients(ids, targets) for model in models)
    assert got.value == pytest.approx(want.value, rel=2e-3)
    name = "model.norm.weight"
    assert compare.rms(got.grads[name] - want.grads[name]) <= 0.05 * compare.rms(want.grads[name])


def test_a_scan_refuses_blocks_that_differ(small, monkeypatch):
    """By their description, even where their parameters are alike."""
    from jax_impl.models import gpt
    from jax_impl.programs import folded_graph

    made, real = [], gpt.Block.__init__

    def unlike(self, *settings):
        real(self, *settings)
        made.append(self)
        self.rate = len(made)

    monkeypatch.setattr(gpt.Block, "__init__", unlike)
    with pytest.raises(UserError, match="blocks of this model differ"):
        folded_graph(small, Execution(layers="scan"))


@pytest.mark.parametrize(("field", "value"), [("norm", "fused"), ("optimizer", "fused"), ("products", "wide")])
def test_jax_refuses_what_is_pytorchs(small, fresh_model, field, value):
    with pytest.raises(UserError, match="XLA fuses and widens by itself"):
        fresh_model("jax", small, **{field: value})


@pytest.mark.full_for("torch-one row-float64")  # most of half a minute of compiling; the benchmarks' decoding stays
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param([[3, 1, 4, 1, 5]], id="one row"),
        pytest.param([[3, 1, 4], [1]], id="two rows", marks=pytest.mark.full),
    ],
)
def test_streamed_decoding(wing, small, fresh_model, prompts, dtype):
    """The one-row product is another one: its tokens, and the logits behind them, must be the plain ones."""
    plain, streamed = (fresh_model(wing, small, dtype, decode=decode) for decode in ("plain", "streamed"))
    for sampling in (SamplingConfig(12), SamplingConfig(12, temperature=0.9, top_k=20, seed=3)):
        assert streamed.generate(prompts, sampling) == plain.generate(prompts, sampling)
    unit = compare.UNIT_ROUNDOFF[dtype]
    caches = [model.new_cache(1, 4) for model in (plain, streamed)]
    for token in (7, 8, 9):
        want, got = (m.extend(c, [[token]]) for m, c in zip((plain, streamed), caches, strict=True))
        assert compare.rms(got - want) <= 64 * unit * compare.rms(want)


@pytest.mark.full_for("jax")
def test_bfloat16_weights_are_cast_once_and_training_goes_on_from_the_wide_ones(wing, small, fresh_model):
    how = {"compile": False} if wing == "torch" else {}  # the benchmarks' decoding is compiled
    model = fresh_model(wing, small, "bfloat16", decode="streamed", **how)
    before = model.weights()
    tokens = model.generate([[1, 2, 3]], SamplingConfig(8))
    assert all(np.array_equal(before[name], weight) for name, weight in model.weights().items())
    model.start_training(TrainConfig(steps=3, warmup_steps=0, learning_rate=3e-2))
    ids, targets = batch(small, 4, 8)
    for _ in range(3):
        model.train_step(ids, targets)
    after = fresh_model(wing, small, "bfloat16", weights=model.weights())
    assert model.generate([[1, 2, 3]], SamplingConfig(8)) == after.generate([[1, 2, 3]], SamplingConfig(8)) != tokens


@pytest.mark.full_for("jax")
def test_native_generators_are_reproducible_and_others_than_the_shared_one(wing, with_dropout, fresh_model):
    ids, targets = batch(with_dropout, 4, 8)
    shared, native, again = (fresh_model(wing, with_dropout, "float32", rng=r) for r in ("shared", "native", "native"))
    losses = [model.gradients(ids, targets, dropout=(0, 1)).value for model in (shared, native, again)]
    assert losses[1] == losses[2] != losses[0]
    assert native.gradients(ids, targets, dropout=(0, 2)).value != losses[1]
    sampling = SamplingConfig(10, temperature=1.5, seed=4)
    texts = [model.generate([[1], [2]], sampling) for model in (shared, native, again)]
    assert texts[1] == texts[2] != texts[0]
    assert native.generate([[1], [2]], sampling.with_(seed=5)) != texts[1]


def test_native_dropout_keeps_as_many_as_asked_for(wing, small, fresh_model):
    model = fresh_model(wing, small, "float32", rng="native")
    kept = np.asarray(model.prepare("dropout", np.ones((8, 64, 64), np.float32))()["output"]) != 0
    assert abs(kept.mean() - 0.9) < 5 * np.sqrt(0.09 / kept.size)
    assert not np.array_equal(kept[0], kept[1])


@pytest.mark.full_for("jax-nf4 double", "jax-eager", "jax-module")
@pytest.mark.full_for("torch-flex", "jax-pallas")  # test_compiled_kernels.py has those
@pytest.mark.parametrize("name", MODES)
def test_every_mode_computes_or_is_refused_with_a_sentence(wing, small, fresh_model, name, monkeypatch):
    ids, targets = batch(small)
    if (wing, name) in REFUSED:
        with pytest.raises(UserError):
            fresh_model(wing, small, "float32", **mode(name, wing))
        return
    options = mode(name, wing)
    if options.get("allocator") == "kept":  # as if this process had been started so
        monkeypatch.setenv(allocator.VARIABLE, allocator.environment({})[allocator.VARIABLE])
    if options.get("compile"):
        options = {k: v for k, v in options.items() if k != "compile"}  # compiled in tests/properties/test_execution.py
    weights = params.randomise(small, 20)
    other = fresh_model(wing, small, "float32", weights, **options)
    if "base" in options:  # computes with the numbers that 4 bits stand for
        weights = quantised.quantised(small, weights, options["base"])
    plain = fresh_model(wing, small, "float32", weights)
    assert other.loss(ids, targets) == pytest.approx(plain.loss(ids, targets), rel=1e-6)


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match="did you mean 'fast'"):
        mode("fats", "torch")
