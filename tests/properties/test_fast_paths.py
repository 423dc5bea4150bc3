"""Fast paths compute what the plain ones do: chunked loss, wide products, scans, streaming, native noise."""

import numpy as np
import pytest
from fast import EXACT, batch, check_gradients, trained

from common import allocator, compare, params, quantised
from common.adapters import Adapter
from common.backend import IGNORED
from common.config import MODES, Execution, SamplingConfig, TrainConfig, mode
from common.errors import UserError

REFUSED = {
    ("torch", "scan"),
    ("jax", "flex"),
    ("torch", "cudnn"),
    ("torch", "pallas"),
    ("jax", "cudnn"),  # on a CPU
    ("torch", "graphs"),  # likewise
    ("jax", "graphs"),
    ("torch", "tf32"),
    ("jax", "tf32"),
    ("torch", "undonated"),
    ("torch", "own gelu"),
    ("jax", "formula gelu"),
}  # what only the other wing has


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.full)], ids=["tied", "untied"])
def config(request, small):
    return small.with_(tie_embeddings=request.param)


@pytest.mark.full_for("jax-tied")
def test_the_chunked_loss(wing, config, fresh_model):
    plain, chunked = (fresh_model(wing, config, loss=loss) for loss in ("plain", "chunked"))
    ids, targets = batch(config)
    assert chunked.loss(ids, targets) == pytest.approx(plain.loss(ids, targets), rel=EXACT)
    twice = [np.stack([array, array[::-1]]) for array in (ids, targets)]
    check_gradients(plain, chunked, *twice)  # micro-batches of a chunk and a rest
    check_gradients(plain, chunked, ids[:3], targets[:3])  # less than a chunk


HEAD = Adapter("default", ("lm_head",), rank=3, alpha=5.0, dropout=0.3)
HEADS = {  # several adapters of one matrix: their sum
    "lora": {"adapters": (HEAD, HEAD.with_(name="stable", rslora=True, dropout=0.0)), "tie_embeddings": False},
    "dora": {"adapters": HEAD.with_(dora=True, dropout=0.0), "tie_embeddings": False},
    "all": {
        "adapters": (
            HEAD,
            HEAD.with_(name="turned", rank=2, dora=True),
            HEAD.with_(name="whole", rslora=True, dora=True, dropout=0.0),
            HEAD.with_(name="again", dora=True, dropout=0.0),
        ),
        "tie_embeddings": False,
    },
    "classes": {"num_labels": 5},
    "classes dora": {"num_labels": 5, "adapters": HEAD.with_(targets=("score",), dora=True)},
}


@pytest.mark.full_for("lora", "dora", "jax")
@pytest.mark.parametrize("name", HEADS)
def test_the_chunked_loss_of_heads_that_adapters_change(wing, small, fresh_model, name):
    """A product of a wider matrix; a classifier's own bias is one more column of it."""
    config = small.with_(num_layers=1, **HEADS[name])
    plain, chunked = (fresh_model(wing, config, loss=loss) for loss in ("plain", "chunked"))
    ids, targets = batch(config)
    if config.num_labels:
        targets = np.where(targets == IGNORED, IGNORED, targets % config.num_labels)
    check_gradients(plain, chunked, ids, targets, (3, 1))
    assert chunked.loss(ids, targets) == pytest.approx(plain.loss(ids, targets), rel=EXACT)
    patterns = ("*.lora_*",) if config.adapters else ("score.*",)
    settings = TrainConfig(steps=2, warmup_steps=0, learning_rate=0.1, trained=patterns)
    found = []
    for model in (plain, chunked):
        model.start_training(settings)
        steps = [model.train_step(ids, targets) for _ in range(2)]
        found.append([number for one in steps for number in (one.loss, one.grad_norm)])
    assert found[1] == pytest.approx(found[0], rel=EXACT)


@pytest.mark.full_for("jax")
def test_the_chunked_loss_of_nothing(wing, small, fresh_model):
    found = fresh_model(wing, small, loss="chunked").gradients(*(np.full((2, 4), v, np.int32) for v in (1, IGNORED)))
    assert found.value == 0
    assert all(not gradient.any() for gradient in found.grads.values())


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


PARTS = {
    "last block": (("model.layers.2.*", "model.norm.*", "score.*"), 2),
    "last two blocks": (("model.layers.[12].*",), 1),
    "first block": (("model.layers.0.*",), 1),
    "every second block": (("model.layers.[02].*",), 1),
    "head": (("score.*",), 3),
    "queries": (("*.q_proj.*",), 3),
}


def parts_of(config, name):
    """(which parameters learn, over how many layers a scan goes)."""
    patterns, count = PARTS[name]
    return params.trained(config, TrainConfig(trained=patterns)), count


@pytest.mark.parametrize("name", PARTS)
def test_a_scan_goes_over_layers_that_are_trained_alike(small, name):
    from jax_impl.stack import repeats

    trained, count = parts_of(small.with_(num_layers=3, num_labels=4), name)
    assert repeats(small.with_(num_layers=3, num_labels=4), trained) == count


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "layers"), [("last block", "scan"), ("first block", "scan"), ("last block", "checkpointed")]
)
def test_a_scan_whose_layers_are_trained_in_part_follows_the_loop(with_dropout, fresh_model, name, layers):
    """What is frozen stays to the bit; then the run goes on in the loop, and another one trains everything."""
    patterns, count = PARTS[name]
    config = with_dropout.with_(num_layers=3, num_labels=4)
    ids, targets = batch(config, 4, 8)
    data = [np.stack([part, part[::-1]]) for part in (ids, np.where(targets == IGNORED, IGNORED, targets % 4))]
    settings = TrainConfig(steps=9, warmup_steps=0, learning_rate=1e-2, clip_norm=0.5, trained=patterns)
    models = [fresh_model("jax", config, layers=way) for way in ("loop", layers)]
    start = models[0].weights()
    want, got = (trained(model, settings, data) for model in models)
    assert models[1].programs.count == count
    assert got[0] == pytest.approx(want[0], rel=EXACT)
    chosen, table = params.trained(config, settings), params.table(config)
    assert set(got[2]) == set(want[2]) == set(params.slots(config, settings))
    for one in (1, 2):
        for key, value in want[one].items():
            if one == 1 and not chosen[key]:
                assert np.array_equal(got[1][key], start[key]), key
            elif not table.get(key, table["model.norm.weight"]).dead and "k_proj.bias" not in key:
                assert compare.rms(got[one][key] - value) <= EXACT * compare.rms(value), key
    resumed = fresh_model("jax", config, weights=got[1], layers=layers)
    resumed.start_training(settings, got[2], 3)
    assert resumed.train_step(*data).loss == pytest.approx(models[0].train_step(*data).loss, rel=EXACT)
    models[1].start_training(settings.with_(trained=()))
    assert models[1].programs.count == 3
    assert all(np.array_equal(got[1][key], value) for key, value in models[1].weights().items())


def test_what_a_fold_puts_together_it_takes_apart():
    """Over all whole periods of layers, over some, and where there are no layers at all."""
    from jax_impl.stack import fold, place, unfold

    arrays = {f"model.layers.{i}.{part}.weight": np.full(3, 10 * i + len(part)) for i in range(7) for part in "ab"}
    arrays |= {"model.norm.weight": np.arange(3)}
    for period, count in ((1, 7), (1, 1), (2, 3), (2, 1), (3, 2)):
        folded = dict(fold(arrays, period, count))
        assert len(folded) == 1 + 2 * (7 - (count - 1) * period)
        again = unfold(folded, period, count)
        assert again.keys() == arrays.keys()
        for name, array in arrays.items():
            where, repeat = place(name, period, count)
            assert np.array_equal(again[name], array)
            assert np.array_equal(folded[where] if repeat is None else folded[where][repeat], array)
    alone = {"score.weight.exp_avg": np.ones(2)}
    assert unfold(dict(fold(alone, 2, 3)), 2, 3) == alone


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
        folded_graph(small, Execution(layers="scan"), 2)


def test_jax_refuses_what_is_pytorchs(small, fresh_model):
    with pytest.raises(UserError, match="XLA widens by itself; products='wide' is PyTorch's"):
        fresh_model("jax", small, products="wide")


@pytest.mark.full_for("torch-one row-float64")  # most of half a minute of compiling; the benchmarks' decoding stays
@pytest.mark.full_for("jax")  # which streams a sample in test_generation.py
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


@pytest.mark.full_for("jax-nf4", "jax-eager", "jax-module")
@pytest.mark.full_for(
    "jax-blockwise", "jax-per head", "jax-masked", "jax-einsum", "jax-joined"
)  # test_implementations.py
@pytest.mark.full_for("jax-scan", "jax-checkpointed", "jax-chunked loss")  # alone in test_execution.py and above
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
