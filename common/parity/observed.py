"""What one model says about its case, quickest first, and whether that is what the case's vectors hold.

A planted bug is looked for here first: it costs no oracle, whose values are in the files, and C2 holds them equal to
what the oracle computes.
"""

import functools
from collections.abc import Iterator, Mapping

import numpy as np

from common import params, vectors
from common.backend import Model
from common.cases import Case
from common.compare import difference, rms
from common.config import TrainConfig
from common.parity import rows, steps
from common.parity.rows import Row
from common.parity.trial import Trial

NAME = "C2"
TIER = "float64"
HANDED_ON = {  # by tier, what `resumed` calls its rows
    TIER: ("resumed slots", "resumed"),
    "bfloat16": ("resumed slots, bfloat16", "resumed, bfloat16"),
}

Observation = tuple[str, np.ndarray]


def for_case(trial: Trial, judge: Model | None = None) -> Iterator[Row]:
    """A row for everything that the case's vectors hold, for all subjects together; a `judge` (an oracle that may err)
    takes the place of the vectors.
    """
    want, case = stored(trial.case.name), trial.case
    truth = {} if judge is None else {None: observations(judge, case)}
    made = truth | {name: observations(trial.build(name), case) for name in trial.names}
    for parts in zip(*made.values(), strict=True):
        what, found = parts[0][0], {name: value for name, (_, value) in zip(made, parts, strict=True)}
        yield row(case, what, found, found.pop(None, want[what]), scale(want))


def first_steps(trial: Trial, count: int) -> Iterator[Row]:
    """The losses of the first of C2's hundred steps, each against the oracle's loss at the subject's own weights."""
    settings, oracle, errors = steps.recipe(trial.case), trial.truth.model, {}
    for name in trial.names:
        model, got, want = trial.build(name), [], []
        model.start_training(settings)
        for step in range(count):
            weights, batch = model.weights(), steps.batch(trial.case, step)
            want.append(float(oracle.loss_of(weights, *batch, (settings.seed, step))))
            got.append(model.train_step(*batch).loss)
        errors[name] = difference("", np.array(got), np.array(want)).relative
    yield Row(NAME, trial.case.name, "train/losses", TIER, "float64", errors, size=count)


def resumed(trial: Trial, count: int, tier: str = TIER) -> Iterator[Row]:
    """A run of that many steps, against one that is handed over to a new model of the same kind on half of the way:
    nothing may be lost then, and nothing may come out otherwise, by the bit. `tier` is a key of HANDED_ON.
    """
    settings, lost, apart = steps.recipe(trial.case), {}, {}
    for name in trial.names:
        straight = _trained(trial.build(name, tier), trial.case, settings, 0, count)
        half = _trained(trial.build(name, tier), trial.case, settings, 0, count // 2)
        given = half.optimizer_slots()
        second = trial.build(name, tier, weights=half.weights())
        second.start_training(settings, given, count // 2)
        lost[name] = _unequal(second.optimizer_slots(), given)
        for step in range(count // 2, count):
            second.train_step(*steps.batch(trial.case, step))
        apart[name] = _unequal(second.weights(), straight.weights())
        apart[name] += _unequal(second.optimizer_slots(), straight.optimizer_slots())
    names = HANDED_ON[tier]
    yield rows.exact("C5", trial.case.name, names[0], lost, note="tensors changed on the way")
    yield rows.exact("C5", trial.case.name, names[1], apart, note="tensors that the change of hands has changed")


def _trained(model: Model, case: Case, settings: TrainConfig, start: int, end: int) -> Model:
    model.start_training(settings, step=start)
    for step in range(start, end):
        model.train_step(*steps.batch(case, step))
    return model


def _unequal(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> int:
    """How many tensors differ by the bit."""
    return sum(rows.unequal(got[name], want[name]) > 0 for name in want)


def observations(model: Model, case: Case) -> Iterator[Observation]:
    """(name, value) of what `common.vectors` stores of a case, under the names that it has there."""
    if case.path:
        output, gradients = model.component(case.path, *case.signals())
        yield "output", output
        yield from ((f"grad/{name}", value) for name, value in sorted(gradients.grads.items()))
        return
    ids, targets = case.tokens()
    yield "logits", model.forward(ids).logits[:, -vectors.STORED_POSITIONS :]
    if case.full_gradient:
        dropout = (case.seed, vectors.DROPOUT_STEP)
        if hasattr(model, "loss_of"):  # the oracle's gradient takes a pass for every number
            yield "loss", np.array(model.loss_of(model.params, ids, targets, dropout))
        gradients = model.gradients(ids, targets, dropout)
        if not hasattr(model, "loss_of"):
            yield "loss", np.array(gradients.value)
        yield from ((f"grad/{name}", value) for name, value in sorted(gradients.grads.items()))
    for number, sampling in enumerate(case.sampling):
        yield f"tokens/{number}", np.array(model.generate(case.prompts(), sampling), np.int32)
    if case.train_steps:
        model.start_training(case.train)
        results = [model.train_step(ids, targets) for _ in range(case.train_steps)]
        yield "train/losses", np.array([result.loss for result in results])
        yield "train/grad_norms", np.array([result.grad_norm for result in results])
        table = params.table(case.config)
        weights = model.weights()
        yield from ((f"train/weight/{name}", weights[name]) for name, p in table.items() if not p.dead)


def row(case: Case, what: str, got: Mapping[str, np.ndarray], want: np.ndarray, size: float) -> Row:
    """The row of one observation: tokens are equal or not, a dead gradient is small beside all gradients (`size`)."""
    name = f"vectors/{what}"
    if what.startswith("tokens/"):
        wrong = {wing: rows.unequal(value, want) for wing, value in got.items()}
        return rows.exact("C4", case.name, name, wrong, size=want.size)
    parameter = params.table(case.config).get(what.removeprefix("grad/"))
    if what.startswith("grad/") and parameter is not None and parameter.dead:
        errors = {wing: float(np.abs(value).max()) / size for wing, value in got.items()}
        return Row(NAME, case.name, name, TIER, "dead", errors, size=want.size)
    return rows.arrays(NAME, case.name, name, TIER, "float64", got, want)


@functools.cache
def stored(case: str) -> dict[str, np.ndarray]:
    """The expected values in a case's files."""
    from common.cases import CASES

    found = vectors.read(CASES[case], vectors.FOLDER)
    return {name.removeprefix("expected/"): value for name, value in found.items() if name.startswith("expected/")}


def scale(want: Mapping[str, np.ndarray]) -> float:
    """RMS over all elements of all stored gradients; 1 where there are none."""
    grads = [value.ravel() for name, value in want.items() if name.startswith("grad/")]
    return rms(np.concatenate(grads)) if grads else 1.0
