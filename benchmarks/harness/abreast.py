"""Groups of cells side by side: all that comes before the clock at once, and then one contest after the other.

For a run of a few minutes on a GPU, where most of the time is the host's: importing, building, compiling, judging.
Cells that share model and contenders share their processes, in which a later one is compiled once those before it are
timed; memory is asked of these, too, where they have done nothing else. Nothing else is done while contenders are
timed. Seconds of beginnings are upper bounds then, and a compiler that tries kernels out has not had the device to
itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import monotonic
from typing import Any

from benchmarks.harness import contest
from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.groups import Group
from benchmarks.harness.judging import Report
from benchmarks.harness.process import Rules
from benchmarks.harness.record import Line, Record
from benchmarks.harness.worker import end_all, owner


def batches(groups: Iterable[Group], need: Callable[[Cell], int], room: int, processes: int) -> Iterator[list[Group]]:
    """Groups in their order, as many at once as have room in memory (bytes, by what the cells of each need) and have no
    more contenders than `processes`, at least one; beginnings, which are timed, alone."""
    batch: list[Group] = []
    for group in groups:
        together = [*batch, group]
        count = sum(len(one[0].contenders) for one in together)
        apart = group[0].task in FRESH or (batch and batch[0][0].task in FRESH)
        if batch and (apart or count > processes or sum(max(map(need, one)) for one in together) > room):
            yield batch
            together = [group]
        batch = together
    if batch:
        yield batch


class Held:
    """A record whose lines wait until it is opened; those of a cell that is dropped never come into the record, nor
    what its contenders say of being ended."""

    def __init__(self, record: Record):
        self._record, self._waiting, self._closed = record, [], False

    @property
    def lines(self) -> list[Line]:
        return [*self._record.lines, *({"kind": kind, **values} for kind, values in self._waiting or ())]

    def add(self, kind: str, **values: Any) -> None:
        if self._closed:
            return
        if self._waiting is None:
            self._record.add(kind, **values)
        else:
            self._waiting.append((kind, values))

    def open(self) -> None:
        waiting, self._waiting = self._waiting, None
        for kind, values in waiting:
            self._record.add(kind, **values)

    def close(self) -> None:
        """Take nothing more."""
        self._closed = True


class Begun:
    """A group of cells whose contenders begin in a thread of its own."""

    def __init__(self, group: Group, rules: Rules, record: Record, pool: ThreadPoolExecutor, late: Callable[[], bool]):
        self.group, self.record, self._pool = group, Held(record), pool
        for cell in group:
            self.record.add("cell", **cell.line(), processes=1)
        self._stages = contest.stages(group, rules, self.record, lambda what, share: None, 1, late)
        self.stage = pool.submit(self._next)

    def _next(self) -> None:
        owner.set(self)
        next(self._stages, None)

    def go_on(self) -> Future:
        """The next stage, again in a thread, whose workers are its own to end."""
        self.stage = self._pool.submit(self._next)
        return self.stage

    def stop(self) -> None:
        """Have it take nothing more down, and end the processes that it has now."""
        self.record.close()
        end_all(self)

    def close(self) -> None:
        """End its thread, whatever process that waits for or starts, and then its processes."""
        self.stop()
        self.stage.cancel()
        while not self.stage.done():
            end_all(self)
            wait([self.stage], timeout=0.2)
        self._stages.close()


def run(
    groups: Sequence[Group], rules: Rules, record: Record, report: Report, late: Callable[[], bool], patience: float
) -> float:
    """Time groups of cells, of one process a contender: those that are ready after `patience` seconds, for the others
    are dropped, and nothing more once it is `late`. Returns the seconds of all beginnings."""
    start = monotonic()
    report(" · ".join(cell.title for group in groups for cell in group), 0.0)
    with ThreadPoolExecutor(len(groups)) as pool:
        begun = []
        try:
            for group in groups:
                begun.append(Begun(group, rules, record, pool, late))
            wait([one.stage for one in begun], timeout=patience)
            ready = monotonic() - start
            _time(begun, record, report, late, ready)
        finally:
            _close(begun)
    return ready


def _close(begun: Sequence[Begun]) -> None:
    """All are stopped before the first is waited for, which may wait for another one's judge."""
    for one in begun:
        one.stop()
    for one in begun:
        one.close()


def _time(begun: Sequence[Begun], record: Record, report: Report, late: Callable[[], bool], ready: float) -> None:
    """One after the other. Who is not ready ends before, for it would disturb them."""
    there = [one for one in begun if one.stage.done()]
    others = [one for one in begun if one not in there]
    _close(others)
    for cell in (cell for one in others for cell in one.group):
        record.add("skipped", what=cell.title, reason=f"it was not ready after {ready:.0f} s")
    for one in there:
        one.stage.result()
    for number, one in enumerate(there):
        if late():
            return
        report(" · ".join(cell.title for cell in one.group), number / len(there))
        one.record.open()
        one.go_on().result()
