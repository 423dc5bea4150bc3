"""Models from outside at tasks whose outcome is known: what they decode, and what memory they are told to need."""

import jax
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks import once
from benchmarks.harness import contenders, footprint
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.process import Rules
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.suites.scope import plain, wing
from common import backend as door
from common.accounting import activations, memory
from common.cases import CASES
from common.config import Execution, SamplingConfig, preset
from common.errors import UserError

CONFIG = CASES["gpt"].config
PLAIN = ["benchmarks.outside.plain_torch:backend", "benchmarks.outside.plain_jax:backend"]
ALL = [*PLAIN, "transformers"]
BATCH, LENGTH = 2, 9


def built(source):
    if source == "transformers":
        pytest.importorskip("transformers")
    return contenders.load(source).build(CONFIG, Recipe("uneven", CONFIG).weights(), Execution())


def tokens(length=LENGTH):
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, (BATCH, length)).astype(np.int32)


@pytest.mark.parametrize("source", ALL)
def test_a_filled_cache_is_continued_as_often_as_one_likes(source):
    model, ids = built(source), tokens()
    for new in (1, 2, 6):
        sampling = SamplingConfig(max_new_tokens=new)
        run = model.prepare("continue", ids, sampling=sampling)
        for _ in range(3):
            assert np.asarray(run()["tokens"]).tolist() == model.generate(ids.tolist(), sampling)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("source", PLAIN)
def test_plain_calls_decode_what_the_oracle_decodes(source, cache):
    sampling = SamplingConfig(max_new_tokens=5, cache=cache)
    oracle = door.load("numpy").build(CONFIG, Recipe("uneven", CONFIG).weights(), Execution("float64"))
    assert built(source).generate(tokens().tolist(), sampling) == oracle.generate(tokens().tolist(), sampling)


@pytest.mark.parametrize("source", PLAIN)
def test_a_task_that_is_none_of_theirs_is_refused(source):
    with pytest.raises(UserError, match="has no task 'component'"):
        built(source).prepare("component", tokens(), path="model.norm")


@pytest.mark.parametrize("source", ALL)
def test_their_plans_contain_the_closed_forms(source):
    """Weights in all; logits of a forward pass, gradients and averages of a step, the cache of a decoder; no more than
    what a training step keeps for its way back on top."""
    model, held, ids = built(source), memory.weights(CONFIG), tokens()
    logits = 4 * BATCH * LENGTH * CONFIG.vocab_size
    forward, prefill, decode = (
        model.planned_bytes(what, BATCH, LENGTH)["planned"] for what in ("forward", "prefill", "decode")
    )
    assert held + logits <= forward < 2 * (held + logits)
    kept, layer = memory.kv_cache(CONFIG, BATCH, LENGTH), memory.kv_cache(CONFIG, BATCH, LENGTH) // CONFIG.num_layers
    assert held + kept <= min(prefill, decode)
    assert decode < held + kept + layer + 8 * 4 * BATCH * CONFIG.vocab_size  # nobody's cache lies there twice
    model.start_training(TRAIN)
    model.prepare("train", ids, ids)()
    step = model.planned_bytes("train", BATCH, LENGTH)["planned"]
    state = 2 * held + memory.optimizer_slots(CONFIG)
    kept = sum(activations.saved(CONFIG, BATCH, LENGTH).values())
    assert state <= step < state + 2 * (kept + 2 * logits)
    assert model.PLAN == door.load("jax" if "jax" in source else "torch").PLAN


@pytest.mark.parametrize("allowed", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("task", ["forward", "prefill", "train"])
@pytest.mark.parametrize("source", [ALL[0], ALL[2]])
def test_the_kernel_of_attention_that_a_row_names_is_the_one_that_runs(source, task, allowed):
    model, ids = built(source), tokens()
    model.start_training(TRAIN)
    run = model.prepare(task, ids, ids)
    with sdpa_kernel([allowed]):
        told = model.about(BATCH, LENGTH, task == "train")["kernel"]
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
    names = {event.key for event in seen.key_averages()}
    assert told == allowed.name.lower()
    assert ("aten::_scaled_dot_product_attention_math" in names) == (told == "math")
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in names) == (told == "flash_attention")


@pytest.mark.parametrize("gradients", [False, True])
def test_plain_jax_names_what_its_compiler_was_handed(gradients, monkeypatch):
    about = built(PLAIN[1]).about
    assert about(BATCH, LENGTH, gradients)["kernel"] == "XLA"

    def cudnn_attention(q, k, v, is_causal):
        return q * k * v

    monkeypatch.setattr(jax.nn, "dot_product_attention", jax.jit(cudnn_attention, static_argnames="is_causal"))
    assert about(BATCH, LENGTH, gradients)["kernel"] == "cuDNN"


@pytest.mark.parametrize("source", PLAIN)
def test_plans_of_what_multiplies_nothing(source):
    model, ids = built(source), tokens()
    held = memory.weights(CONFIG)
    assert model.planned_bytes("gradients", BATCH, LENGTH)["planned"] >= 2 * held
    with pytest.raises(UserError, match="once `start_training` has been called"):
        model.planned_bytes("optimizer", BATCH, LENGTH)
    model.start_training(TRAIN)
    model.prepare("train", ids, ids)()
    before = {name: np.array(contenders.numpy(w)) for name, w in model.weights.items()}
    state = 2 * held + memory.optimizer_slots(CONFIG)
    assert state <= model.planned_bytes("optimizer", BATCH, LENGTH)["planned"] <= 2 * state
    activation, logits = 4 * BATCH * LENGTH * CONFIG.embed_dim, 4 * BATCH * CONFIG.vocab_size
    assert 2 * activation <= model.planned_bytes("dropout", BATCH, LENGTH)["planned"] <= 8 * activation
    assert logits <= model.planned_bytes("sample", BATCH, LENGTH)["planned"] <= 16 * logits
    assert all(np.array_equal(before[name], contenders.numpy(w)) for name, w in model.weights.items())
    with pytest.raises(UserError, match="Unknown task to plan 'nothing'"):
        model.planned_bytes("nothing", BATCH, LENGTH)


@pytest.mark.full_for("forward", "train", "dropout", "sample")
@pytest.mark.parametrize("task", ["forward", "prefill", "gradients", "train", "optimizer", "dropout", "sample"])
@pytest.mark.parametrize("one", plain(), ids=lambda one: one.name)
def test_plain_calls_pass_the_gate(one, task):
    config = preset("nano").with_(num_layers=1, dropout_embed=0.1 if task == "dropout" else 0.0)
    (drawn,) = (other for other in plain(rng="native") if other.name == one.name)
    own = drawn if task in ("dropout", "sample") else one
    once.check(Cell("parts", task, "nano", config, 8, 64, "float32", (own,)), own)


@pytest.mark.parametrize("source", PLAIN)
def test_what_has_no_place_in_the_context_is_refused(source):
    model, sampling = built(source), SamplingConfig(max_new_tokens=CONFIG.context_length)
    for call in (
        lambda: model.generate(tokens().tolist(), sampling),
        lambda: model.prepare("continue", tokens(), sampling=sampling),
    ):
        with pytest.raises(UserError, match="do not fit"):
            call()
    with pytest.raises(UserError):
        model.generate([[CONFIG.vocab_size]], SamplingConfig(max_new_tokens=1))


def test_bytes_are_those_of_the_device_where_the_first_lies():
    """What a function makes elsewhere (a counter on the host, beside a GPU) is not among them."""
    held = torch.zeros(1000)
    found = door.load("torch").planned_bytes(lambda: (held + 1, torch.zeros(10_000, device="meta")), held=[held])
    assert 8000 <= found["planned"] < 12_000


@pytest.mark.full_for("self_attn", "optimizer", "sample")
@pytest.mark.parametrize(
    ("task", "path"),
    [("component", "model.layers.0.mlp"), ("component", "model.layers.0.self_attn"), ("optimizer", ""), ("sample", "")],
)
def test_every_cell_of_a_wing_has_three_measures_of_memory(task, path, tmp_path):
    config = preset("nano").with_(num_layers=1, dropout_embed=0.1)
    cell = Cell("parts", task, "nano", config, 2, 16, "float32", (wing("torch"), wing("jax")), path=path)
    record = Record(tmp_path)
    footprint.measure(cell, {config: Recipe("initial", config)}, Rules(1), record, {"torch": "", "jax": ""})
    found = [line for line in record.lines if line["kind"] == "memory"]
    assert [line["name"] for line in found] == ["torch", "jax"]
    for line in found:
        assert 0 < line["import"] < line["peak"]
        assert line["planned"] > 0
        assert line["planned_how"]
