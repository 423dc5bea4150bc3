"""Two workers against each other on one clock: random ABBA/BAAB quartets, log ratios, an interval, a noise floor.

A turn is: a pause, calls of one's own that are not timed, then timed calls. A quartet is four turns whose order is
drawn by coin; its log ratio (log a1 + log a2 - log b1 - log b2) / 2 cancels a linear drift of the machine. The same
quartets of a wing against itself (A/A) show what this machine calls a difference where there is none.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

GAP = 0.02  # seconds: OpenMP's threads spin on for a while after a call and would hold the other wing's cores
LONG_ENOUGH = 0.02  # seconds a timed sample should last at least
SHARES = {"ab": 0.5, "aa": 0.25}  # of the time; "aa" for each of the two wings
NOISY = math.log(1.05)
ENOUGH = {"ab": 4, "aa": 2}  # quartets below which there is no verdict: an interval of so few says nothing


@dataclass(frozen=True)
class Sample:
    """Seconds per call of one turn. `kind` is "ab", or the name of the wing that ran against itself."""

    kind: str
    quartet: int
    turn: int
    wing: str
    label: str
    seconds: float
    after: str | None


@dataclass
class Duel:
    """The samples of one task: arms are two wings by name, each a function that takes one turn and gives seconds."""

    arms: Mapping[str, Callable[[], float]]
    seed: int
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self):
        self._coin, self._last, self._count = random.Random(self.seed), None, 0

    def quartet(self, kind: str) -> None:
        """Four turns: both wings if kind is "ab", else the wing of that name against itself."""
        first, second = self.arms
        wings = {"A": first, "B": second} if kind == "ab" else {"A": kind, "B": kind}
        order = "ABBA" if self._coin.random() < 0.5 else "BAAB"
        for turn, label in enumerate(order):
            wing = wings[label]
            seconds = self.arms[wing]()
            self.samples.append(Sample(kind, self._count, turn, wing, label, seconds, self._last))
            self._last = wing
        self._count += 1

    def run(self, seconds: float, least: int, progress: Callable[[float], None] = lambda share: None) -> None:
        """Quartets of all three kinds, the kind furthest behind its share first, until the time is up and every kind
        has had `least` quartets (A/A half as many); after twice the time one of each is enough."""
        first, second = self.arms
        shares = {"ab": SHARES["ab"], first: SHARES["aa"], second: SHARES["aa"]}
        need = {"ab": least, first: -(-least // 2), second: -(-least // 2)}
        spent, done, begun = dict.fromkeys(shares, 0.0), dict.fromkeys(shares, 0), time.perf_counter()
        while True:
            elapsed = time.perf_counter() - begun
            progress(min(1.0, elapsed / seconds) if seconds else 0.0)
            wanted = need if elapsed < 2 * seconds else dict.fromkeys(need, 1)
            open_kinds = [kind for kind in shares if elapsed < seconds or done[kind] < wanted[kind]]
            if not open_kinds:
                return
            kind = min(open_kinds, key=lambda kind: spent[kind] / shares[kind])
            at = time.perf_counter()
            self.quartet(kind)
            spent[kind] += time.perf_counter() - at
            done[kind] += 1


def turns(seconds: float) -> tuple[int, int]:
    """(timed calls, burn-in calls) of a turn whose call takes that long: long calls need neither many nor warming."""
    calls = max(1, math.ceil(LONG_ENOUGH / max(seconds, 1e-9)))
    return calls, 2 if seconds < 0.03 else 1 if seconds < 0.5 else 0


def log_ratios(samples: Sequence[Sample], kind: str) -> np.ndarray:
    """The log ratio A/B of every quartet of a kind, in order."""
    quartets: dict[int, dict[str, list[float]]] = {}
    for sample in samples:
        if sample.kind == kind:
            quartets.setdefault(sample.quartet, {"A": [], "B": []})[sample.label].append(math.log(sample.seconds))
    return np.array([(sum(q["A"]) - sum(q["B"])) / 2 for q in quartets.values()])


def interval(values: np.ndarray, rounds: int = 5, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """(estimate, low, high): the mean over rounds of the rounds' medians, with a 95 % hierarchical bootstrap interval.

    Rounds are consecutive parts of the run; both rounds and the quartets within them are drawn again.
    """
    parts = np.array_split(values, min(rounds, max(1, len(values) // 2)))
    rng = np.random.default_rng(seed)

    def draw() -> float:
        chosen = rng.integers(0, len(parts), len(parts))
        return float(np.mean([np.median(rng.choice(parts[i], parts[i].size)) for i in chosen]))

    low, high = np.percentile([draw() for _ in range(draws)], [2.5, 97.5])
    return float(np.mean([np.median(part) for part in parts])), float(low), float(high)


def carry_over(samples: Sequence[Sample]) -> dict[str, float]:
    """By wing: log ratio of its median turn after the other wing to its median turn after itself."""
    found = {}
    for wing in dict.fromkeys(sample.wing for sample in samples):
        own = [s for s in samples if s.wing == wing and s.after is not None]
        after_self = [math.log(s.seconds) for s in own if s.after == wing]
        after_other = [math.log(s.seconds) for s in own if s.after != wing]
        found[wing] = float(np.median(after_other) - np.median(after_self)) if after_self and after_other else 0.0
    return found


def summarise(samples: Sequence[Sample], arms: Sequence[str]) -> dict[str, Any]:
    """What the samples say, as plain data. Ratios are seconds of the first arm over seconds of the second.

    The floor is the largest ratio that a wing cannot be told from itself by: the far end of the A/A intervals. A wing
    is faster only if the interval excludes 1 and the ratio lies beyond the floor and beyond the carry-over.
    """
    first, second = arms
    ratio, low, high = interval(log_ratios(samples, "ab"))
    self_ratios = {wing: interval(log_ratios(samples, wing)) for wing in arms}
    floor = max(max(abs(low_), abs(high_)) for _, low_, high_ in self_ratios.values())
    carried = carry_over(samples)
    beyond = max(floor, *(abs(value) for value in carried.values()))
    quartets = {kind: len(log_ratios(samples, kind)) for kind in ("ab", *arms)}
    enough = all(number >= ENOUGH["ab" if kind == "ab" else "aa"] for kind, number in quartets.items())
    faster = None
    if enough and (low > 0 or high < 0) and abs(ratio) > beyond:
        faster = second if ratio > 0 else first
    return {
        "ratio": math.exp(ratio),
        "interval": [math.exp(low), math.exp(high)],
        "floor": math.expm1(floor),
        "self_ratios": {wing: [math.exp(value) for value in values] for wing, values in self_ratios.items()},
        "carry_over": {wing: math.expm1(value) for wing, value in carried.items()},
        "noisy": floor > NOISY,
        "enough": enough,
        "faster": faster,
        "quartets": quartets,
        "seconds": {wing: spread([s.seconds for s in samples if s.wing == wing and s.kind == "ab"]) for wing in arms},
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, minimum and number of samples."""
    low, middle, high = np.percentile(seconds, [10, 50, 90])
    found = {"median": middle, "p10": low, "p90": high, "min": min(seconds)}
    return {**{name: float(value) for name, value in found.items()}, "samples": len(seconds)}


def rows(samples: Sequence[Sample]) -> list[list[Any]]:
    """The raw samples for the record: [kind, quartet, turn, wing, seconds]."""
    return [[s.kind, s.quartet, s.turn, s.wing, s.seconds] for s in samples]
