"""Fine-tuning on texts, dropout on: the same configuration, seed and data give the same curves in both wings."""

import functools

import numpy as np
import pytest

from common import adapters, heads, params
from common import backend as door
from common.config import Execution, GPTConfig, TrainConfig
from common.data.instructions import InstructionExamples
from common.data.labelled import Labelled, TextExamples
from common.data.preferences import PreferenceExamples
from common.data.windows import Batches
from common.parity import trajectories
from common.parity.rows import Row
from common.parity.thresholds import ROUNDOFF
from common.preference import Preference
from common.tokenizers import tokenizer
from common.tuning import preferences

BYTES = tokenizer("bytes")
DROPPED = dict.fromkeys(("dropout_embed", "dropout_attn", "dropout_shortcut"), 0.1)
MODEL = GPTConfig(256, 48, 16, 2, 2, ff_dim=32, **DROPPED)
LONG, SHORT, CONTROLLED = 100, 12, 24  # steps: of the claim, of its short sibling, of the control by one ulp
EXACT = 1e-9
KINDS = ("classify", "classify lora", "instruct", "instruct dora", "dpo", "dpo lora")
WORDS = ["see you at home", "are you there", "on my way now", "call me later", "thank you so much"]


def layout(**more):
    return {"style": "phi3", "end_id": 0, "length": 48, "multiple": 48, **more}  # one shape: JAX compiles once


def examples(kind):
    """What there is to learn, as little as a run needs to see all of it several times."""
    if kind == "classify":
        texts = [f"{WORDS[i % 5]} {i}" for i in range(10)] + [f"WIN cash {i} now!!" for i in range(10)]
        labelled = Labelled(texts, np.repeat([0, 1], 10), ("ham", "spam"))
        return TextExamples.of(labelled, BYTES, length=24, pad_id=0, read="flexible")
    pairs = [{"instruction": f"Add {i} to 1", "input": "", "output": f"It is {i + 1}."} for i in range(20)]
    if kind == "instruct":
        return InstructionExamples(pairs, BYTES, mask_instruction=True, **layout())
    pairs = [{**one, "chosen": one["output"], "rejected": "Go away."} for one in pairs]
    return PreferenceExamples(pairs, BYTES, preference=Preference("dpo", reduction="mean"), **layout())


@functools.cache
def made(kind):
    """(config, float32 weights, settings, examples) of a kind of run; the reference of preferences is the model."""
    what, *more = kind.split()
    config, weights = MODEL, params.randomise(MODEL, 3, 0.3)
    if what == "classify":
        config, weights = heads.classifier(config, weights, 2, seed=1)
    patterns = ("model.layers.1.*", "model.norm.*", "score.*") if what == "classify" else ()
    data = examples(what)
    if what == "dpo":
        original = door.load("torch").build(config, weights, Execution(dtype="float64"))
        told = preferences.log_probs(original, data, len(data))
        data = data.with_reference(preferences.reduced(*told, data.preference.reduction))
    if more:
        adapter = adapters.Adapter(targets=("*.q_proj", "*.v_proj"), rank=4, dropout=0.1, dora=more == ["dora"])
        config, weights = adapters.add(config, weights, adapter, 1)
        patterns = ("*.lora_*", "score.*") if what == "classify" else ()
    settings = TrainConfig(
        steps=LONG, batch_size=4, learning_rate=3e-3, warmup_steps=5, decay="all", seed=7, trained=patterns
    )
    return config, {name: np.asarray(weights[name]) for name in params.table(config)}, settings, data


def curves(wing, kind, steps, dtype="float64", weights=None):
    """(losses, gradient norms, live parameters in one row [steps, numbers]) of a run."""
    config, original, settings, data = made(kind)
    model = door.load(wing).build(config, original if weights is None else weights, Execution(dtype=dtype))
    model.start_training(settings)
    batches = Batches(data, settings.batch_size, seed=settings.seed)
    chosen, table = params.trained(config, settings), params.table(config)
    names = [name for name, one in table.items() if chosen[name] and not one.dead]
    losses, norms, path = [], [], []
    for _ in range(steps):
        step = model.train_step(*next(batches))
        losses.append(step.loss)
        norms.append(step.grad_norm)
        now = model.weights()
        path.append(np.concatenate([np.asarray(now[name], np.float64).ravel() for name in names]))
    return np.array(losses), np.array(norms), np.stack(path)


LENGTHS = [pytest.param(LONG, marks=pytest.mark.full), SHORT]


@pytest.mark.full_for("instruct", "dpo", "classify-")
@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_equal_in_float64(kind, steps):
    one, two = (curves(wing, kind, steps) for wing in ("torch", "jax"))
    for what, left, right in zip(("loss", "norm", "parameters"), one, two, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=EXACT, err_msg=what)
    losses, norms, path = one
    assert norms.min() > 1e-6  # it learns to the end
    assert np.abs(path[-1] - path[0]).max() > 1e-3
    if steps == LONG:
        assert losses[-10:].mean() < losses[:10].mean()


def test_dropout_and_the_order_of_the_data_are_part_of_a_curve():
    """What would part two runs by far more than the bound is in use."""
    config, weights, settings, data = made("classify")
    base = curves("torch", "classify", 4)[0]
    for own, seed in ((config.with_(**dict.fromkeys(DROPPED, 0.0)), settings.seed), (config, settings.seed + 1)):
        model = door.load("torch").build(own, weights, Execution(dtype="float64"))
        model.start_training(settings)
        batches = Batches(data, settings.batch_size, seed=seed)
        assert np.abs(base - [model.train_step(*next(batches)).loss for _ in range(4)]).max() > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_curves_part_in_float32_no_faster_than_after_a_change_of_one_ulp(kind):
    """C5's rule and its control, on texts: eight runs whose weights were moved by one ulp, in the wings by turns."""
    runs = {wing: _run(wing, kind) for wing in ("torch", "jax")}
    moved = []
    for coin in range(trajectories.COINS):
        wing = ("jax", "torch")[coin % 2]
        moved.append(_run(wing, kind, trajectories.one_ulp(made(kind)[1], coin)).distance(runs[wing]))
    control = np.sqrt(np.mean(np.square(moved), axis=0))
    exact = trajectories.Run(curves("torch", kind, CONTROLLED)[2])
    ends = {"torch/jax": runs["torch"].distance(runs["jax"])[-1]}
    ends |= {f"{wing}/float64": run.distance(exact)[-1] for wing, run in runs.items()}
    inputs = {"control": control[-1], "coins": trajectories.COINS, "steps": CONTROLLED, "unit": ROUNDOFF["float32"]}
    row = Row("C5", kind, "on texts", "float32", "trajectory", ends, inputs)
    assert row.passed, row


def _run(wing, kind, weights=None):
    return trajectories.Run(curves(wing, kind, CONTROLLED, "float32", weights)[2])
