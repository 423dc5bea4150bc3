"""Cells side by side: all that comes before the clock at once, and then one contest after the other.

For a run of a few minutes on a GPU, where most of the time is the host's: importing, building, compiling, judging.
Nothing else is done while contenders are timed. Seconds of beginnings are upper bounds then, and a compiler that tries
kernels out has not had the device to itself.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import monotonic
from typing import Any

from benchmarks.harness import contest
from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.contest import Report
from benchmarks.harness.process import Rules
from benchmarks.harness.record import Line, Record
from benchmarks.harness.worker import end_all, owner


def batches(cells: Sequence[Cell], need: Callable[[Cell], int], room: int, processes: int) -> Iterator[list[Cell]]:
    """Cells in their order, as many at once as have room in memory (bytes, by what each of them needs) and have no more
    contenders than `processes`, at least one; beginnings, which are timed, alone."""
    batch: list[Cell] = []
    for cell in cells:
        together = [*batch, cell]
        count = sum(len(one.contenders) for one in together)
        apart = cell.task in FRESH or (batch and batch[0].task in FRESH)
        if batch and (apart or count > processes or sum(map(need, together)) > room):
            yield batch
            together = [cell]
        batch = together
    if batch:
        yield batch


class Held:
    """A record whose lines wait until it is opened; those of a cell that is dropped never come into the record."""

    def __init__(self, record: Record):
        self._record, self._waiting = record, []

    @property
    def lines(self) -> list[Line]:
        return [*self._record.lines, *({"kind": kind, **values} for kind, values in self._waiting or ())]

    def add(self, kind: str, **values: Any) -> None:
        if self._waiting is None:
            self._record.add(kind, **values)
        else:
            self._waiting.append((kind, values))

    def open(self) -> None:
        waiting, self._waiting = self._waiting, None
        for kind, values in waiting:
            self._record.add(kind, **values)


class Begun:
    """A cell whose contenders begin in a thread of its own."""

    def __init__(self, cell: Cell, rules: Rules, record: Record, pool: ThreadPoolExecutor):
        self.cell, self.record, self._pool = cell, Held(record), pool
        self.record.add("cell", **cell.line(), processes=1)
        self._stages = contest.stages([cell], rules, self.record, lambda what, share: None, 1)
        self.stage = pool.submit(self._next)

    def _next(self) -> None:
        owner.set(self)
        next(self._stages, None)

    def go_on(self) -> Future:
        """The next stage, again in a thread, whose workers are its own to end."""
        self.stage = self._pool.submit(self._next)
        return self.stage

    def close(self) -> None:
        """End its thread, whatever process that waits for or starts, and then its processes."""
        self.stage.cancel()
        while not self.stage.done():
            end_all(self)
            wait([self.stage], timeout=0.2)
        self._stages.close()


def run(
    cells: Sequence[Cell], rules: Rules, record: Record, report: Report, late: Callable[[], bool], patience: float
) -> float:
    """Time cells of one process a contender: those that are ready after `patience` seconds, for the others are dropped,
    and nothing more once it is `late`. Returns the seconds of all beginnings."""
    start = monotonic()
    report(" · ".join(cell.title for cell in cells), 0.0)
    with ThreadPoolExecutor(len(cells)) as pool:
        begun = []
        try:
            begun += [Begun(cell, rules, record, pool) for cell in cells]
            wait([one.stage for one in begun], timeout=patience)
            ready = monotonic() - start
            timed = list(_timed(begun, record, report, late, ready))
            report("Memory", 1.0)
            for one in timed:
                if one.cell.memory and late():
                    record.add("skipped", what=f"memory in {one.cell.title}", reason="there was no time left")
                elif one.cell.memory:
                    one.go_on()
            for one in timed:
                one.stage.result()
        finally:
            for one in begun:
                one.close()
    return ready


def _timed(
    begun: Sequence[Begun], record: Record, report: Report, late: Callable[[], bool], ready: float
) -> Iterator[Begun]:
    """Those that were timed, one after the other. Who is not ready ends before, for it would disturb them."""
    there = []
    for one in begun:
        if one.stage.done():
            one.stage.result()
            there.append(one)
        else:
            one.close()
            record.add("skipped", what=one.cell.title, reason=f"it was not ready after {ready:.0f} s")
    for number, one in enumerate(there):
        if late():
            return
        report(one.cell.title, number / len(there))
        one.record.open()
        one.go_on().result()
        yield one
