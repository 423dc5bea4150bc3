"""The matrices of one adapter, joined for a module that holds several linear maps, and taken apart again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FILES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")  # PEFT's names in files, without the adapter's


@dataclass(frozen=True)
class Low:
    """What an adapter gives a linear map: A [R, in], B [out, R], with DoRA magnitudes [out]."""

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None = None

    def tensors(self) -> dict[str, np.ndarray]:
        """By PEFT's names."""
        whole = zip(FILES, (self.a, self.b, self.magnitude), strict=True)
        return {name: array for name, array in whole if array is not None}


def joined(lows: Mapping[str, Low], paths: Sequence[str], rows: Mapping[str, int], norms) -> Low:
    """One adapter for maps that lie one behind the other, `paths` with so many `rows`, of which those in `lows` have
    one of their own. The others get zeros, and the magnitudes `norms(path)` that change nothing.

    Where all A's are equal to the bit the rank stays; else they are stacked, and the B's stand on the diagonal.
    """
    have = [path for path in paths if path in lows]
    first = lows[have[0]]
    rank, same = len(first.a), all(np.array_equal(first.a, lows[path].a) for path in have)
    a = first.a if same else np.concatenate([lows[path].a for path in have])
    b = np.zeros((sum(rows[path] for path in paths), len(a)), first.b.dtype)
    for path, start in zip(paths, _starts(paths, rows), strict=True):
        if path in lows:
            column = 0 if same else rank * have.index(path)
            b[start : start + rows[path], column : column + rank] = lows[path].b
    if first.magnitude is None:
        return Low(a, b)
    lengths = [lows[path].magnitude if path in lows else norms(path) for path in paths]
    return Low(a, b, np.concatenate(lengths).astype(first.magnitude.dtype))


def parted(low: Low, paths: Sequence[str], rows: Mapping[str, int]) -> dict[str, Low]:
    """One adapter for each of the maps: all share A."""
    found = {}
    for path, start in zip(paths, _starts(paths, rows), strict=True):
        own = slice(start, start + rows[path])
        found[path] = Low(low.a, low.b[own], None if low.magnitude is None else low.magnitude[own])
    return found


def unstacked(low: Low, paths: Sequence[str], rows: Mapping[str, int], have: Iterable[str], rank: int):
    """{path: adapter} of that rank for the maps in `have`, of which `joined` made this one; None where it did not."""
    have = [path for path in paths if path in set(have)]
    if not have or len(low.a) not in (rank, rank * len(have)):
        return None
    found, parts = {}, parted(low, paths, rows)
    for index, path in enumerate(have):
        start = rank * index if len(low.a) > rank else 0
        columns = slice(start, start + rank)
        found[path] = Low(low.a[columns], parts[path].b[:, columns], parts[path].magnitude)
    again = joined(found, paths, rows, lambda path: parts[path].magnitude)
    return found if np.array_equal(again.a, low.a) and np.array_equal(again.b, low.b) else None


def fitted(low: Low, rank: int, scale: float) -> Low:
    """The same adapter with zeros up to a rank, and B multiplied so that another scale has gone into it."""
    a, b, more = low.a, low.b, rank - len(low.a)
    if more:
        a = np.concatenate([a, np.zeros((more, a.shape[1]), a.dtype)])
        b = np.concatenate([b, np.zeros((len(b), more), b.dtype)], axis=1)
    return Low(a, b if scale == 1 else (np.asarray(b, np.float64) * scale).astype(b.dtype), low.magnitude)


def _starts(paths: Sequence[str], rows: Mapping[str, int]) -> list[int]:
    return [sum(rows[path] for path in paths[:at]) for at in range(len(paths))]
