"""Peak memory of contenders, each in a process of its own: one that does nothing else, or the one that was timed."""

import functools
import threading
from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cells import DECODING, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.process import MODEL, Beginning, Rules, prepare, process, sentence
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.harness.together import at_once
from benchmarks.harness.worker import Worker, WorkerFault
from common.config import ModelConfig
from common.cores import usable_cores
from common.errors import UserError


def measure(
    cell: Cell, recipes: Mapping[ModelConfig, Recipe], rules: Rules, record: Record, places: Mapping[str, str]
) -> None:
    """Peak memory of every contender in a process of its own: after import, after building, and in a steady call. On a
    CPU as many at once as there are cores, on a GPU where they begin together: all were in memory together before."""
    gone = refused(cell, record)
    begun: list[Worker] = []
    stopped = threading.Event()

    def measured(one: Contender) -> dict[str, Any]:
        with process(one, rules, places[one.name]) as worker:
            begun.append(worker)
            if stopped.is_set():
                raise UserError("interrupted")
            started = worker.ask("start")
            execution = one.execution(cell.dtype, rules.device, rules.threads)
            worker.ask("build", MODEL, recipes[cell.config_of(one)], execution)
            built = worker.ask("resident")
            prepare(worker, cell)
            worker.ask("first", MODEL, cell.task)
            return {"import": started["bytes_after_import"], "build": built, **_peak(worker, cell)}

    work = {one.name: [functools.partial(measured, one)] for one in cell.contenders if one.name not in gone}
    together = max(1, len(work)) if rules.together else len(usable_cores()) if rules.device == "cpu" else 1
    try:
        measurements = at_once(work, together)
    except BaseException:
        stopped.set()
        for worker in begun:
            worker.close()
        raise
    _told(measurements, cell, record)


def ask(cell: Cell, own: Mapping[str, Worker], begun: Mapping[str, Beginning], record: Record) -> None:
    """The same of contenders that have just been timed and have done nothing else, in their own processes, all at once:
    on a device each is told its own bytes. The high water of the host's memory is that of two more calls."""
    gone = refused(cell, record)

    def measured(name: str) -> dict[str, Any]:
        return {"import": begun[name].imported, "build": begun[name].built, **_peak(own[name], cell)}

    work = {name: [functools.partial(measured, name)] for name in own if name not in gone}
    _told(at_once(work, max(1, len(work))), cell, record)


def _peak(worker: Worker, cell: Cell) -> dict[str, Any]:
    """What a task takes whose first call is over, and what the framework says that it needs."""
    found = worker.ask("peak", MODEL, cell.task, 2)
    known = cell.cached or cell.task not in DECODING  # of decoding that is a step on a cache
    planned, how = _planned(worker, cell) if known else (None, "")
    values = {"peak": found["bytes"], "how": found["how"], "planned": planned, "planned_how": how}
    return {**values, "device": found["device_bytes"]}


def _told(measurements: Mapping[str, Any], cell: Cell, record: Record) -> None:
    for name, found in measurements.items():
        if isinstance(found, Exception):
            record.add("skipped", what=f"memory of {name} in {cell.title}", reason=sentence(found))
        else:
            record.add("memory", cell=cell.name, name=name, **found[0])


def refused(cell: Cell, record: Record) -> set[str]:
    """The contenders of a cell that are not to be measured any more."""
    return {line["name"] for line in record.lines if line["kind"] == "refused" and line["cell"] == cell.name}


def _planned(worker: Worker, cell: Cell) -> tuple[int | None, str]:
    """The framework's own plan; one that cannot be had takes nothing from what was measured."""
    try:
        return worker.ask("planned", MODEL, cell.task, cell.batch, cell.length + cell.new, cell.path)
    except (UserError, WorkerFault) as error:
        return None, f"none: {sentence(error)}"
