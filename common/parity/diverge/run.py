"""The comparison: weights, named values, loss and gradients of both sides, row by row; the diagnosis of the first."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from common import backend as door
from common import params
from common.compare import UNIT_ROUNDOFF, difference, rms
from common.errors import unknown
from common.parity import noise, thresholds
from common.parity.diverge import diagnosis, hints, parts, replay
from common.parity.diverge.inputs import Subject
from common.parity.diverge.report import Report, Row
from common.parity.diverge.sides import Side

Tell = Callable[[str], None]
HIDDEN = -1e30  # scores below are masks: some add the least number of their type where others set -inf
SIDES = ("A", "B")


@dataclass(frozen=True)
class Settings:
    """How the sides are compared. `bound` replaces both derived bounds; `taps` are patterns of names to look at."""

    dtype: str = "float64"
    device: str = "cpu"
    bound: float | None = None
    gradients: bool = False
    taps: tuple[str, ...] = ("*",)
    judge: bool = True

    def bound_of(self, rule: str, depth: int) -> float:
        """The bound of a named value, `depth` values from the start."""
        if self.bound is not None:
            return self.bound
        return thresholds.bounds(rule, {"": 0.0}, {"unit": UNIT_ROUNDOFF[self.dtype], "depth": depth})[""]


@dataclass(frozen=True)
class Found:
    """What one side gave: its named values by name, and afterwards what the oracle makes of them (`replayed`)."""

    values: dict[str, np.ndarray]
    replayed: Mapping[str, np.ndarray] | None = None


def diverge(a: Side, b: Side, subject: Subject, settings: Settings, tell: Tell = lambda what: None) -> Report:
    """Compare two sides on one subject. Raises UserError where a side cannot be built, run, or has no common names."""
    models, executions, notes = {}, {}, []
    for label, side in zip(SIDES, (a, b), strict=True):
        tell(f"Building {label}: {side.label}")
        executions[label] = side.execution(settings.dtype, settings.device)
        if executions[label].dtype != settings.dtype:
            notes.append(f"{label} ({side.label}) computes in {executions[label].dtype}.")
        models[label] = side.build(subject.config, subject.weights, executions[label])
    sides = dict(zip(SIDES, (a, b), strict=True))
    small = subject.size <= replay.LARGEST
    rows = _weights(sides, models, subject, settings) if small else []
    found = {}
    for label, side in sides.items():
        tell(f"Running {label}: {side.label}")
        with side.asked("forward"):
            found[label] = Found(_values(models[label], subject))
    judge = None
    if settings.judge and small:
        tell("Asking the oracle, step by step")
        judge = replay.oracle(subject)
        found = {s: replace(f, replayed=replay.replay(judge, subject, f.values)) for s, f in found.items()}
    elif settings.judge:
        notes.append(f"The oracle was not asked: it takes models of up to {replay.LARGEST:,} parameters.")
    forward = _forward(found, subject, settings, notes)
    rows += forward
    grads = {}
    if settings.gradients:
        tell("Differentiating both")
        for label, side in sides.items():
            with side.asked("gradients"):
                grads[label] = _differentiated(models[label], subject)
        control = _control(sides, grads, subject, settings, tell)
        rows += _gradients(grads, subject, settings, len(forward), control)
    report = Report(
        {
            s: {"name": side.label, "title": side.title, "execution": executions[s].to_dict()}
            for s, side in sides.items()
        },
        _about(subject, settings),
        tuple(rows),
        None,
        tuple(notes),
    )
    return replace(report, diagnosis=diagnosis.diagnose(report, found, models, grads, judge, subject))


def _differentiated(model: Any, subject: Subject) -> door.Gradients:
    """Loss and gradients; None, which PyTorch has where nothing leads to the loss, is zero."""
    found, table = model.gradients(subject.ids, subject.targets), params.table(subject.config)
    grads = {n: np.zeros(table[n].shape) if g is None else np.asarray(g) for n, g in found.grads.items() if n in table}
    return door.Gradients(float(found.value), grads)


def _values(model: Any, subject: Subject) -> dict[str, np.ndarray]:
    placed = {} if subject.positions is None else {"positions": subject.positions}
    forward = model.forward(subject.ids, taps=("*",), **placed)
    values = {name: np.asarray(value) for name, value in forward.taps.items()}
    values.setdefault("logits", np.asarray(forward.logits))
    for name, value in values.items():
        if name.endswith(".scores"):
            values[name] = np.where(value < HIDDEN, -np.inf, value)
    return values


def _weights(sides: Mapping[str, Side], models: Mapping[str, Any], subject: Subject, settings: Settings) -> list[Row]:
    """The parameters that the sides hold; only those that differ get a row, or one row that says how many agree."""
    held = {}
    for label, side in sides.items():
        if not hasattr(models[label], "weights"):
            return []
        with side.asked("weights"):
            held[label] = models[label].weights()
    bound = 4 * UNIT_ROUNDOFF["bfloat16"] if settings.dtype == "bfloat16" else UNIT_ROUNDOFF["float32"]
    rows = []
    for name in params.table(subject.config):
        if all(name in own for own in held.values()):
            one, other = held["A"][name], held["B"][name]
            rows.append(_row("weights", name, one, other, bound))
    wrong = [row for row in rows if row.parts]
    if wrong:
        name = wrong[0].name
        seen = hints.hints(held["A"][name], held["B"][name], parts.axes(name, len(wrong[0].shape)), bound)
        return [replace(wrong[0], note=wrong[0].note or next(seen, "")), *wrong[1:]]
    if not rows:
        return []
    return [Row("weights", f"{len(rows)} parameters", (), max(row.gap for row in rows), bound)]


def _forward(found: Mapping[str, Found], subject: Subject, settings: Settings, notes: list[str]) -> list[Row]:
    a, b = (found[side].values for side in SIDES)
    known = replay.order(subject.config)
    names = [*(n for n in known if n in a and n in b), *(n for n in a if n in b and n not in known)]
    for side, own, other in (("A", a, b), ("B", b, a)):
        lonely = [n for n in own if n not in other]
        if lonely:
            ends = sorted({parts.in_layer(n) for n in lonely})
            notes.append(f"Only {side} shows {', '.join(ends[:6])}{', …' if len(ends) > 6 else ''}: not compared.")
    rows: list[Row] = []
    for depth, name in enumerate(names, 1):
        if not any(
            fnmatchcase(name, pattern) or fnmatchcase(parts.in_layer(name), pattern) for pattern in settings.taps
        ):
            continue
        keep = subject.read(parts.axes(name, a[name].ndim))
        row = _row("forward", name, a[name], b[name], settings.bound_of("diverge gap", depth), keep)
        own = {}
        for side, one in found.items():
            if one.replayed is not None and name in one.replayed:
                own[side] = _gap(name, one.values[name], one.replayed[name], keep)[0]
        before = rows[-1].gap if rows else None
        growth = row.gap / before if before and math.isfinite(row.gap) and math.isfinite(before) else None
        rows.append(replace(row, own=own, own_bound=settings.bound_of("diverge own", 1), growth=growth))
    if not rows:
        raise unknown("name in --taps", " ".join(settings.taps), [*names, *map(parts.in_layer, names[1:12])])
    return rows


def _control(
    sides: Mapping[str, Side], grads: Mapping[str, Any], subject: Subject, settings: Settings, tell: Tell
) -> dict[str, float]:
    """How far the gradients of one program move in float64 if each weight moves by one rounding: the conditioning of
    every tensor. Empty in float64, where the bound has room enough, and where no side takes weights.
    """
    able = [side for side in sides.values() if side.weights is None and side.backend is not door.load("numpy")]
    if settings.dtype == "float64" or settings.bound is not None or not able:
        return {}
    side = min(able, key=lambda one: one.own)  # rather an installed one than a user's
    tell(f"Moving the weights of {side.label} by one rounding")
    moved = noise.nudged(subject.weights, UNIT_ROUNDOFF[settings.dtype], 0)
    pair = []
    for weights in (subject.weights, moved):
        model = side.build(subject.config, weights, side.execution("float64", settings.device))
        with side.asked("gradients"):
            pair.append(_differentiated(model, subject).grads)
    return {name: difference(name, pair[1][name], value).relative for name, value in pair[0].items()}


def _gradients(
    grads: Mapping[str, Any], subject: Subject, settings: Settings, depth: int, control: Mapping[str, float]
) -> list[Row]:
    """The loss, then the gradients from the loss backwards. A gradient that is zero in theory is judged by its size."""
    a, b = grads["A"], grads["B"]
    least = settings.bound_of("diverge gap", 2 * depth)
    values = np.float64(a.value), np.float64(b.value)
    rows = [_row("loss", "loss", *values, settings.bound_of("diverge gap", depth))]
    whole = max(rms(np.concatenate([np.ravel(g) for g in side.grads.values()])) for side in (a, b))
    for name, parameter in reversed(params.table(subject.config).items()):
        bound = least
        if name in control and not parameter.dead:  # each side may be that far from float64
            about = {"control": control[name], "sums": UNIT_ROUNDOFF["float32"]}
            bound = max(least, 2 * thresholds.bounds("gradients", {"": 0.0}, about)[""])
        if name not in a.grads or name not in b.grads:
            holder = "A" if name in a.grads else "B"
            rows.append(
                Row("gradient", name, parameter.shape, math.inf, bound, note=f"only {holder} has this gradient")
            )
        elif parameter.dead:
            size = max(rms(side.grads[name]) for side in (a, b)) / whole if whole else 0.0
            note = "zero in theory: its size as a share of all gradients"
            rows.append(Row("gradient", name, parameter.shape, size, bound, note=note))
        else:
            rows.append(_row("gradient", name, a.grads[name], b.grads[name], bound))
    return rows


def _gap(name: str, one: np.ndarray, other: np.ndarray, keep: np.ndarray | None) -> tuple[float, tuple | None, str]:
    """(relative RMS difference, worst index, what is wrong with shape or places of NaN and infinity)."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if keep is not None and one.shape == other.shape:
        one, other = np.where(keep, one, 0.0), np.where(keep, other, 0.0)
    try:
        row = difference(name, one, other)
    except ValueError as fault:
        if one.shape != other.shape:
            return math.inf, None, f"shape {list(one.shape)} against {list(other.shape)}"
        odd = np.argwhere(
            ~((one == other) | (np.isnan(one) & np.isnan(other)) | (np.isfinite(one) & np.isfinite(other)))
        )
        where = tuple(int(i) for i in odd[0]) if len(odd) else None
        return math.inf, where, str(fault).partition(": ")[2]
    return row.relative, row.where, ""


def _row(
    stage: str, name: str, one: np.ndarray, other: np.ndarray, bound: float, keep: np.ndarray | None = None
) -> Row:
    gap, where, note = _gap(name, one, other, keep)
    at, values = "", None
    if where is not None and gap > 0:
        letters = parts.axes(name, np.ndim(one))
        at = parts.index(letters, where)
        values = float(np.asarray(one)[where]), float(np.asarray(other)[where])
    return Row(stage, name, tuple(np.shape(one)), gap, bound, at=at, values=values, note=note)


def _about(subject: Subject, settings: Settings) -> dict[str, Any]:
    return {
        "model": subject.config.to_dict(),
        "parameters": subject.size,
        "weights": subject.source,
        "ids": subject.ids.tolist(),
        "positions": None if subject.positions is None else subject.positions.tolist(),
        "input": subject.text,
        "dtype": settings.dtype,
        "bound": settings.bound_of("diverge gap", 1),
        "why": "given" if settings.bound is not None else thresholds.RULES["diverge gap"].why,
    }
