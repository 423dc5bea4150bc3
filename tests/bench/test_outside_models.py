"""Models from outside at tasks whose outcome is known: what they decode, and what memory they are told to need."""

import numpy as np
import pytest

from benchmarks.harness import contenders, footprint
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.process import Rules
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.suites.scope import wing
from common import backend as door
from common.accounting import memory
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
        built(source).prepare("component", tokens())


@pytest.mark.parametrize("source", ALL)
def test_their_plans_contain_the_closed_forms(source):
    """Weights in all; logits of a forward pass, gradients and averages of a step, the cache of a decoder; no more than
    what a training step keeps for its way back on top."""
    model, held, ids = built(source), memory.weights(CONFIG), tokens()
    logits = 4 * BATCH * LENGTH * CONFIG.vocab_size
    forward, prefill, decode = (
        model.planned_bytes(what, BATCH, LENGTH)["planned"] for what in ("forward", "prefill", "decode")
    )
    assert held + logits <= forward < 2 * (held + logits) + 2**20
    assert held + memory.kv_cache(CONFIG, BATCH, LENGTH) <= min(prefill, decode)
    assert decode < forward
    model.start_training(TRAIN)
    model.prepare("train", ids, ids)()
    step = model.planned_bytes("train", BATCH, LENGTH)["planned"]
    assert step >= 2 * held + memory.optimizer_slots(CONFIG)
    assert step < 3 * (2 * held + memory.optimizer_slots(CONFIG)) + 2**20
    assert "planned" in model.PLAN or "peak" in model.PLAN or "XLA" in model.PLAN


@pytest.mark.parametrize("source", PLAIN)
def test_plans_of_what_multiplies_nothing(source):
    model, ids = built(source), tokens()
    model.start_training(TRAIN)
    model.prepare("optimizer", ids, ids)()
    held = memory.weights(CONFIG)
    assert model.planned_bytes("gradients", BATCH, LENGTH)["planned"] >= 2 * held
    assert model.planned_bytes("optimizer", BATCH, LENGTH)["planned"] >= 2 * held + memory.optimizer_slots(CONFIG)
    activation = 4 * BATCH * LENGTH * CONFIG.embed_dim
    assert model.planned_bytes("dropout", BATCH, LENGTH)["planned"] >= 2 * activation
    assert model.planned_bytes("sample", BATCH, LENGTH)["planned"] >= 4 * BATCH * CONFIG.vocab_size


@pytest.mark.parametrize(
    ("task", "path"),
    [("component", "model.layers.0.mlp"), ("optimizer", ""), ("dropout", ""), ("sample", "")],
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
