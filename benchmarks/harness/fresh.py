"""Cells whose every turn is a beginning in a process of its own: compiling, starting up, loading weights."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import timing
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.contest import MODEL, Report, Rules, _sentence
from benchmarks.harness.recipe import Recipe, write_arrays
from benchmarks.harness.record import Record
from benchmarks.harness.worker import Worker, WorkerFault
from common.errors import UserError


def run(cell: Cell, rules: Rules, record: Record, report: Report) -> None:
    """Time one such cell; writes everything into the record."""
    report(cell.title, 0.0)
    record.add("cell", **cell.line())
    with TemporaryDirectory() as folder:
        recipe = Recipe("initial", cell.config, cell.seed)
        if cell.task == "load":
            path = str(Path(folder) / "weights.safetensors")
            write_arrays(path, dict(recipe.weights()))
            recipe = Recipe("file", cell.config, path=path)
        arms = {}
        for one in cell.contenders:
            try:
                seconds = _told(one, cell, recipe, rules, record)
            except (UserError, WorkerFault) as error:
                record.add("refused", cell=cell.name, name=one.name, reason=_sentence(error))
                continue
            arms[one.name] = _turn(one, cell, recipe, rules)
            report(f"{cell.title}: {one.title} {seconds:.1f} s", 0.0)
        match = timing.Contest(arms, rules.seed, mirrored=False)

        def keep(block: timing.Block) -> None:
            number = len(match.blocks) - 1
            record.add("block", cell=cell.name, block=number, calls=dict.fromkeys(arms, 1), turns=timing.rows(block))

        if arms:
            match.run(rules.seconds, rules.least, each=keep)


def _told(one: Contender, cell: Cell, recipe: Recipe, rules: Rules, record: Record) -> float:
    """The first turn, which also tells how the contender computes."""
    with Worker(one.source, threads=rules.threads, device=rules.device) as worker:
        started = worker.ask("start")
        build = worker.ask("build", MODEL, recipe, one.execution(cell.dtype, rules.device, rules.threads))
        told = {"settings": worker.ask("settings", MODEL), "versions": started["versions"]}
        phases = {"import": started["import_seconds"], "build": build}
        if cell.task != "load":
            _prepare(worker, cell)
            first, _ = worker.ask("begin", MODEL, TASKS[cell.task], 1)
            record.add("phase", cell=cell.name, name=one.name, **phases, **first)
    about = {"title": one.title, "wing": one.wing, "mode": one.mode, "lower_bound": one.lower_bound}
    record.add("contender", cell=cell.name, name=one.name, **about, **told)
    return build


TASKS = {"compile": "train", "start-up": "forward"}


def _prepare(worker: Worker, cell: Cell) -> None:
    if cell.task == "compile":
        worker.ask("start_training", MODEL, TRAIN)
    worker.ask("prepare", MODEL, TASKS[cell.task], *cell.tokens())


def _turn(one: Contender, cell: Cell, recipe: Recipe, rules: Rules) -> Callable[[], float]:
    """Seconds of one beginning: of the first training step less the next one (compiling), of everything from the start
    of the process to the first logits (start-up), or of reading the weights into a model (load)."""

    def turn() -> float:
        begun = time.perf_counter()
        with Worker(one.source, threads=rules.threads, device=rules.device) as worker:
            worker.ask("start")
            build = worker.ask("build", MODEL, recipe, one.execution(cell.dtype, rules.device, rules.threads))
            if cell.task == "load":
                return build
            _prepare(worker, cell)
            first = worker.ask("first", MODEL, TASKS[cell.task])
            if cell.task == "start-up":
                return time.perf_counter() - begun
            return max(1e-6, first - worker.ask("first", MODEL, "train"))

    return turn
