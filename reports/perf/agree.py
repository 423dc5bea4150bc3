"""Runs of the same cells held against each other: whether they give the same verdicts, and the same factors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from common.errors import UserError
from reports.perf import wording as say
from reports.perf.numbers import Found, plain
from reports.perf.view import Pair, cells

AGREE, OPEN, CONTRADICT, ALONE = "agree", "seen by some", "CONTRADICT", "not in two"
MEANING = {
    AGREE: "all runs that may show a ratio say the same of who is faster, and their intervals overlap",
    OPEN: "some of these see who is faster, others no difference; their intervals overlap",
    CONTRADICT: "runs name different winners, or factors whose intervals lie apart",
    ALONE: "fewer than two runs have a ratio that may be shown",
}


@dataclass(frozen=True)
class Held:
    """A pair of contenders of one cell in every run that has it, by the run's name."""

    title: str
    told: Mapping[str, tuple[Pair, str]]  # the pair, and its verdict in words

    @property
    def outcome(self) -> str:
        usable = [pair for pair, _ in self.told.values() if pair.usable]
        if len(usable) < 2:
            return ALONE
        states = {pair.state for pair in usable}
        spans = [pair.values[1:] for pair in usable]
        apart = any(max(a[0], b[0]) > min(a[1], b[1]) for a, b in combinations(spans, 2))
        if apart or {"faster", "slower"} <= states:
            return CONTRADICT
        return OPEN if len(states) > 1 else AGREE


def hold(runs: Mapping[str, Found]) -> list[Held]:
    """Every pair that at least two runs have, in the order of the first that has it. Raises UserError for fewer than
    two runs, and for runs that have no pair in common."""
    if len(runs) < 2:
        raise UserError("Give at least two folders of runs to hold against each other.")
    found: dict[tuple[str, ...], dict[str, tuple[Pair, str]]] = {}
    titles = {}
    for name, run in runs.items():
        for cell in cells(run):
            for pair in cell.pairs:
                base, other = sorted((pair.base, pair.other), key=lambda one: one.name)
                key = (cell.cell["cell"], base.name, other.name)
                turned = cell.between(base, other)
                found.setdefault(key, {})[name] = turned, plain(run, say.verdict(turned))
                titles.setdefault(key, f"{cell.title}: {other.title} to {base.title}")
    held = [Held(titles[key], told) for key, told in found.items() if len(told) > 1]
    if not held:
        raise UserError(f"{' and '.join(runs)} have no two contenders of one cell in common.")
    return held


def table(held: Sequence[Held], names: Sequence[str]) -> str:
    """A line in Markdown for every pair: what each run says of it, with its interval, and whether that agrees."""
    head = ["Contenders", *names, "Outcome"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in held:
        said = [_cell(*one.told[name]) if name in one.told else "" for name in names]
        lines.append("| " + " | ".join([one.title, *said, one.outcome]) + " |")
    return "\n".join(lines)


def _cell(pair: Pair, words: str) -> str:
    if not pair.usable:
        return words
    _, low, high = pair.values
    low, high = (1 / high, 1 / low) if pair.state == "slower" else (low, high)  # as the verdict has it
    return f"{words}, {low:.3g} to {high:.3g}"


def comparable(held: Sequence[Held]) -> bool:
    """Whether at least one pair has a ratio in two runs."""
    return any(one.outcome != ALONE for one in held)


def comparisons(held: Sequence[Held]) -> int:
    """How many times two runs' intervals of a pair were held against each other."""
    return sum(math.comb(sum(pair.usable for pair, _ in one.told.values()), 2) for one in held)


def counts(held: Sequence[Held]) -> dict[str, int]:
    """How many pairs have each outcome."""
    return {outcome: sum(one.outcome == outcome for one in held) for outcome in MEANING}


def names_of(folders: Sequence[Path]) -> dict[Path, str]:
    """What a run is called: its folder's name, with as much of the way there as tells it from the others."""
    parts = max(len(folder.resolve().parts) for folder in folders)
    for length in range(1, parts + 1):
        names = {folder: "/".join(folder.resolve().parts[-length:]) for folder in folders}
        if len(set(names.values())) == len(folders):
            return names
    raise UserError("One folder is named twice; give each run once.")
