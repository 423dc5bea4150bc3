"""The contest itself: blocks of turns, and who is refused, before it or in it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.harness import timing
from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.others import Others
from benchmarks.harness.process import Rules, sentence
from benchmarks.harness.record import Record
from benchmarks.harness.worker import WorkerFault
from common.errors import UserError


@dataclass
class Refusals:
    """Contenders of a cell that are not timed, and why."""

    cell: Cell
    record: Record

    def add(self, name: str, reason: str) -> None:
        self.record.add("refused", cell=self.cell.name, name=name, reason=reason)

    @contextmanager
    def faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except (UserError, WorkerFault) as error:
            self.add(name, sentence(error))


Turn = Callable[[int], float]


def contend(
    cell: Cell,
    arms: Mapping[str, Turn],
    calls: Mapping[str, int],
    mirrored: bool,
    rules: Rules,
    record: Record,
    number: int = 0,
) -> None:
    """Blocks of turns, by `calls` calls each, of a round. A contender that fails in a turn is refused, and the others
    go on without it; the block in which it failed is dropped."""
    alive = {name: _guarded(name, turn) for name, turn in arms.items()}
    match = timing.Contest(alive, rules.seed + number, mirrored, number)
    before = sum(line["kind"] == "block" and line["cell"] == cell.name for line in record.lines)
    others = None if cell.task in FRESH else Others()  # seconds of processes that have been killed are nobody's

    def keep(block: timing.Block) -> None:
        own = {name: calls[name] for name in match.arms}
        told = {"calls": own, **({} if others is None else {"others": round(others.share(), 4)})}
        told["turns"] = timing.rows(block)
        record.add("block", cell=cell.name, block=before + len(match.blocks) - 1, **told)

    seconds = rules.seconds
    while match.arms:
        begun = time.perf_counter()
        try:
            match.run(seconds, rules.least, each=keep, enough=rules.enough)
            return
        except Failed as failed:
            Refusals(cell, record).add(failed.name, sentence(failed.error))
            match.arms = {name: turn for name, turn in match.arms.items() if name != failed.name}
            seconds = max(0.0, seconds - (time.perf_counter() - begun))


class Failed(Exception):
    """A contender that could not finish its turn."""

    def __init__(self, name: str, error: Exception):
        self.name, self.error = name, error


def _guarded(name: str, turn: Turn) -> Turn:
    def run(copy: int) -> float:
        try:
            return turn(copy)
        except (UserError, WorkerFault) as error:
            raise Failed(name, error) from error

    return run
