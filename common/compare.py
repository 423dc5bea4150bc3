"""Error measures: how far two arrays, or two sets of named arrays, are apart."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Difference:
    """One comparison. `relative` is RMS(got - want) / RMS(want); `largest` the greatest absolute difference."""

    name: str
    size: int
    relative: float
    largest: float
    where: tuple[int, ...]

    def to_dict(self) -> dict:
        return {**self.__dict__, "where": list(self.where)}


def rms(x: np.ndarray) -> float:
    """Root mean square, in float64; 0 for an empty array."""
    return float(np.sqrt(np.mean(np.square(np.abs(x), dtype=np.float64)))) if np.size(x) else 0.0


def difference(name: str, got: np.ndarray, want: np.ndarray) -> Difference:
    """Compare `got` with `want`. Shapes and the places of NaN and infinity must be equal, otherwise ValueError."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        raise ValueError(f"{name}: shape {got.shape} is not {want.shape}")
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(np.where(finite, 0, got), np.where(finite, 0, want), equal_nan=True):
        raise ValueError(f"{name}: NaN or infinity in other places")
    if not np.isfinite(got[finite]).all():
        raise ValueError(f"{name}: NaN or infinity where numbers are expected")
    gap = np.where(finite, got, 0.0) - np.where(finite, want, 0.0)
    where = np.unravel_index(int(np.argmax(np.abs(gap))), gap.shape) if gap.size else ()
    reference = rms(want[finite])
    error = rms(gap[finite])
    relative = error / reference if reference > 0 else (0.0 if error == 0 else float("inf"))
    return Difference(name, gap.size, relative, float(np.abs(gap).max(initial=0.0)), tuple(int(i) for i in where))


def differences(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> list[Difference]:
    """Compare two sets of named arrays; the names must be equal, otherwise ValueError."""
    if set(got) != set(want):
        raise ValueError(f"names differ: {sorted(set(got) ^ set(want))}")
    return [difference(name, got[name], want[name]) for name in want]


def worst(rows: list[Difference]) -> Difference:
    """The row with the largest relative error."""
    return max(rows, key=lambda row: row.relative)


def ulps(got: np.ndarray, want: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Distance from `want` in units in the last place of `want` rounded to `dtype`."""
    want64 = np.asarray(want, np.float64)
    return np.abs(np.asarray(got, np.float64) - want64) / np.spacing(np.abs(want64).astype(dtype)).astype(np.float64)


def nats(got_logits: np.ndarray, want_logits: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence KL(want || got) per position, in nats. Logits [..., V] -> [...]."""

    def log_softmax(x):
        x = np.asarray(x, np.float64)
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    got, want = log_softmax(got_logits), log_softmax(want_logits)
    return (np.exp(want) * (want - got)).sum(-1)


def top1_agreement(got_logits: np.ndarray, want_logits: np.ndarray) -> float:
    """Share of positions at which both choose the same token. Logits [..., V]."""
    return float(np.mean(np.argmax(got_logits, -1) == np.argmax(want_logits, -1)))


def first_divergent(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], bound: float) -> Difference | None:
    """The first array, in the order of `want`, whose relative error exceeds `bound`."""
    for name, value in want.items():
        row = difference(name, got[name], value)
        if not row.relative <= bound:
            return row
    return None
