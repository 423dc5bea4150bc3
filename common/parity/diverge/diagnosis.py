"""Why the first row parts: what goes in, whom the oracle contradicts, which code, and what the error looks like."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from common import params
from common.oracle.gradient import slope
from common.parity.diverge import backward, hints, mistakes, parts
from common.parity.diverge.inputs import Subject
from common.parity.diverge.report import Diagnosis, Report, Row

SHOWN = 3  # hints


def diagnose(
    report: Report,
    found: Mapping[str, Any],
    models: Mapping[str, Any],
    grads: Mapping[str, Any],
    judge: Any,
    subject: Subject,
) -> Diagnosis | None:
    """The diagnosis of the first row that parts; of rows that agree, only that both err in the same way, if they do."""
    first = report.first
    if first is None:
        both = [row for row in report.rows if row.off]
        return _shared(both) if both else None
    if first.stage == "weights":
        return Diagnosis("", "", "how the weights are loaded: the sides do not hold the same", _weights(first))
    if first.stage == "forward":
        return _forward(report, first, found, subject)
    return _gradient(report, first, found, models, grads, judge, subject)


def _shared(rows: list[Row]) -> Diagnosis:
    """The sides agree, and the oracle does not."""
    row, size = rows[0], max(rows[0].own.values())
    text = f"The oracle makes {row.name} otherwise than {' and '.join(row.off)} (own error {size:.1e})"
    return Diagnosis("", text + (": they agree and may be wrong together" if len(row.off) > 1 else ""), "", ())


def _weights(row: Row) -> tuple[str, ...]:
    return (row.note,) if row.note else ()


def _forward(report: Report, first: Row, found: Mapping[str, Any], subject: Subject) -> Diagnosis:
    before = [row for row in report.rows if row.stage == "forward"]
    before = before[: before.index(first)]
    part = parts.PARTS.get(parts.key(first.name))
    made = part.made_by if part else first.name.rpartition(".")[0] or first.name
    reads = part.reads if part else "what comes before"
    worst = max((row.gap for row in before), default=0.0)
    into = f"{reads} agree" if before else "nothing is compared before it"
    into += f" (all {len(before)} values before: {f'within {worst:.1e}' if worst else 'equal'})" if before else ""
    if not first.own:
        judged, side = "", "A"
    elif not first.off:
        judged, side = (
            (
                "neither side errs by itself here: the difference was already there and grew; --dtype float64 tells"
                " whether it is rounding"
            ),
            None,
        )
    else:
        side = max(first.off, key=lambda s: first.own[s])
        other = "B" if side == "A" else "A"
        judged = f"{side} is off: from its own {_short(reads)} the oracle gets another value ({_size(first.own[side])})"
        if other in first.off:
            judged += f"; so is {other} ({_size(first.own[other])})"
        elif other in first.own:
            judged += f"; from {other}'s it gets what {other} has ({_size(first.own[other])})"
    said = () if side is None else _clues(first, found, side, subject, report.subject["dtype"])
    return Diagnosis(into, judged, made, said, _also(report, first))


def _short(reads: str) -> str:
    return "inputs" if len(reads) > 30 else reads.removeprefix("the ")


def _size(error: float) -> str:
    return "another shape, or NaN elsewhere" if math.isinf(error) else f"own error {error:.1e}" if error else "no error"


def _clues(row: Row, found: Mapping[str, Any], side: str, subject: Subject, dtype: str) -> tuple[str, ...]:
    """Known mistakes that give exactly the wrong value; without one, what the error looks like."""
    one, other = found[side], found["B" if side == "A" else "A"]
    got = np.asarray(one.values[row.name], np.float64)
    want = other.values[row.name] if one.replayed is None else one.replayed[row.name]
    error, bound = hints.relative(got, want), row.own_bound if row.own else row.bound
    enough = bound if math.isinf(error) else max(bound, hints.SAME * error)
    if one.replayed is not None:
        known = mistakes.Step(row.name, got, {**one.replayed, **_alike(one)}, subject)
        for what, value in mistakes.guesses(known):
            if hints.relative(_read(got, row, subject), _read(value, row, subject)) <= enough:
                return (f"exactly what comes out if {what}" if error else what,)
    letters = parts.axes(row.name, got.ndim)
    return tuple(list(hints.hints(_read(got, row, subject), _read(want, row, subject), letters, bound, dtype))[:SHOWN])


def _alike(one: Any) -> dict[str, np.ndarray]:
    """The side's values that have the shape they should."""
    return {n: v for n, v in one.values.items() if n in one.replayed and v.shape == one.replayed[n].shape}


def _read(value: np.ndarray, row: Row, subject: Subject) -> np.ndarray:
    """The value with zeros at padded positions, which nobody reads."""
    keep = subject.read(parts.axes(row.name, np.ndim(value))) if np.shape(value) == row.shape else None
    value = np.asarray(value, np.float64)
    return value if keep is None else np.where(keep, value, 0.0)


def _also(report: Report, first: Row) -> str:
    """Later values at which a side errs by itself, the same in all layers told once."""
    later = [row for row in report.rows if row.off and row is not first]
    layers: dict[str, list[str]] = {}
    for row in later:
        number = parts.layer(row.name)
        layers.setdefault(parts.in_layer(row.name), []).append("" if number is None else str(number))
    said = []
    for name, numbers in layers.items():
        many = [n for n in numbers if n]
        where = f" in layer{'s' if len(many) > 1 else ''} {_list(many)}" if many else ""
        said.append(f"{name}{where}")
    return "; ".join(said[:4]) + ("; …" if len(said) > 4 else "")


def _list(numbers: list[str]) -> str:
    whole = [int(n) for n in numbers]
    if len(whole) > 2 and whole == list(range(whole[0], whole[-1] + 1)):
        return f"{whole[0]} to {whole[-1]}"
    return ", ".join(numbers[:6]) + (", …" if len(numbers) > 6 else "")


def _gradient(
    report: Report,
    first: Row,
    found: Mapping[str, Any],
    models: Mapping[str, Any],
    grads: Mapping[str, Any],
    judge: Any,
    subject: Subject,
) -> Diagnosis:
    rows = [row for row in report.rows if row.stage in ("loss", "gradient")]
    agreed = rows[: rows.index(first)]
    if first.stage == "loss":
        text, side = "the logits agree", "A"
        judged = ""
        if judge is not None:
            true = judge.loss(subject.ids, subject.targets)
            side = max(("A", "B"), key=lambda s: abs(grads[s].value - true))
            judged = f"{side} is off: the oracle's loss is {true:.9g}"
        clues = tuple(backward.loss_mistakes(grads[side].value, found[side].values["logits"], subject.targets))
        return Diagnosis(text, judged, "the loss: which targets count, and by what their sum is divided", clues)
    into = f"the forward pass and the loss agree, and so do the gradients nearer to the loss ({len(agreed) - 1})"
    side, judged = _slopes(first, grads, judge, subject)
    other = "B" if side == "A" else "A"
    names = [row.name for row in rows[1 : rows.index(first) + 1]]
    component = backward.first_component(models, subject, names, first.bound)
    where = f"the backward pass from {names[-2] if len(names) > 1 else 'the loss'} back to {first.name}"
    if component is not None:
        where = f"the backward pass of {component}: it differs by itself, on equal inputs"
    if first.note or first.name not in grads[side].grads or first.name not in grads[other].grads:
        return Diagnosis(into, judged, where, (first.note,) if first.note else ())
    got, want = grads[side].grads[first.name], grads[other].grads[first.name]
    clues = [*backward.gradient_mistakes(first.name, got, want, subject)]
    clues += hints.hints(got, want, parts.axes(first.name, got.ndim), first.bound, report.subject["dtype"])
    return Diagnosis(into, judged, where, tuple(clues[:SHOWN]))


def _slopes(first: Row, grads: Mapping[str, Any], judge: Any, subject: Subject) -> tuple[str, str]:
    """Which side the oracle's complex step contradicts: <gradient, v> against the slope along a random v."""
    usable = [s for s in ("A", "B") if first.name in grads[s].grads]
    if judge is None or len(usable) < 2:
        return "A", ""
    v = params.draw(0, f"diverge/{first.name}", first.shape)
    true = float(slope(lambda p: judge.loss_of(p, subject.ids, subject.targets), judge.params, {first.name: v}))
    sizes = {s: float(np.linalg.norm(np.asarray(grads[s].grads[first.name], np.float64))) for s in usable}
    whole = max(sizes.values()) or 1.0
    errors = {s: abs(float(np.vdot(grads[s].grads[first.name], v)) - true) / whole for s in usable}
    side = max(errors, key=lambda s: errors[s])
    other = "B" if side == "A" else "A"
    return (
        side,
        f"{side} is off: the oracle's slope contradicts it by {errors[side]:.1e}, {other} by {errors[other]:.1e}",
    )
