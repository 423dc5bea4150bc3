"""What the summary says, looked at cell by cell: the reference, how others stand to it, and who is fastest.

A contender that was refused has no numbers; a pair that is noisy, has too few samples or is void for carry-over has no
ratio. Both rules stand here and nowhere else, so no table, plot or sentence can break them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from reports.perf.numbers import Found

WINGS = {"torch": "PyTorch", "jax": "JAX", "transformers": "Transformers"}


@dataclass(frozen=True)
class Contender:
    """A contender with its address; `one` is its entry in the summary."""

    at: str
    one: Found

    @property
    def name(self) -> str:
        return self.one["name"]

    @property
    def title(self) -> str:
        return self.one["title"]

    @property
    def wing(self) -> str:
        return self.one["wing"]

    @property
    def timed(self) -> bool:
        return self.one["refused"] is None and self.one["seconds"] is not None

    @property
    def rival(self) -> bool:
        """Whether it can win: what only bounds others from below cannot."""
        return self.timed and not self.one["lower_bound"]


@dataclass(frozen=True)
class Pair:
    """Two contenders, `other` seen from `base`: how many times as fast it is; `inverse` to how the summary has it."""

    at: str
    pair: Found
    base: Contender
    other: Contender
    inverse: bool

    @property
    def state(self) -> str:
        """void (not measured), few, noisy, carried (carry-over), same, faster or slower (the other, than the base)."""
        if not (self.base.timed and self.other.timed) or self.pair["ratio"] is None:
            return "void"
        if not self.pair["enough"]:
            return "few"
        if self.pair["noisy"]:
            return "noisy"
        if self.pair["carried"]:
            return "carried"
        if self.pair["faster"] is None:
            return "same"
        return "faster" if self.pair["faster"] == self.other.name else "slower"

    @property
    def usable(self) -> bool:
        """Whether its ratio may be shown."""
        return self.state in ("same", "faster", "slower")

    @property
    def values(self) -> tuple[float, float, float]:
        """(ratio, low, high): seconds of the base over seconds of the other; above 1 the other is faster."""
        ratio, low, high = (self.pair[key] for key in ("ratio", "low", "high"))
        return (1 / ratio, 1 / high, 1 / low) if self.inverse else (ratio, low, high)


class Cell:
    """One cell of the summary, with its address."""

    def __init__(self, found: Found, number: int):
        self.at, self.cell = f"cells/{number}", found["cells"][number]
        self.contenders = [Contender(f"{self.at}/contenders/{i}", one) for i, one in enumerate(self.cell["contenders"])]

    @property
    def title(self) -> str:
        return self.cell["title"]

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs whose contenders are here, the first of each as the base."""
        by_name = {one.name: one for one in self.contenders}
        return [
            Pair(f"{self.at}/pairs/{i}", pair, by_name[pair["first"]], by_name[pair["second"]], False)
            for i, pair in enumerate(self.cell["pairs"])
            if pair["first"] in by_name and pair["second"] in by_name
        ]

    @cached_property
    def reference(self) -> Contender | None:
        """The first contender that was timed and stands in a pair: the others are told against it."""
        paired = {one.name for pair in self.pairs for one in (pair.base, pair.other)}
        return next((one for one in self.contenders if one.rival and one.name in paired), None)

    def between(self, base: Contender, other: Contender) -> Pair | None:
        """The pair of these two, turned so that `other` is seen from `base`."""
        pair = self._by_names.get((base.name, other.name))
        turned = self._by_names.get((other.name, base.name))
        return pair if pair or not turned else Pair(turned.at, turned.pair, base, other, True)

    @cached_property
    def _by_names(self) -> dict[tuple[str, str], Pair]:
        return {(pair.base.name, pair.other.name): pair for pair in self.pairs}

    def versus(self, one: Contender) -> Pair | None:
        """How a contender stands to the reference; None for the reference itself and where no pair was measured."""
        if self.reference is None or one.name == self.reference.name:
            return None
        return self.between(self.reference, one)

    @cached_property
    def _usable(self) -> list[Pair]:
        """The pairs of rivals that may be shown."""
        return [pair for pair in self.pairs if pair.usable and pair.base.rival and pair.other.rival]

    @cached_property
    def front(self) -> list[Contender]:
        """Rivals than which no other was found faster: one of them is the fastest."""
        decided = [pair for pair in self._usable if pair.state != "same"]
        beaten = {(pair.base if pair.state == "faster" else pair.other).name for pair in decided}
        return [one for one in self.contenders if one.rival and one.name not in beaten]

    @cached_property
    def firm(self) -> list[Contender]:
        """Those of the front that could be held against any rival at all."""
        held = {one.name for pair in self._usable for one in (pair.base, pair.other)}
        return [one for one in self.front if one.name in held]

    @cached_property
    def open(self) -> list[tuple[Contender, Contender]]:
        """Two of the front each that could not be held against each other."""
        found = []
        for one, other in itertools.combinations(self.front, 2):
            pair = self.between(one, other)
            if pair is None or not pair.usable:
                found.append((one, other))
        return found

    @cached_property
    def leaders(self) -> list[Contender]:
        """The front, if all of it could be held against each other: if several, nobody is faster. None where any rival
        may be faster still."""
        return [] if self.open else self.firm

    def runner_up(self, leader: Contender) -> Pair | None:
        """The leader seen from the best of another wing, or of its own where no other was measured against it."""
        pairs = [self.between(one, leader) for one in self.contenders if one.rival and one.name != leader.name]
        usable = [pair for pair in pairs if pair is not None and pair.usable]
        foreign = [pair for pair in usable if pair.base.wing != leader.wing]
        return min(foreign or usable, key=lambda pair: pair.base.one["seconds"]["median"], default=None)

    @property
    def mixed(self) -> bool:
        """Whether several wings were timed in it."""
        return len({one.wing for one in self.contenders if one.rival}) > 1


def cells(found: Found) -> list[Cell]:
    return [Cell(found, number) for number in range(len(found["cells"]))]


def refusals(found: Found) -> Iterator[tuple[Cell, Contender]]:
    """Every contender that has no timing, and its cell."""
    for cell in cells(found):
        yield from ((cell, one) for one in cell.contenders if one.one["refused"] is not None)


@dataclass(frozen=True)
class BreakEven:
    """An entry of the summary's `break_even`: `second` compiles longer than `first`, and may catch up."""

    at: str
    entry: Found
    cell: Cell
    first: Contender
    second: Contender

    @property
    def pair(self) -> Pair | None:
        return self.cell.between(self.first, self.second)

    @property
    def settled(self) -> bool:
        """Whether the second was found faster at all: a saving inside the noise pays for nothing."""
        return self.pair is None or self.pair.state == "faster"


def break_evens(found: Found) -> list[BreakEven]:
    """Every entry whose cell and timed contenders are in the summary."""
    by_name = {cell.cell["cell"]: cell for cell in cells(found)}
    out = []
    for number, entry in enumerate(found["break_even"]):
        cell = by_name.get(entry["cell"])
        timed = {one.name: one for one in cell.contenders if one.timed} if cell else {}
        if entry["first"] in timed and entry["second"] in timed:
            ends = timed[entry["first"]], timed[entry["second"]]
            out.append(BreakEven(f"break_even/{number}", entry, cell, *ends))
    return out
