"""What is measured beside cells: the machine's peaks, and FLOPs as they are counted."""

import functools
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.harness.cells import Cell
from benchmarks.harness.process import Rules, sentence
from benchmarks.harness.record import Record
from benchmarks.harness.together import at_once
from benchmarks.harness.worker import Worker, WorkerFault, end_all, owner
from common import allocator, gpu
from common.accounting import counters
from common.accounting import peaks as sheets
from common.config import ModelConfig
from common.errors import UserError

GPU = "GPU"
AT_ONCE = 4  # processes that count FLOPs side by side where contenders begin so: each has both frameworks


def flops(cells: Sequence[Cell], rules: Rules, record: Record) -> None:
    """The closed form of every cell that has one beside the frameworks' own counts."""
    sizes: dict[Any, list[Cell]] = {}
    for cell in cells:
        if cell.task in counters.TASKS and cell.dtype == "float32":
            sizes.setdefault((cell.config, cell.batch, cell.length), []).append(cell)

    whose = object()

    def counted(config: ModelConfig, batch: int, length: int) -> list[dict[str, Any]]:
        owner.set(whose)
        with Worker("torch", threads=rules.threads, device=rules.device) as worker:
            worker.ask("start")
            return worker.ask("counted", config, batch, length, rules.device)

    asked = {size: [functools.partial(counted, *size)] for size in sizes}
    try:
        answers = at_once(asked, AT_ONCE if rules.together else 1)
    finally:
        end_all(whose)
    for size, same in sizes.items():
        rows = answers[size]
        if isinstance(rows, Exception):
            record.add("skipped", what=f"FLOPs of {same[0].title}", reason=sentence(rows))
            continue
        for cell, row in itertools.product(same, rows[0]):
            if row["task"] == cell.task:
                record.add("flops", cell=cell.name, **row)


def peaks(device: dict[str, str], rules: Rules, record: Record) -> None:
    """What each framework reaches here, matrix products and bandwidths; on a CPU also where freed memory is kept."""
    allocators = ("plain", "kept") if device["kind"] == "cpu" and allocator.available() else ("plain",)
    with ExitStack() as stack:
        workers = {}
        for wing, kept in itertools.product(("torch", "jax"), allocators):
            own = Worker(wing, threads=rules.threads, device=rules.device, memory=kept)
            workers[wing, kept] = stack.enter_context(own)
        started = at_once({who: [functools.partial(worker.ask, "start")] for who, worker in workers.items()})
        for (wing, kept), worker in workers.items():
            try:
                if isinstance(started[wing, kept], Exception):
                    raise started[wing, kept]
                for found in worker.ask("peaks", rules.device, rules.quick or rules.together):
                    record.add("peak", wing=wing, memory=kept, **found)
            except (UserError, WorkerFault) as error:
                record.add("skipped", what=f"peaks by {wing}", reason=sentence(error))
            worker.close()


def known(device: dict[str, str], record: Record) -> None:
    """The data sheet's peaks; that there is no GPU."""
    sheet = sheets.peak(device["name"])
    if sheet is not None and not gpu.sliced():  # a slice has the name of the whole
        record.add("peak", what="sheet", value={"name": device["name"], **sheet.flops, "bandwidth": sheet.bandwidth})
    if device["kind"] == "cpu" and not gpu.gpus():
        record.add("skipped", what=GPU, reason="this machine has none")
