"""Cells that share their contenders: a process for each contender, the gate, the clock, and memory afterwards.

Every contender builds its model once from the same recipe. Nobody is timed whose outputs the judge refuses; whoever
fails at anything is refused with a sentence, and the others go on.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness import gate, timing
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.harness.worker import Worker, WorkerFault
from common.config import Execution
from common.errors import UserError

Report = Callable[[str, float], None]
MODEL = "model"
GATE_CALLS = {"train": 2}  # the second loss depends on the first step's update
ORACLE_JUDGES = ("forward", "prefill", "loss", "decode")  # of the rest it has no fast enough form
CHANGING = ("train", "optimizer")  # tasks that change their model
ELEMENTWISE = ("dropout", "sample")
NATIVE = "native"
ORACLE = "numpy"


@dataclass(frozen=True)
class Rules:
    """How long and on what: seconds and least blocks of a cell, threads, device; `quick` takes fewer and shorter."""

    threads: int
    device: str = "cpu"
    seconds: float = 30.0
    least: int = 5
    quick: bool = False
    seed: int = 0


@contextmanager
def workers(contenders: Sequence[Contender], rules: Rules) -> Iterator[dict[str, Worker]]:
    """A process for each contender, by name, not yet started."""
    with ExitStack() as stack:
        yield {
            one.name: stack.enter_context(Worker(one.source, threads=rules.threads, device=rules.device))
            for one in contenders
        }


def run(cells: Sequence[Cell], rules: Rules, record: Record, report: Report) -> None:
    """Time cells that share model, precision and contenders; writes everything into the record."""
    first = cells[0]
    recipe = Recipe("initial", first.config, first.seed)
    for cell in cells:
        record.add("cell", **cell.line())
    wanted = _judged(cells, recipe, rules, report)
    with workers(first.contenders, rules) as own:
        begun = _begin(first, own, recipe, rules, cells, record)
        for number, cell in enumerate(cells):
            report(cell.title, number / len(cells))
            ready = [one for one in first.contenders if one.name in begun]
            _cell(cell, {one.name: own[one.name] for one in ready}, begun, wanted, recipe, rules, record)
    for cell in cells:
        if cell.memory:
            report(f"{cell.title}: memory", 1.0)
            _memory(cell, recipe, rules, record)


def _begin(first: Cell, own, recipe, rules: Rules, cells, record: Record) -> dict[str, dict[str, float]]:
    """Start every contender and build its model: seconds by contender. Who cannot is refused in all cells."""
    begun = {}
    for one in first.contenders:
        try:
            started = own[one.name].ask("start")
            build = own[one.name].ask("build", MODEL, recipe, one.execution(first.dtype, rules.device, rules.threads))
            settings = own[one.name].ask("settings", MODEL)
            begun[one.name] = {"import": started["import_seconds"], "build": build}
        except (UserError, WorkerFault) as error:
            started, settings = {"versions": {}}, {}
            for cell in cells:
                Refusals(cell, record).add(one.name, sentence(error))
        for cell in cells:
            record.add("contender", cell=cell.name, **one.line(settings, started["versions"]))
    return begun


def _judged(cells: Sequence[Cell], recipe: Recipe, rules: Rules, report: Report) -> dict[str, dict[str, gate.Digest]]:
    """What the float64 judge says of every cell, before anybody else takes memory."""
    found: dict[str, dict[str, gate.Digest]] = {}
    for name in dict.fromkeys(map(judge, cells)):
        with Worker(name, threads=rules.threads) as worker:
            worker.ask("start")
            for cell in cells:
                if judge(cell) == name and cell.task != "decode":
                    worker.ask("build", MODEL, recipe, Execution(dtype="float64"))
                    report(f"{cell.title}: the judge", 0.0)
                    prepare(worker, cell)
                    _, found[cell.name] = worker.ask("begin", MODEL, cell.task, GATE_CALLS.get(cell.task, 1))
    return found


def prepare(worker: Worker, cell: Cell) -> None:
    """Get the cell's task ready in a worker whose model is built."""
    if cell.task in CHANGING:
        worker.ask("start_training", MODEL, TRAIN)
    worker.ask("prepare", MODEL, cell.task, *cell.inputs(), cell.sampling if cell.task == "decode" else None)


def _cell(cell: Cell, own, begun, wanted, recipe: Recipe, rules: Rules, record: Record) -> None:
    """First calls, gate, warm-up, contest of one cell."""
    refuse = Refusals(cell, record)
    shown = {}
    for name, worker in own.items():
        with refuse.faults(name):
            prepare(worker, cell)
            phases, outputs = worker.ask("begin", MODEL, cell.task, GATE_CALLS.get(cell.task, 1))
            shown[name] = outputs["tokens"] if cell.task == "decode" else outputs
            record.add("phase", cell=cell.name, name=name, **begun[name], **phases)
    steady = {}
    for name, verdicts in _verdicts(cell, shown, wanted, recipe, rules).items():
        for one in verdicts:
            limits = {"error": _plain(one.error), "least": one.least, "bound": one.bound, "passed": one.passed}
            record.add("gate", cell=cell.name, name=name, against=judge_title(cell), what=one.what, **limits)
        reason = gate.refusal(verdicts, cell.dtype, judge_title(cell))
        if reason:
            refuse.add(name, f"{name}: {reason}")
            continue
        with refuse.faults(name):
            seconds = min(1.0, rules.seconds / 8)
            steady[name] = own[name].ask("warm", MODEL, cell.task, seconds, 2 if rules.quick else 3, 10)
    how = {name: timing.turns(seconds) for name, seconds in steady.items()}
    arms = {name: _turn(own[name], cell.task, *how[name]) for name in steady}
    mirrored = max(steady.values(), default=0.0) < timing.LONG_CALL
    contend(cell, arms, {name: calls for name, (calls, _) in how.items()}, mirrored, rules, record)


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


Turn = Callable[[], float]


def contend(
    cell: Cell, arms: Mapping[str, Turn], calls: Mapping[str, int], mirrored: bool, rules: Rules, record: Record
) -> None:
    """Blocks of turns, by `calls` calls each. A contender that fails in a turn is refused; if that was in the first
    block the others begin again without it, and later what they did stays."""
    alive = {name: _guarded(name, turn) for name, turn in arms.items()}
    while alive:
        match = timing.Contest(alive, rules.seed, mirrored)

        def keep(block: timing.Block, match=match) -> None:
            number, own = len(match.blocks) - 1, {name: calls[name] for name in match.arms}
            record.add("block", cell=cell.name, block=number, calls=own, turns=timing.rows(block))

        try:
            match.run(rules.seconds, rules.least, each=keep)
            return
        except Failed as failed:
            Refusals(cell, record).add(failed.name, sentence(failed.error))
            if match.blocks:
                return
            alive = {name: turn for name, turn in alive.items() if name != failed.name}


class Failed(Exception):
    """A contender that could not finish its turn."""

    def __init__(self, name: str, error: Exception):
        self.name, self.error = name, error


def _guarded(name: str, turn: Turn) -> Turn:
    def run() -> float:
        try:
            return turn()
        except (UserError, WorkerFault) as error:
            raise Failed(name, error) from error

    return run


def _turn(worker: Worker, task: str, calls: int, burn_in: int) -> Turn:
    return lambda: worker.ask("sample", MODEL, task, calls, burn_in, timing.GAP)


def judge(cell: Cell) -> str:
    """The backend that judges a cell."""
    return ORACLE if cell.task in ORACLE_JUDGES else "torch"


def judge_title(cell: Cell) -> str:
    """Who judges a cell, in words."""
    return "the oracle" if judge(cell) == ORACLE else "PyTorch in float64"


def _verdicts(cell: Cell, shown, wanted, recipe: Recipe, rules: Rules) -> dict[str, list[gate.Verdict]]:
    if cell.task != "decode":
        own = {one.name: one for one in cell.contenders}
        return {name: verdicts(cell, own[name], digests, wanted[cell.name]) for name, digests in shown.items()}
    if not shown:
        return {}
    with Worker(ORACLE, threads=rules.threads) as worker:
        worker.ask("start")
        worker.ask("build", MODEL, recipe, Execution(dtype="float64"))
        ids, _ = cell.tokens()

        @functools.cache  # most contenders choose the same tokens
        def regret(tokens: tuple[tuple[int, ...], ...]) -> float:
            return worker.ask("regret", MODEL, ids, tokens)

        return {name: [choice(cell, regret(tuple(map(tuple, rows))))] for name, rows in shown.items()}


def verdicts(cell: Cell, one: Contender, shown: Any, wanted: Any) -> list[gate.Verdict]:
    """What the gate says of a contender's outputs; those drawn by a generator of its own can only be as many."""
    if one.options.get("rng") == NATIVE:
        return gate.judge_drawn(shown, wanted)
    found = gate.judge(shown, wanted, cell.dtype, cell.config, sums=cell.task not in ELEMENTWISE)
    # what a later call gives is named "loss 2"
    return [
        replace(one_of, bound=max(one_of.bound, one.allowed.get(one_of.what.partition(" ")[0], 0.0)))
        for one_of in found
    ]


def choice(cell: Cell, regret: float) -> gate.Verdict:
    """Chosen tokens may lie below the oracle's largest logit by what two logits can be off."""
    return gate.Verdict("choice of tokens", regret, 0.0, 2 * gate.bounds(cell.dtype, cell.config.num_layers, 1)[1])


def _memory(cell: Cell, recipe: Recipe, rules: Rules, record: Record) -> None:
    """Peak memory of every contender in a process of its own: after import, after building, and in a steady call."""
    refused = {line["name"] for line in record.lines if line["kind"] == "refused" and line["cell"] == cell.name}
    for one in cell.contenders:
        if one.name in refused:
            continue
        try:
            with Worker(one.source, threads=rules.threads, device=rules.device) as worker:
                started = worker.ask("start")
                worker.ask("build", MODEL, recipe, one.execution(cell.dtype, rules.device, rules.threads))
                built = worker.ask("resident")
                prepare(worker, cell)
                worker.ask("first", MODEL, cell.task)
                found = worker.ask("peak", MODEL, cell.task, 2)
                planned, how = worker.ask("planned", MODEL, cell.task, *cell.tokens())
        except (UserError, WorkerFault) as error:
            record.add("skipped", what=f"memory of {one.name} in {cell.title}", reason=sentence(error))
            continue
        values = {"import": started["bytes_after_import"], "build": built, "peak": found["bytes"], "how": found["how"]}
        more = {"planned": planned, "planned_how": how, "device": found["device_bytes"]}
        record.add("memory", cell=cell.name, name=one.name, **values, **more)


def sentence(error: Any) -> str:
    """An error as one sentence: of a fault of ours, its last line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if isinstance(error, WorkerFault) else " ".join(lines))[:400]


def _plain(number: float) -> float | None:
    return number if number == number and abs(number) != float("inf") else None
