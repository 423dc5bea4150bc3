"""The gate before the clock: what a contender returns must be what the float64 judge says, as precisely as its own
arithmetic allows, and no more precisely than that: then it computes in another precision than its row says.

Outputs are compared by sixteen random projections (sums under random signs over sqrt(n)), so that tensors of any size
cross between processes as a few numbers and still every element counts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common import params
from common.compare import UNIT_ROUNDOFF
from common.config import ModelConfig

COUNT, CHUNK = 16, 1 << 22
SIGNS = 1.0 - 2.0 * (np.arange(1 << COUNT) >> np.arange(COUNT)[:, None] & 1)  # of every projection, by coins tossed
SUMMED = ("grad", "exp_avg")  # sums over tokens, whose roundings partly cancel: honest ones are 0.6 u off and more
SUMMED_LEAST = 0.2  # of what others are off at least
ROUNDINGS = (
    12  # of a block's stream: two norms, six products, scores, softmax, activation, two additions, about one each
)
ROUNDED = 0.41  # of u: the RMS of a rounding
CUT = "tf32"
LEAST = {CUT: 0.1}  # of u; of all else 0.75
SPREAD = 2.0  # how much too high the estimate of sixteen squared normals is hardly ever (a chance of 1e-7)


@dataclass(frozen=True)
class Digest:
    """One output in a few numbers: shape, RMS, projections, share of zeros, largest and smallest element; `finite` is
    False if anything is NaN or infinite.
    """

    shape: tuple[int, ...]
    rms: float
    projections: tuple[float, ...]
    finite: bool
    zeros: float
    span: tuple[float, float]


@dataclass(frozen=True)
class Verdict:
    """error relative to the judge's RMS; it must lie in [least, bound]."""

    what: str
    error: float
    least: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.least <= self.error <= self.bound


def digest(array: np.ndarray) -> Digest:
    """A digest; the signs depend on the place in the array alone, so equal shapes get equal signs."""
    flat = np.ascontiguousarray(array).reshape(-1)
    sums, squares = np.zeros(COUNT), 0.0
    span = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
    for number, start in enumerate(range(0, flat.size, CHUNK)):
        part = flat[start : start + CHUNK].astype(np.float64)
        coins = np.random.default_rng(number).integers(0, 1 << COUNT, part.size, np.uint16)
        sums += SIGNS @ np.bincount(coins, part, 1 << COUNT)  # all elements of one toss have the same signs
        squares += float(np.square(part).sum())
    count = max(1, flat.size)
    finite = math.isfinite(squares)
    projections = tuple(sums / math.sqrt(count)) if finite else (math.inf,) * COUNT
    rms = math.sqrt(squares / count) if finite else math.inf
    return Digest(tuple(np.shape(array)), rms, projections, finite, 1 - np.count_nonzero(flat) / count, span)


def error(got: Digest, want: Digest) -> float:
    """The RMS of the difference over the RMS of what is wanted, as the projections estimate it; infinite if the shapes
    differ or anything is not finite."""
    if got.shape != want.shape or not (got.finite and want.finite):
        return math.inf
    gaps = np.array(got.projections) - np.array(want.projections)
    return float(np.sqrt(np.mean(np.square(gaps)))) / max(want.rms, np.finfo(np.float64).tiny)


def bounds(dtype: str, layers: int, elements: int, terms: int = 0) -> tuple[float, float]:
    """(least, most) error of an honest run in a precision with unit roundoff u.

    Most: every block adds some dozen independent roundings to its stream, so 4 u sqrt(12 L + 4), times what the
    estimate spreads. A sum of n `terms` one after the other, as kernels for GPUs make it, adds what each of its steps
    rounds: 0.41 u sqrt(n / 2), in float32 where numbers have 16 bits. Least: numbers that were computed more precisely
    and rounded once are about 0.41 u off (errors uniform within half an ulp), at most 0.72 u as estimated; who computes
    in this precision throughout is 2 u off or more, at least 0.9 u as estimated.
    Sums to a single number may be exact by luck, so they have no least error. TF32 rounds the factors of products
    alone, so an honest run may be far less off than one that rounds everything; 0.1 u is more than float32 allows.
    """
    u = UNIT_ROUNDOFF[dtype]
    added = ROUNDED * min(u, UNIT_ROUNDOFF["float32"]) * math.sqrt(terms / 2)
    most = math.hypot(4 * u * math.sqrt(ROUNDINGS * layers + 4), added) * (SPREAD if elements > 1 else 1)
    return (LEAST.get(dtype, 0.75) * u if elements > 1 else 0.0), most


def judge(
    got: Mapping[str, Digest], want: Mapping[str, Digest], dtype: str, config: ModelConfig, sums: bool = True
) -> list[Verdict]:
    """A verdict for every output that the judge has; one that is missing is infinitely wrong. Gradients that are zero
    in theory are rounding noise in everybody, and are left out. Without `sums` a task may well be exact."""
    found, table = [], params.table(config)
    for name, one in want.items():
        parameter = table.get(name.removeprefix("grad/"))
        if parameter is not None and parameter.dead:
            continue
        summed = name.partition("/")[0] in SUMMED
        terms = config.vocab_size if summed else 0  # the gradient of hidden states, by the head
        least, most = bounds(dtype, config.num_layers, math.prod(one.shape), terms)
        if name == "tokens":
            most = 0.0
        if name == "tokens" or not sums:
            least = 0.0
        if summed:
            least *= SUMMED_LEAST
        found.append(Verdict(name, error(got[name], one) if name in got else math.inf, least, most))
    return found


def judge_drawn(got: Mapping[str, Digest], want: Mapping[str, Digest], vocabulary: int) -> list[Verdict]:
    """Verdicts on outputs that were drawn from another generator: as many zeros as the judge's, and the same size of
    what is left, within five standard deviations of both draws; tokens from the vocabulary."""
    found = []
    for name, one in want.items():
        size, p = math.prod(one.shape), one.zeros
        own = got.get(name)
        there = own is not None and own.shape == one.shape and own.finite
        if name == "tokens":
            drawn = there and (size == 1 or own.span[0] < own.span[1])
            known = there and own.span[0] >= 0 and own.span[1] < vocabulary and own.span[0] == int(own.span[0])
            found.append(Verdict(name, 0.0 if drawn and known else math.inf, 0.0, 0.0))
            continue
        zeros = 5 * math.sqrt(2 * p * (1 - p) / size)
        found.append(Verdict(f"share of zeros in {name}", abs(own.zeros - p) if there else math.inf, 0.0, zeros))
        # each draw's mean square varies by sqrt(2 / n) of itself for normal numbers, its root by half of that
        off = abs(own.rms / one.rms - 1) if there and one.rms else math.inf
        found.append(Verdict(f"size of {name}", off, 0.0, zeros + 5 / math.sqrt(size)))
    return found


def refusal(verdicts: list[Verdict], dtype: str, judge_title: str) -> str | None:
    """Why a contender is not timed, in one sentence; None if all verdicts pass."""
    for one in verdicts:
        if one.error > one.bound or math.isnan(one.error):
            return (f"its {one.what} is {one.error:.1e} off {judge_title}, relative, and {dtype} allows"
                    f" {one.bound:.1e}: another result is not timed.")  # fmt: skip
        if one.error < one.least:
            return (f"its {one.what} is only {one.error:.1e} off {judge_title}; {dtype} arithmetic is at least"
                    f" {one.least:.1e} off, so it computes in another precision than its row says.")  # fmt: skip
    return None
