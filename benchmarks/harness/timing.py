"""Contenders against each other on one clock: random blocks, paired log ratios, intervals, a noise floor.

A turn is: a pause, calls of one's own that are not timed, then timed calls. In a block every contender runs twice, as
copy 0 and copy 1 (two processes where memory allows), in an order drawn by coin; where calls are short the same order
follows backwards, which cancels a linear drift of the machine. What copy 0 differs from copy 1 of the same contender
(A/A) is what this machine calls a difference where there is none.

Where memory holds one process of each contender, a contest has two rounds with processes of their own: copies 0 and 1
are turns of the first, 2 and 3 of the second. Turns of one never show what another would have taken: ratios of an
optimizer's step of GPT-2 124M moved by up to 1.4 between three runs with one process each.

Intervals hold 99 %, for a report has hundreds of them and is to say the same when it is made again: two of 95 % that
are right lie apart once in 180 times, of 99 % once in 3,700.
"""

import functools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

GAP = 0.02  # seconds: OpenMP's threads spin on for a while after a call and would hold the next one's cores
LONG_ENOUGH, SHORT = 0.1, 0.02  # seconds a timed sample should last at least; where time is short
WARM_UP = 0.04  # seconds of calls until caches and clocks of a CPU are a contender's own again
LONG_CALL = 0.5  # seconds from which blocks are not mirrored
NOISY = math.log(1.05)
HOLD = 0.99  # of an interval: how often the true ratio lies in it
NORMAL = 2.576  # standard deviations that hold as much of a normal distribution
ROUNDS = 2  # of a contest whose contenders have one process each at a time
PRIOR = 4  # how many differences what a whole run tells weighs as much as, beside a contender's own
APART = 0.03  # log seconds that two processes of one contender are assumed to differ by where nobody sees it
TELLING = 5  # contenders with two processes from which a run tells it
ENOUGH = 6  # blocks below which there is no verdict: an interval of so few says nothing
HALF_OF_SQUARES, TINY = 0.455, 1e-30  # the median of a normal variable's square, of variance 1
FEW = 4  # turns of a kind below which nothing is said about carry-over


@dataclass(frozen=True)
class Turn:
    """Seconds per call that one copy of a contender took."""

    name: str
    copy: int
    seconds: float


Block = Sequence[Turn]


@dataclass
class Contest:
    """All contenders of one task: arms by name, each a function that takes one turn of a copy and gives seconds per
    call."""

    arms: Mapping[str, Callable[[int], float]]
    seed: int
    mirrored: bool = True
    number: int = 0  # of the round
    blocks: list[Block] = field(default_factory=list)

    def __post_init__(self):
        self._coin = random.Random(self.seed)

    def block(self) -> Block:
        """One more block: every copy of every contender in a random order, and backwards where mirrored."""
        order = [(name, copy) for name in self.arms for copy in (2 * self.number, 2 * self.number + 1)]
        self._coin.shuffle(order)
        if self.mirrored:
            order += reversed(order)
        self.blocks.append(tuple(Turn(name, copy, self.arms[name](copy)) for name, copy in order))
        return self.blocks[-1]

    def run(
        self,
        seconds: float,
        least: int,
        progress: Callable[[float], None] = lambda share: None,
        each: Callable[[Block], None] = lambda block: None,
        enough: int = ENOUGH,
    ) -> None:
        """Blocks until the time is up and `least` are done; `each` gets them as they come. After twice the time
        `enough` blocks are."""
        begun = time.perf_counter()
        while True:
            elapsed = time.perf_counter() - begun
            progress(min(1.0, elapsed / seconds) if seconds else 0.0)
            if elapsed >= seconds and len(self.blocks) >= (least if elapsed < 2 * seconds else min(enough, least)):
                return
            each(self.block())


def turns(seconds: float, short: bool = False) -> tuple[int, int]:
    """(timed calls, burn-in calls) of a turn whose call takes that long. Long ones too begin after one of their own: a
    minute after the last turn a system has taken freed memory back, and a step that gets it again takes up to a fifth
    longer than in a row of steps. Calls of milliseconds take ten of their own until they are as fast as the later ones,
    the first up to twice as long. `short` turns are for where time is short: they scatter more."""
    seconds = max(seconds, 1e-9)
    if short:
        return max(1, math.ceil(SHORT / seconds)), 2 if seconds < 0.03 else 1
    return max(1, math.ceil(LONG_ENOUGH / seconds)), max(1, math.ceil(WARM_UP / seconds))


def log_ratios(blocks: Sequence[Block], first: str, second: str) -> np.ndarray:
    """By block: the mean log seconds of one contender less that of another; of a contender and itself, its even copy
    less its odd one."""
    return np.array([_mean(block, first, 0 if first == second else None) - _mean(block, second, 1 if first == second
                     else None) for block in blocks])  # fmt: skip


def _mean(block: Block, name: str, copy: int | None) -> float:
    return float(np.mean([math.log(t.seconds) for t in block if t.name == name and copy in (None, t.copy % 2)]))


def round_of(block: Block) -> int:
    """Which round a block is of."""
    return block[0].copy // 2


def rounds(blocks: Sequence[Block]) -> int:
    """How many rounds there are with at least two blocks, which is what scatter needs."""
    return sum(many > 1 for many in Counter(map(round_of, blocks)).values())


def interval(
    values: np.ndarray, rounds: int = 5, draws: int = 2000, seed: int = 0, hold: float = 0.95
) -> tuple[float, float, float]:
    """(estimate, low, high): the mean over rounds of the rounds' medians, with a hierarchical bootstrap interval that
    holds 95 %, or another share.

    Rounds are consecutive parts of the run; both rounds and the blocks within them are drawn again.
    """
    return _interval(np.asarray(values, np.float64).tobytes(), rounds, draws, seed, hold)


@functools.lru_cache(4096)  # everybody is held against itself once for every rival
def _interval(values: bytes, rounds: int, draws: int, seed: int, hold: float) -> tuple[float, float, float]:
    values = np.frombuffer(values)
    parts = np.array_split(values, min(rounds, max(1, len(values) // 2)))
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(parts), (draws, len(parts)))
    medians = np.empty(chosen.shape)
    for number, part in enumerate(parts):
        places = np.nonzero(chosen == number)
        medians[places] = np.median(rng.choice(part, (len(places[0]), part.size)), axis=1)
    low, high = np.percentile(medians.mean(1), [50 * (1 - hold), 50 * (1 + hold)])
    return float(np.mean([np.median(part) for part in parts])), float(low), float(high)


def apart(contests: Sequence[Sequence[Block]]) -> float | None:
    """What two processes of one contender differ by beyond the scatter of their turns, in log seconds (a standard
    deviation); None unless at least TELLING contenders tell. From the blocks of contests in which each had two
    processes; those with fewer than ENOUGH blocks tell nothing, nor do fewer than three contenders in two rounds."""
    found = [
        difference(blocks, name)
        for blocks in contests
        if len(blocks) >= ENOUGH and (rounds(blocks) < 2 or len(names_in(blocks)) > 2)
        for name in names_in(blocks)
    ]
    if len(found) < TELLING:
        return None
    squares, errors = (np.square(values) for values in zip(*found, strict=True))
    # its square is where the median of what is scaled by it is that of chi-square
    low, high = 0.0, float(squares.max()) / HALF_OF_SQUARES
    for _ in range(60):
        middle = (low + high) / 2
        above = np.median(squares / np.maximum(errors + middle, TINY)) > HALF_OF_SQUARES
        low, high = (middle, high) if above else (low, middle)
    return math.sqrt(low)


def difference(blocks: Sequence[Block], name: str) -> tuple[float, float]:
    """What the first process of a contender differs from the second by, in log seconds, and its standard error by the
    scatter of blocks alone. Of processes in two rounds, less what the others differ by: at another time the machine is
    another."""
    if rounds(blocks) < 2:
        values = log_ratios(blocks, name, name)
        return interval(values)[0], _error_of_mean(values)
    others = [one for one in names_in(blocks) if one != name]

    def above(block: Block) -> float:
        machine = float(np.median([_mean(block, one, None) for one in others])) if others else 0.0
        return _mean(block, name, None) - machine

    first, second = (np.array([above(block) for block in blocks if round_of(block) == number]) for number in (0, 1))
    return float(np.median(first) - np.median(second)), math.hypot(_error_of_mean(first), _error_of_mean(second))


def names_in(blocks: Sequence[Block]) -> list[str]:
    """The contenders that took part in every block."""
    return sorted(set.intersection(*({turn.name for turn in block} for block in blocks)))


def _error_of_mean(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def between(
    blocks: Sequence[Block], first: str, second: str, processes: int = 1, apart: float = APART
) -> tuple[float, float, float]:
    """(estimate, low, high) of the log seconds of one contender over another's: at least the interval of blocks.

    Where each contender has two processes, at once or in two rounds, half of what they differ by is the standard error
    of its mean: turns that scatter and processes that differ, both in it. One difference alone tells little of that (it
    has one degree of freedom), so it is put together with what is due by its blocks and by `apart`, which weighs as
    much as PRIOR differences (a moderated t, after Smyth 2004); degrees of freedom are Satterthwaite's (1946), few for
    who differs by more than is due.

    Where each has one process nobody sees what another would have taken: it is assumed that two differ by `apart`, and
    at least by APART, which is added to the interval of blocks (squares add up).
    """
    values = log_ratios(blocks, first, second)
    ratio, low, high = interval(values, hold=HOLD)
    error, freedom = _error_of_mean(values), max(1, len(values) - 1)
    if processes < 2 and rounds(blocks) < 2:
        reach, more = error * _quantile(freedom), NORMAL * max(apart, APART)
        low, high = min(low, ratio - reach), max(high, ratio + reach)
        return ratio, ratio - math.hypot(ratio - low, more), ratio + math.hypot(high - ratio, more)
    parts = []  # of the variance of what two processes differ by: (squared log seconds, degrees of freedom)
    for name in (first, second):
        own, scatter = difference(blocks, name)
        due = PRIOR / (PRIOR + 1) * (scatter**2 + apart**2)
        parts += [(due, 2 / (1 / (PRIOR + 1) + 1 / freedom)), (own**2 / (PRIOR + 1), 1)]
    variance = sum(part for part, _ in parts)
    if variance > 0:
        freedom = variance**2 / sum(part**2 / many for part, many in parts)
    reach = max(error, math.sqrt(variance) / 2) * _quantile(freedom)
    return ratio, min(low, ratio - reach), max(high, ratio + reach)


def _quantile(freedom: float) -> float:
    """How many standard errors hold HOLD of Student's t."""
    from scipy.special import stdtrit  # not in the processes that are measured, which have this module too

    return float(stdtrit(freedom, (1 + HOLD) / 2))


def carry_over(blocks: Sequence[Block], name: str, processes: int = 1) -> float | None:
    """Log ratio of a contender's median turn after another to its median turn after itself (its own process); None
    where too few turns tell, 0 where the difference is within twice its own standard error."""
    own, other = [], []
    for block in blocks:
        for before, turn in pairwise(block):
            if turn.name == name:
                same = before.name == name and (processes < 2 or before.copy == turn.copy)
                (own if same else other).append(math.log(turn.seconds))
    if min(len(own), len(other)) < FEW:
        return None
    gap = float(np.median(other) - np.median(own))
    return gap if abs(gap) > 2 * math.hypot(_error_of_median(own), _error_of_median(other)) else 0.0


def _error_of_median(values: Sequence[float]) -> float:
    """The standard error of a median, from the median absolute deviation (normal consistency 1.4826)."""
    deviation = 1.4826 * float(np.median(np.abs(np.array(values) - np.median(values))))
    return math.sqrt(math.pi / 2) * deviation / math.sqrt(len(values))


def compare(
    blocks: Sequence[Block], first: str, second: str, processes: int = 1, apart: float = APART
) -> dict[str, Any]:
    """What the blocks say of two contenders: ratio of seconds (first over second), its interval, the floor, a verdict.
    With two `processes` the copies of a contender are processes; `apart` is what the run tells of such.

    The floor is the largest ratio that either cannot be told from itself by: the far end of the A/A intervals, and what
    its processes in two rounds differ by. One is faster only if the interval excludes 1 and the ratio lies beyond the
    floor and beyond the carry-over, the larger of theirs; `carried` says that it is the carry-over alone that withholds
    the verdict. Of a noisy pair nothing can be said: its floor is large, and its ratio within.
    """
    ratio, low, high = between(blocks, first, second, processes, apart)
    selves = [interval(log_ratios(blocks, name, name)) for name in (first, second)]
    floor = max(max(abs(low_), abs(high_)) for _, low_, high_ in selves)
    if rounds(blocks) > 1:
        floor = max(floor, *(abs(difference(blocks, name)[0]) for name in (first, second)))
    known = (carry_over(blocks, name, processes) for name in (first, second))
    carry = max((abs(found) for found in known if found is not None), default=None)
    enough = len(blocks) >= ENOUGH
    differ = enough and (low > 0 or high < 0) and abs(ratio) > floor
    carried = differ and carry is not None and abs(ratio) <= carry
    faster = (second if ratio > 0 else first) if differ and not carried else None
    return {
        "first": first,
        "second": second,
        "ratio": math.exp(ratio),
        "low": math.exp(low),
        "high": math.exp(high),
        "floor": math.expm1(floor),
        "noisy": floor > NOISY and abs(ratio) <= floor,
        "enough": enough,
        "carry_over": None if carry is None else math.expm1(carry),
        "carried": carried,
        "faster": faster,
    }


def of_one(blocks: Sequence[Block], name: str, processes: int = 1) -> dict[str, Any]:
    """What the blocks in which a contender ran say of it: seconds per call, itself against itself [ratio, low, high],
    carry-over."""
    blocks = [block for block in blocks if any(turn.name == name for turn in block)]
    carried = carry_over(blocks, name, processes)
    return {
        "seconds": spread([turn.seconds for block in blocks for turn in block if turn.name == name]),
        "self_ratio": [math.exp(value) for value in interval(log_ratios(blocks, name, name))],
        "carry_over": None if carried is None else math.expm1(carried),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, minimum and number of samples."""
    low, middle, high = np.percentile(seconds, [10, 50, 90])
    found = {"median": middle, "p10": low, "p90": high, "min": min(seconds)}
    return {**{name: float(value) for name, value in found.items()}, "samples": len(seconds)}


def rows(block: Block) -> list[list[Any]]:
    """A block for the record: [name, copy, seconds] of every turn in order."""
    return [[turn.name, turn.copy, turn.seconds] for turn in block]


def of_rows(block: Sequence[Sequence[Any]]) -> Block:
    """The inverse of `rows`."""
    return tuple(Turn(str(name), int(copy), float(seconds)) for name, copy, seconds in block)
