"""What a comparison found, as plain data that the terminal table and the JSON are made from."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "parallax-diverge/1"
STAGES = ("weights", "forward", "loss", "gradient")


@dataclass(frozen=True)
class Row:
    """One named array. `gap` is the relative RMS difference between the sides, `growth` its ratio to the row before.

    `own` is each side's own error by side ("A", "B"): its value against what the oracle makes from that side's values
    before; empty where the oracle was not asked. `at` is the worst index with axis letters, `values` what stands there.
    """

    stage: str
    name: str
    shape: tuple[int, ...]
    gap: float
    bound: float
    growth: float | None = None
    own: Mapping[str, float] = field(default_factory=dict)
    own_bound: float = math.inf
    at: str = ""
    values: tuple[float, float] | None = None
    note: str = ""

    @property
    def parts(self) -> bool:
        """Whether the sides are further apart than the bound."""
        return not self.gap <= self.bound

    @property
    def off(self) -> list[str]:
        """The sides whose own error is beyond its bound."""
        return [side for side, error in self.own.items() if not error <= self.own_bound]


@dataclass(frozen=True)
class Diagnosis:
    """Why the first row parts, in sentences: what goes in, who is off, which code, what the error looks like."""

    before: str
    judged: str
    where: str
    hints: tuple[str, ...]
    also: str = ""


@dataclass(frozen=True)
class Report:
    """All rows in order, the first that parts with its diagnosis, and what was compared."""

    sides: Mapping[str, Mapping[str, Any]]
    subject: Mapping[str, Any]
    rows: tuple[Row, ...]
    diagnosis: Diagnosis | None
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Row | None:
        """The first row that leaves its bound."""
        return next((row for row in self.rows if row.parts), None)

    @property
    def agree(self) -> bool:
        return self.first is None

    def mark(self, row: Row) -> str:
        """ "PARTS" for the first; later "off" where a side errs by itself, "follows" where it inherits; or "ok"."""
        if row is self.first:
            return "PARTS"
        if row.off:
            return "off"
        return "after" if row.parts else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite error (other shape, NaN in other places) is null and has a note."""
        rows = [{**asdict(row), "shape": list(row.shape), "mark": self.mark(row)} for row in self.rows]
        first = self.first
        found = {
            "schema": SCHEMA,
            "agree": self.agree,
            "first": None if first is None else first.name,
            "diagnosis": None if self.diagnosis is None else asdict(self.diagnosis),
            "sides": {side: dict(about) for side, about in self.sides.items()},
            "subject": dict(self.subject),
            "rows": rows,
            "notes": list(self.notes),
        }
        return _finite(found)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
