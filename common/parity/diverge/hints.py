"""What the shape of an error says about its cause, for any array: a scale, an offset, a layout, a place, a precision.

`got` is the wrong array, `want` the right one. Every hint is checked against all elements before it is given.
"""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from common.compare import difference, rms

SAME = 1e-3  # a hint must explain all but this share of the error
FEW = 200_000_000  # elements times tries: beyond, layouts are not searched


def hints(got: np.ndarray, want: np.ndarray, letters: str, bound: float, dtype: str = "") -> Iterator[str]:
    """Sentences about the error of `got`, the most telling first."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        yield from _shapes(got, want, letters)
        return
    yield from _broken(got, want, letters)
    hidden = np.isinf(got) | np.isinf(want) | np.isnan(got) | np.isnan(want)
    yield from _hidden(got, want, letters)
    got, want = np.where(hidden, 0.0, got), np.where(hidden, 0.0, want)
    error = relative(got, want)
    if not error > bound:
        return
    if not got.any():
        yield "it is zero everywhere"
        return
    whole = list(_whole(got, want, letters, max(bound, SAME * error)))
    yield from whole
    if not whole:
        yield from _places(got, want, letters, bound)
    yield from _precision(got, error, dtype)


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """RMS(got - want) / RMS(want); infinite where shapes or the places of NaN and infinity differ."""
    try:
        return difference("", got, want).relative
    except ValueError:
        return math.inf


def _shapes(got: np.ndarray, want: np.ndarray, letters: str) -> Iterator[str]:
    for order in itertools.permutations(range(got.ndim)):
        if got.ndim == want.ndim and np.transpose(got, order).shape == want.shape:
            turned = ", ".join(letters[axis] for axis in np.argsort(order))
            if relative(np.transpose(got, order), want) < SAME:
                yield f"it is the right value with the axes in the order {turned}"
                return
    if got.size == want.size:
        equal = relative(got.reshape(want.shape), want) < SAME
        yield "it has the right numbers in another shape" if equal else "it has as many numbers in another shape"


def _broken(got: np.ndarray, want: np.ndarray, letters: str) -> Iterator[str]:
    bad = np.isnan(got) & ~np.isnan(want)
    if bad.any():
        yield f"it has {bad.sum():,} NaN of {bad.size:,}{_where(bad, letters)}"


def _hidden(got: np.ndarray, want: np.ndarray, letters: str) -> Iterator[str]:
    """-inf marks a key that a query does not see."""
    extra, missing = np.isneginf(got) & ~np.isneginf(want), np.isneginf(want) & ~np.isneginf(got)
    if extra.any():
        yield f"the mask hides {extra.sum():,} keys too many{_where(extra, letters)}"
    if missing.any():
        left = np.unique(got[missing])
        if len(left) == 1 and left[0] < -99:
            yield f"hidden keys get {left[0]:g}, not -inf: they leak where scores come near it"
        elif missing.sum() == np.isneginf(want).sum():
            yield "nothing is masked"
        else:
            yield f"the mask lets {missing.sum():,} keys through{_where(missing, letters)}"


def _whole(got: np.ndarray, want: np.ndarray, letters: str, enough: float) -> Iterator[str]:
    """Explanations of the whole array: a factor, an offset per feature, another order."""
    square = float(np.sum(want * want))
    factor = float(np.sum(got * want)) / square if square else math.nan
    if math.isfinite(factor) and relative(got, factor * want) <= enough:
        yield f"it is {factor:.6g} times the right value everywhere: a scale{_number(factor)}"
        return
    offset = (got - want).mean(tuple(range(got.ndim - 1)), keepdims=True)
    if got.ndim > 1 and rms(got - want - offset) <= enough * rms(want):
        if np.ptp(offset) <= enough * rms(want):
            yield f"it is the right value plus {float(offset.flat[0]):.6g} everywhere"
        else:
            yield "the error is the same at every position: a bias is missing, doubled or wrong"
        return
    if got.size * got.ndim**2 * 6 < FEW:
        yield from itertools.islice(_orders(got, want, letters, enough), 1)


def _orders(got: np.ndarray, want: np.ndarray, letters: str, enough: float) -> Iterator[str]:
    for axis, letter in enumerate(letters):
        for shift in (1, -1):
            if want.shape[axis] > 2 and relative(got, np.roll(want, shift, axis)) <= enough:
                yield f"it is the right value moved by {shift:+d} along {letter}"
        if want.shape[axis] > 1:
            if relative(got, np.flip(want, axis)) <= enough:
                yield f"it is the right value in reverse order along {letter}"
            moved = _permuted(got, want, axis, enough)
            if moved is not None:
                yield f"it is the right value with {letter} in another order: {moved}"
    for order in itertools.permutations(range(got.ndim)):
        if order != tuple(range(got.ndim)):
            turned = np.transpose(want, order)
            names = " and ".join(letters[i] for i, at in enumerate(order) if i != at)
            if turned.shape == got.shape and relative(got, turned) <= enough:
                yield f"it is the right value with {names} exchanged"
            elif relative(got, turned.reshape(got.shape)) <= enough:
                yield f"it is the right value reshaped without the transpose of {names}"


def _permuted(got: np.ndarray, want: np.ndarray, axis: int, enough: float) -> str | None:
    """The order of the slices along an axis, if each slice of `got` is one of `want`."""
    count = want.shape[axis]
    if count > 64:
        return None
    one, other = (np.moveaxis(x, axis, 0).reshape(count, -1) for x in (got, want))
    gaps = ((one[:, None, :64] - other[None, :, :64]) ** 2).sum(-1)
    order = gaps.argmin(1)
    if len(set(order.tolist())) < count or relative(one, other[order]) > enough:
        return None
    return ", ".join(map(str, order[:8].tolist())) + (", …" if count > 8 else "")


def _places(got: np.ndarray, want: np.ndarray, letters: str, bound: float) -> Iterator[str]:
    """Where the error is, if it is not everywhere."""
    bad = np.abs(got - want) > max(bound, 1e-15) * rms(want)
    place = _where(bad, letters)
    if place:
        yield f"it is wrong only{place}"
        return
    clipped = np.abs(got).max() if bad.any() else 0.0
    if not bad.all() and clipped < np.abs(want).max() and (np.abs(want[bad]) > clipped).all():
        yield f"it is wrong only where the right value is beyond {clipped:.4g}: clipped"
    elif bad.mean() < 0.5 and bad.any() and np.abs(want[bad]).min() > np.quantile(np.abs(want[~bad]), 0.99):
        yield f"it is wrong only where the right value is large (beyond {np.abs(want[bad]).min():.3g})"


def _where(bad: np.ndarray, letters: str) -> str:
    """ " at s = t", " at odd d", " at h 1, 2": the simplest description of the places that are marked, or ""."""
    if bad.all() or not bad.any():
        return ""
    if letters.endswith("ts"):
        gap = np.arange(bad.shape[-1])[None] - np.arange(bad.shape[-2])[:, None]  # s - t
        seen = np.unique(gap[bad.reshape(-1, *gap.shape).any(0)])
        if len(seen) <= 2:
            return " at " + " and ".join("s = t" if g == 0 else f"s = t {'+' if g > 0 else '-'} {abs(g)}" for g in seen)
        if (seen > 0).all() or (seen < 0).all():
            return " above the diagonal (s > t)" if seen[0] > 0 else " below the diagonal (s < t)"
    said = []
    for axis, letter in enumerate(letters):
        there = np.flatnonzero(bad.any(tuple(i for i in range(bad.ndim) if i != axis)))
        text = _indices(there, bad.shape[axis])
        if text:
            said.append(f"{letter} {text}")
    return " at " + ", ".join(said) if said else ""


def _indices(there: np.ndarray, count: int) -> str:
    """In words, which of `count` places are marked; "" if all are, or too many without a rule."""
    if len(there) == count or not len(there):
        return ""
    if count > 3:
        for rest, word in enumerate(("even", "odd")):
            if len(there) > 1 and np.array_equal(there, np.arange(rest, count, 2)):
                return word
    if len(there) > 1 and np.array_equal(there, np.arange(there[0], count)):
        return f"{there[0]} and after"
    if len(there) > 1 and np.array_equal(there, np.arange(there[-1] + 1)):
        return f"up to {there[-1]}"
    return ", ".join(map(str, there.tolist())) if len(there) <= 4 else ""


def _number(factor: float) -> str:
    """A well-known number near the factor."""
    known: Mapping[str, float] = {
        **{f"{n}": n for n in (2, 3, 4, 0.5)},
        **{f"sqrt({n})": math.sqrt(n) for n in (2, 8, 16, 32, 64, 80, 128, 768)},
        **{f"1 / sqrt({n})": 1 / math.sqrt(n) for n in (2, 8, 16, 32, 64, 80, 128, 768)},
        "-1": -1.0,
    }
    return next((f" by {name}" for name, value in known.items() if abs(factor / value - 1) < 1e-9), "")


def _precision(got: np.ndarray, error: float, dtype: str) -> Iterator[str]:
    """Numbers that a narrower type holds exactly, in a float64 run, were rounded to it."""
    if dtype != "float64":
        return
    flat = got[np.isfinite(got)]
    if np.array_equal(flat, flat.astype(np.float32)):
        yield "every value is a float32 number: something casts to float32"
    elif 1e-9 < error < 3e-6:
        yield "an error of this size is what float32 makes (6e-8 each time): something computes in float32"
