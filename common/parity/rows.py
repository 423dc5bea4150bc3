"""A row of the certificate: one comparison, its errors, and the verdict that follows from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.compare import difference
from common.parity import thresholds
from common.parity.evidence import project


@dataclass(frozen=True)
class Row:
    """How far each implementation is off in one quantity, and by which rule that is judged.

    `errors` has an entry for every implementation ("torch": its distance from the oracle) and for every pair of them
    ("torch/jax"). `inputs` are the other numbers that the rule needs. `where` is the place of the worst element.
    `evidence` holds projections of what an implementation computed (`evidence.py`), where vectors know the truth.
    `tier` is a precision ("float64", "float32", "bfloat16", "tf32") or "exact".
    """

    claim: str
    case: str
    what: str
    tier: str
    rule: str
    errors: Mapping[str, float]
    inputs: Mapping[str, float] = field(default_factory=dict)
    size: int = 1
    where: str = ""
    note: str = ""
    evidence: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def bounds(self) -> dict[str, float]:
        return thresholds.bounds(self.rule, self.errors, self.inputs)

    @property
    def passed(self) -> bool:
        """No error above its bound; a NaN is above everything, and a row without errors proves nothing."""
        allowed = self.bounds
        return bool(self.errors) and all(error <= allowed[name] for name, error in self.errors.items())

    @property
    def used(self) -> float:
        """The largest share of a bound that is used; above 1 the row fails, NaN counts as infinity."""
        return max((share(error, self.bounds[name]) for name, error in self.errors.items()), default=math.inf)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.claim, self.case, self.what, self.tier

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with what follows from it: bounds and verdict."""
        own = {name: getattr(self, name) for name in ("claim", "case", "what", "tier", "rule")}
        own |= {"errors": _plain(self.errors), "bounds": _plain(self.bounds), "inputs": _plain(self.inputs)}
        own |= {"size": self.size, "where": self.where, "note": self.note, "passed": self.passed}
        return own | ({"evidence": dict(self.evidence)} if self.evidence else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """The inverse of `to_dict`, without what follows."""
        own = {name: values[name] for name in ("claim", "case", "what", "tier", "rule", "size", "where", "note")}
        numbers = {part: {n: float(v) for n, v in values[part].items()} for part in ("errors", "inputs")}
        return cls(**own, **numbers, evidence=values.get("evidence", {}))


def share(error: float, bound: float) -> float:
    """How much of a bound an error uses; 0 of 0 is nothing."""
    if math.isnan(error):
        return math.inf
    return error / bound if bound > 0 else (0.0 if error <= 0 else math.inf)


def _plain(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """JSON knows no infinity: such numbers are written as text, which float() reads again."""
    return {name: float(v) if math.isfinite(v) else str(float(v)) for name, v in numbers.items()}


def exact(claim: str, case: str, what: str, wrong: Mapping[str, int | bool], *, size: int = 1, note: str = "") -> Row:
    """A row of things that are equal or not: `wrong` counts, by implementation, those that are not."""
    return Row(claim, case, what, "exact", "exact", {k: float(v) for k, v in wrong.items()}, size=size, note=note)


def unequal(got: Any, want: Any) -> int:
    """How many elements differ by the bit (shape, dtype or NaN included); all of them if the shapes differ."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return max(1, want.size)
    return int((np.ascontiguousarray(got).view(np.uint8) != np.ascontiguousarray(want).view(np.uint8)).sum())


def differing(got: Mapping[str, Any], want: Mapping[str, Any]) -> int:
    """Bytes that differ in arrays of the same name, and names on one side only."""
    common = set(got) & set(want)
    return len(set(got) ^ set(want)) + sum(unequal(got[name], want[name]) for name in common)


def arrays(
    claim: str,
    case: str,
    what: str,
    tier: str,
    rule: str,
    got: Mapping[str, Any],
    want: Any = None,
    inputs: Mapping[str, float] | None = None,
    pairs: bool = True,
    note: str = "",
    witnessed: bool = False,
) -> Row:
    """Relative RMS errors of every implementation against the oracle (`want`), and of every pair.

    Missing or misplaced numbers (shape, NaN, infinity) are an infinite error, and the note says what is wrong.
    `witnessed` keeps evidence of what every implementation computed.
    """
    errors: dict[str, float] = {}
    worst, where, faults = -1.0, "", [note] if note else []
    compared = {name: (value, want) for name, value in got.items()} if want is not None else {}
    if pairs:
        names = list(got)
        compared |= {f"{a}/{b}": (got[a], got[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
    for name, (one, other) in compared.items():
        try:
            row = difference(name, one, other)
        except ValueError as fault:
            errors[name], where = math.inf, name
            faults.append(str(fault))
            continue
        errors[name] = row.relative
        if row.relative > worst:
            worst, where = row.relative, f"{name} {list(row.where)}" if row.where else name
    size = int(np.size(want if want is not None else next(iter(got.values()))))
    kept = {name: project(value) for name, value in got.items()} if witnessed else {}
    return Row(claim, case, what, tier, rule, errors, dict(inputs or {}), size, where, "; ".join(faults), kept)


@dataclass(frozen=True)
class Exhibit:
    """Something to look at that a claim produced beside its rows: curves, a matrix, a list. `data` is plain data."""

    name: str
    data: Any
