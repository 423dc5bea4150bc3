"""Elementwise functions in float32: errors in units in the last place (ulps) of the truth, peak and 99th percentile."""

from collections.abc import Iterator

import numpy as np

from common import backend as door
from common.parity.rows import Exhibit, Row
from common.parity.thresholds import ULPS
from common.parity.trial import Session

POINTS = 2**16 + 1
GRIDS = {  # where each function is neither constant nor out of range: ("linear" or powers of two, from, to)
    "exp": ("linear", -80.0, 80.0),
    "log": ("powers", -100.0, 100.0),
    "tanh": ("linear", -10.0, 10.0),
    "erf": ("linear", -4.0, 4.0),
    "rsqrt": ("powers", -100.0, 100.0),
    "gelu_tanh": ("linear", -10.0, 10.0),
    "gelu": ("linear", -10.0, 10.0),
}
CANCELS = 0.0  # left of it 1 + erf(x) is a difference of like numbers, so GELU is measured in ulps of its input
PARTS = ("peak", "p99")


def grid(name: str) -> np.ndarray:
    """float32 points; a function without a grid of its own is tried on [-10, 10]."""
    kind, low, high = GRIDS.get(name, ("linear", -10.0, 10.0))
    points = np.linspace(low, high, POINTS)
    return (2.0**points if kind == "powers" else points).astype(np.float32)


def errors(name: str, x: np.ndarray, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Distances in ulps of the true value, or of the input where the function cancels; infinite for NaN."""
    size = np.where(x < CANCELS, np.abs(x), np.abs(want)) if name.startswith("gelu") else np.abs(want)
    unit = np.spacing(size.astype(np.float32)).astype(np.float64)
    gap = np.abs(np.asarray(got, np.float64) - want) / unit
    return np.where(np.isfinite(gap), gap, np.inf)


def rows_of(claim: str, session: Session) -> Iterator[Row | Exhibit]:
    """Two rows for every function, and a table of all."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in door.ELEMENTWISE:
        x = grid(name)
        want = door.load("numpy").elementwise(name, x, "float64")
        table[name], places = {}, []
        for wing, backend in session.subjects.items():
            gaps = errors(name, x, backend.elementwise(name, x, "float32"), want)
            table[name][wing] = {"peak": float(gaps.max()), "p99": float(np.quantile(gaps, 0.99, method="higher"))}
            places.append(f"{wing} x = {float(x[gaps.argmax()]):.6g}")
        for part in PARTS:
            found = {wing: own[part] for wing, own in table[name].items()}
            inputs = {"measured": ULPS[part][name]}
            yield Row(
                claim, "", f"{name} {part}", "float32", "ulps", found, inputs, size=x.size, where="; ".join(places)
            )
    yield Exhibit("ulps", table)


def declared() -> set[tuple[str, str]]:
    """The rows that `rows_of` must yield."""
    return {(f"{name} {part}", "float32") for name in door.ELEMENTWISE for part in PARTS}
