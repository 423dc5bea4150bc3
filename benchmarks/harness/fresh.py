"""Cells whose every turn is a beginning in a process of its own: compiling, starting up, loading weights."""

import time
from dataclasses import replace

from benchmarks.harness import gate
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.contending import Refusals, Turn, contend
from benchmarks.harness.contest import Report, passed, unjudged
from benchmarks.harness.footprint import refused
from benchmarks.harness.judging import ORACLE
from benchmarks.harness.process import MODEL, Rules, process, sentence
from benchmarks.harness.recipe import Recipe, on_disk
from benchmarks.harness.record import Record
from benchmarks.harness.worker import Worker, WorkerFault
from common.config import Execution
from common.errors import UserError


def run(cell: Cell, rules: Rules, record: Record, report: Report) -> None:
    """Time one such cell; writes everything into the record."""
    report(cell.title, 0.0)
    record.add("cell", **cell.line())
    with on_disk(Recipe(cell.weights, cell.config, cell.seed)) as recipe:
        arms = {}
        refuse = Refusals(cell, record)
        report(f"{cell.title}: the judge", 0.0)
        try:
            wanted = judged(cell, recipe, rules)
        except (UserError, WorkerFault) as error:
            unjudged(cell, error, record)
            return
        for one in cell.contenders:
            with refuse.faults(one.name):
                report(f"{cell.title}: {one.title}", 0.0)
                shown = _told(one, cell, recipe, rules, record)
                reason = passed(cell, one, [shown], wanted, record)
                if reason is not None:
                    refuse.add(one.name, reason)
                    continue
                arms[one.name] = _turn(one, cell, recipe, rules)
        if cell.task == "compile" and rules.pressed:  # half a minute and more a turn: enough for medians
            rules = replace(rules, least=min(rules.least, FEW))
        contend(cell, arms, dict.fromkeys(arms, 1), False, rules, record)
        if cell.memory or rules.all_memory:
            report(f"{cell.title}: memory", 1.0)
            gone = refused(cell, record)
            for one in cell.contenders:
                if one.name not in gone:
                    _footprint(one, cell, recipe, rules, record)


def judged(cell: Cell, recipe: Recipe, rules: Rules) -> dict[str, gate.Digest]:
    """What the oracle says of the outputs of a cell's first call: logits, or the loss of a training step."""
    with Worker(ORACLE, threads=rules.threads) as worker:
        worker.ask("start")
        worker.ask("build", MODEL, recipe, Execution(dtype="float64"))
        return outputs(worker, cell)


def outputs(judge: Worker, cell: Cell) -> dict[str, gate.Digest]:
    """The same of a judge whose model is built."""
    judge.ask("prepare", MODEL, JUDGED[cell.task], *cell.tokens())
    return judge.ask("begin", MODEL, JUDGED[cell.task], 1)[1]


def _told(one: Contender, cell: Cell, recipe: Recipe, rules: Rules, record: Record) -> dict[str, gate.Digest]:
    """The first turn, which also tells how the contender computes: its outputs."""
    settings, versions = {}, {}
    try:
        with process(one, rules) as worker:
            started = worker.ask("start")
            versions = started["versions"]
            build = worker.ask("build", MODEL, recipe, one.execution(cell.dtype, rules.device, rules.threads))
            settings = worker.ask("settings", MODEL, *cell.shape)
            prepare(worker, cell)
            phases, outputs = worker.ask("begin", MODEL, TASKS[cell.task], 1)
            begun = {"import": started["import_seconds"], "build": build}
            record.add("phase", cell=cell.name, name=one.name, **begun, **phases)
            return outputs
    finally:  # who is refused is told too
        record.add("contender", cell=cell.name, **one.line(settings, versions))


FEW = 1  # blocks, of two turns each, where time is short: medians, and no verdict
TASKS = {"compile": "train", "start-up": "forward", "load": "forward"}
JUDGED = {**TASKS, "compile": "loss"}


def _footprint(one: Contender, cell: Cell, recipe: Recipe, rules: Rules, record: Record) -> None:
    """Peak memory of one beginning, in a process of its own: all of what `_turn` does after the import."""
    try:
        with process(one, rules) as worker:
            started = worker.ask("start")
            worker.ask("watch_memory")
            worker.ask("build", MODEL, recipe, one.execution(cell.dtype, rules.device, rules.threads))
            built = worker.ask("resident")
            if cell.task != "load":
                prepare(worker, cell)
                worker.ask("first", MODEL, TASKS[cell.task])
            found = worker.ask("watched_memory")
    except (UserError, WorkerFault) as error:
        record.add("skipped", what=f"memory of {one.name} in {cell.title}", reason=sentence(error))
        return
    values = {"import": started["bytes_after_import"], "build": built, "peak": found["bytes"], "how": found["how"]}
    values |= {"planned": None, "planned_how": "", "device": found["device_bytes"]}
    record.add("memory", cell=cell.name, name=one.name, **values)


def prepare(worker: Worker, cell: Cell) -> None:
    if cell.task == "compile":
        worker.ask("start_training", MODEL, TRAIN)
    worker.ask("prepare", MODEL, TASKS[cell.task], *cell.tokens())


def _turn(one: Contender, cell: Cell, recipe: Recipe, rules: Rules) -> Turn:
    """Seconds of one beginning: of the first training step less the next one (compiling), of everything from the start
    of the process to the first logits (start-up), or of reading the weights into a model (load)."""

    def turn(copy: int) -> float:
        begun = time.perf_counter()
        with process(one, rules) as worker:
            worker.ask("start")
            build = worker.ask("build", MODEL, recipe, one.execution(cell.dtype, rules.device, rules.threads))
            if cell.task == "load":
                return build
            prepare(worker, cell)
            first = worker.ask("first", MODEL, TASKS[cell.task])
            if cell.task == "start-up":
                return time.perf_counter() - begun
            return max(1e-6, first - worker.ask("first", MODEL, "train"))

    return turn
