"""Cells side by side: all that comes before the clock at once, and then one contest after the other.

For a run of a few minutes on a GPU, where most of the time is the host's: importing, building, compiling, judging.
Nothing else is done while contenders are timed. Seconds of beginnings are upper bounds then, and a compiler that tries
kernels out has not had the device to itself.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import monotonic

from benchmarks.harness import contest
from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.contest import Report
from benchmarks.harness.process import Rules
from benchmarks.harness.record import Record
from benchmarks.harness.worker import end_all


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


def run(cells: Sequence[Cell], rules: Rules, record: Record, report: Report, over: Callable[[], bool]) -> float:
    """Time cells of one process a contender; nothing more once it is `over`. Returns the seconds of all beginnings."""
    for cell in cells:
        record.add("cell", **cell.line(), processes=1)
    begun = monotonic()
    stages = [contest.stages([cell], rules, record, lambda what, share: None, 1) for cell in cells]
    pool = ThreadPoolExecutor(len(cells))
    report(" · ".join(cell.title for cell in cells), 0.0)
    promised = [pool.submit(next, stage, None) for stage in stages]
    try:
        for one in promised:
            one.result()
        ready = monotonic() - begun
        for number, (cell, stage) in enumerate(zip(cells, stages, strict=True)):
            if over():
                break
            report(cell.title, number / len(cells))
            next(stage, None)
        for cell, stage in zip(cells, stages, strict=True):
            if over() and cell.memory:
                record.add("skipped", what=f"memory in {cell.title}", reason="there was no time left")
            elif cell.memory:
                promised.append(pool.submit(next, stage, None))
        report("Memory", 1.0)
        for one in promised:
            one.result()
    finally:
        _end(promised)
        pool.shutdown()
        for stage in stages:
            stage.close()
    return ready


def _end(promised: Sequence[Future]) -> None:
    """Have every thread end that still waits for a process, or starts one."""
    for one in promised:
        one.cancel()
    while not all(one.done() for one in promised):
        end_all()
        wait(promised, timeout=0.2)
