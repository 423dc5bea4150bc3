"""Rows of unequal length as rectangles: what labelled texts, instructions and preference pairs have in common."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from common.backend import IGNORED
from common.errors import UserError

Rows = Sequence[np.ndarray]


def fingerprint(*columns: Iterable[np.ndarray]) -> str:
    """The SHA-256 of columns of rows of whole numbers; where one row ends and the next begins is part of it."""
    sha256 = hashlib.sha256()
    for column in columns:
        for row in column:
            sha256.update(np.int64(len(row)).astype("<i8").tobytes() + np.asarray(row).astype("<i4").tobytes())
        sha256.update(b"|")
    return sha256.hexdigest()


def padded(rows: Rows, width: int, fill: int) -> np.ndarray:
    """Rows [n, width] int32, filled up on the right; what is longer is cut."""
    made = np.full((len(rows), width), fill, np.int32)
    for place, row in zip(made, rows, strict=True):
        place[: len(row)] = row[:width]
    return made


def rounded(longest: int, multiple: int, most: int | None = None) -> int:
    """The width of a batch: its longest row rounded up to a multiple, but not beyond `most`."""
    width = -(-longest // multiple) * multiple
    return width if most is None else min(width, most)


def shifted(
    ids: np.ndarray, end_id: int, uncounted: int, length: int | None, *, end_counts: bool = True
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(tokens, targets, whether any target was cut off) of one sequence that ends with `end_id`.

    The tokens are `ids` and the end, at most length + 1 of them. Target i is token i + 1; the first `uncounted` tokens
    are nobody's target, and the end is one if `end_counts`.
    """
    tokens = np.append(ids, end_id).astype(np.int32)
    targets = tokens[1:].copy()
    targets[: max(0, uncounted - 1)] = IGNORED
    if not end_counts:
        targets[len(ids) - 1 :] = IGNORED
    if length is None:
        return tokens, targets, False
    return tokens[: length + 1], targets[:length], bool((targets[length:] != IGNORED).any())


def collated(
    tokens: Rows, targets: Rows, chosen: np.ndarray, pad_id: int, multiple: int = 1, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) int32 [..., T] of rows made by `shifted`: all tokens but the last, padded, and what follows
    each of them."""
    rows = [tokens[i] for i in chosen.ravel()]
    width = rounded(max(map(len, rows)) - 1, multiple, length)
    inputs = padded(rows, width + 1, pad_id)[:, :-1]
    learnt = padded([targets[i] for i in chosen.ravel()], width, IGNORED)
    return inputs.reshape(*chosen.shape, width), learnt.reshape(*chosen.shape, width)


def check_sizes(**sizes: int | None) -> None:
    """Each is a whole number > 0, or None."""
    for name, value in sizes.items():
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and not (whole and value > 0):
            raise UserError(f"{name} is {value!r}; allowed is a whole number > 0.")
