"""Cells that share their contenders: a process for each contender, the gate, the clock, and memory afterwards.

Every contender builds its model once from the same recipe. Nobody is timed whose outputs the judge refuses; whoever
fails at anything is refused with a sentence, and the others go on.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import following, footprint, gate, timing
from benchmarks.harness.cells import DECODING, FRESH, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.contending import Refusals, Turn, contend
from benchmarks.harness.judging import (
    GATE_CALLS,
    ORACLE,
    Recipes,
    Report,
    Wanted,
    choice,
    chosen_keys,
    judge_title,
    verdicts,
    wanted_of,
)
from benchmarks.harness.process import CHANGING, MODEL, Beginning, Rules, prepare, process, sentence
from benchmarks.harness.recipe import Recipe, on_disk
from benchmarks.harness.record import Again, Record
from benchmarks.harness.together import at_once
from benchmarks.harness.worker import Worker, WorkerFault
from common.config import Execution
from common.errors import UserError

WARM_CALLS, ANY = 10, 1_000_000
NO_TIME = "there was no time left"
_judging = threading.Lock()  # a judge takes all cores, also where cells begin side by side


@contextmanager
def workers(
    contenders: Sequence[Contender], rules: Rules, processes: int, places: Mapping[str, str]
) -> Iterator[dict[str, list[Worker]]]:
    """So many processes for each contender, by name, not yet started; `places` are theirs for what they compile."""
    with ExitStack() as stack:
        yield {
            one.name: [stack.enter_context(process(one, rules, places[one.name])) for _ in range(processes)]
            for one in contenders
        }


def run(
    cells: Sequence[Cell], rules: Rules, record: Record, report: Report, processes: int = 2, rounds: int = 1
) -> None:
    """Time cells that share model, precision and contenders; writes everything into the record. With two `processes`
    the copies of a contender live apart, and what they differ by is what one process of it differs by from the next;
    where memory does not allow that, both are turns of one, and in the second of two `rounds` of another."""
    for cell in cells:
        record.add("cell", **cell.line(), processes=processes)
    for _ in stages(cells, rules, record, report, processes, rounds=rounds):
        continue


def stages(
    cells: Sequence[Cell],
    rules: Rules,
    record: Record,
    report: Report,
    processes: int,
    late: Callable[[], bool] = lambda: False,
    rounds: int = 1,
) -> Iterator[None]:
    """The same in three: all is ready to time the first cell; all are timed, unless it is `late` before one is, and
    named; memory is measured, and further rounds. Where contenders begin together memory is no stage of its own."""
    first = cells[0]
    with ExitStack() as stack, TemporaryDirectory() as folder:
        made = {config: Recipe(first.weights, config, first.seed) for config in first.configs}
        recipes = {config: stack.enter_context(on_disk(recipe)) for config, recipe in made.items()}
        places = {one.name: f"{folder}/{number}" for number, one in enumerate(first.contenders)}
        rules = rules.part(rounds)
        yield from _stages(cells, recipes, rules, record, report, processes, places, late)
        for number in range(1, rounds):
            list(_stages(cells, recipes, rules, Again(record), report, processes, places, late, number))


def _stages(
    cells, recipes: Recipes, rules: Rules, record: Record, report: Report, processes: int, places, late, number=0
):
    first, told, left = cells[0], set(), cells[:0]
    with workers(first.contenders, rules, processes, places) as own:
        try:
            wanted, begun = _judged_and_begun(cells, own, recipes, rules, record, report)
        except (UserError, WorkerFault) as error:
            for cell in cells:
                unjudged(cell, error, record)
            return
        for place, cell in enumerate(cells):
            if place and late():
                left = cells[place:]
                break
            report(cell.title, place / len(cells))
            mine = {name: own[name] for name in begun if name not in footprint.refused(cell, record)}
            shown = _admitted(cell, mine, begun, wanted, recipes, rules, record)
            if not place:
                yield
            elif late():  # while it was compiled
                left = cells[place:]
                break
            _timed(cell, {name: own[name] for name in shown}, shown, wanted, rules, record, number)
            if rules.together and cell.memory and _did_nothing_else(place, cell) and not late():
                footprint.ask(cell, {name: own[name][0] for name in shown}, begun, record)
                told.add(cell.name)
    if number:
        return
    if not rules.together:
        yield
    for cell in left:
        record.add("skipped", what=cell.title, reason=NO_TIME)
    for cell in cells[: len(cells) - len(left)]:
        if cell.task in FRESH or not (cell.memory or rules.all_memory) or cell.name in told:
            continue
        if late():
            record.add("skipped", what=f"memory in {cell.title}", reason=NO_TIME)
            continue
        report(f"{cell.title}: memory", 1.0)
        footprint.measure(cell, recipes, rules, record, places)


def _did_nothing_else(number: int, cell: Cell) -> bool:
    """Whether the processes that were timed have had no work but this cell's, so that a peak which cannot be reset is
    its own: JAX's on a GPU. Who decodes was also asked for logits of the prompts, by a program of their own."""
    return number == 0 and cell.task not in DECODING


def _judged_and_begun(cells, own, recipes: Recipes, rules: Rules, record: Record, report: Report):
    """What the judge says, and then who has begun; side by side where memory is not the limit."""

    def judged() -> Wanted:
        with _judging:
            return wanted_of(cells, recipes, rules, report)

    def begun() -> dict[str, Beginning]:
        return _begin(cells[0], own, recipes, rules, cells, record)

    if not rules.together:
        return judged(), begun()
    found = at_once({"judged": [judged], "begun": [begun]}, 2)
    for one in found.values():
        if isinstance(one, Exception):
            raise one
    return found["judged"][0], found["begun"][0]


def unjudged(cell: Cell, error: Exception, record: Record) -> None:
    """Refuse everybody, for there is no judge."""
    told = {line["name"] for line in record.lines if line["kind"] == "contender" and line["cell"] == cell.name}
    for one in cell.contenders:
        if one.name not in told:
            record.add("contender", cell=cell.name, **one.line({}, {}))
        Refusals(cell, record).add(one.name, f"there is nobody to judge it: {sentence(error)}")


def _begin(first: Cell, own, recipes: Recipes, rules: Rules, cells, record: Record) -> dict[str, Beginning]:
    """Start every contender and build its model: what that took, by contender, of its first process. Who cannot is
    refused in all cells."""
    begun: dict[str, Beginning] = {}

    def built(one: Contender, worker: Worker) -> tuple[dict[str, Any], float, int | None, dict[str, dict[str, Any]]]:
        started = worker.ask("start")
        execution = one.execution(first.dtype, rules.device, rules.threads)
        build = worker.ask("build", MODEL, recipes[first.config_of(one)], execution)
        resident = worker.ask("resident") if rules.together else None
        return started, build, resident, {cell.name: worker.ask("settings", MODEL, *cell.shape) for cell in cells}

    def refuse(name: str, error: Exception) -> None:
        begun.pop(name, None)
        for cell in cells:
            Refusals(cell, record).add(name, sentence(error))

    work = {one.name: [functools.partial(built, one, own[one.name][0])] for one in first.contenders}
    answers = at_once(work, _abreast(work, rules))
    for one in first.contenders:
        found = answers[one.name]
        if isinstance(found, Exception):
            started, settings = {"versions": {}}, {}
            refuse(one.name, found)
        else:
            ((started, build, resident, settings),) = found
            seconds = {"import": started["import_seconds"], "build": build}
            begun[one.name] = Beginning(seconds, started["bytes_after_import"], resident)
        if one.name in begun and started["threads"] not in (None, rules.threads):
            told = f"it computes with {started['threads']} threads where {rules.threads} are asked for."
            refuse(one.name, UserError(told))
        for cell in cells:
            record.add("contender", cell=cell.name, **one.line(settings.get(cell.name, {}), started["versions"]))
    more = {
        one.name: [functools.partial(built, one, worker) for worker in own[one.name][1:]]
        for one in first.contenders
        if one.name in begun
    }
    for name, found in at_once(more).items():
        if isinstance(found, Exception):
            refuse(name, found)
    return begun


def _admitted(cell: Cell, own, begun, wanted: Wanted, recipes: Recipes, rules: Rules, record: Record):
    """First calls and gate of one cell: what those who passed gave, by name."""
    refuse = Refusals(cell, record)
    shown = _first_calls(cell, own, begun, refuse, rules, record)
    logits = _prompts_logits(cell, own, shown, refuse, rules) if cell.task in DECODING else {}
    of_name = {one.name: one for one in cell.contenders}
    try:
        with _judging:
            judgement = _verdicts(cell, shown, logits, wanted, recipes, rules)
    except (UserError, WorkerFault) as error:
        for name in shown:
            refuse.add(name, f"there is nobody to judge it: {sentence(error)}")
        return {}
    for name, all_verdicts in judgement.items():
        reason = _entered(cell.of(of_name[name]), name, all_verdicts, record)
        if reason is not None:
            refuse.add(name, reason)
            del shown[name]
    return shown


def _timed(cell: Cell, own, shown, wanted: Wanted, rules: Rules, record: Record, number: int = 0) -> None:
    """Warm-up and contest of one cell, a round of it."""
    refuse = Refusals(cell, record)
    steady: dict[str, float] = {}
    for name in own:
        with refuse.faults(name):
            most = WARM_CALLS if rules.device == "cpu" else ANY  # a GPU's clock rises with seconds, not with calls
            rule = min(1.0, rules.seconds / 8), 2 if rules.quick else 3, most
            steady[name] = max(worker.ask("warm", MODEL, cell.task, *rule) for worker in own[name])
    how = {name: timing.turns(seconds, rules.short) for name, seconds in steady.items()}
    arms = {name: _turn(own[name], cell.task, *how[name]) for name in steady}
    mirrored = max(steady.values(), default=0.0) < timing.LONG_CALL
    contend(cell, arms, {name: calls for name, (calls, _) in how.items()}, mirrored, rules, record, number)
    timed = {name: own[name] for name in arms}
    if cell.task in CHANGING:
        _still_working(cell, timed, refuse)
    else:
        _still_right(cell, timed, shown, wanted, refuse, rules)


def _prompts_logits(cell: Cell, own, shown, refuse: Refusals, rules: Rules) -> dict[str, Any]:
    """What the first process of every contender gives for the prompts alone, and what it chooses there where its layers
    choose keys; who cannot is no longer shown."""
    found: dict[str, Any] = {}
    choosing = {one.name for one in cell.contenders if following.chooses(cell.config_of(one))}
    ids, _ = cell.tokens()
    for call in ("prefilled", "chosen"):
        those = [name for name in shown if call == "prefilled" or name in choosing]
        asked = {name: [functools.partial(own[name][0].ask, call, MODEL, ids)] for name in those}
        for name, told in at_once(asked, _abreast(asked, rules)).items():
            if isinstance(told, Exception):
                refuse.add(name, sentence(told))
                del shown[name]
            else:
                found.setdefault(name, []).extend(told)
    return found


def _abreast(work: Mapping[str, Any], rules: Rules) -> int:
    """How many of these begin at once: all, or one after the other."""
    return max(1, len(work)) if rules.together else 1


def _still_right(cell: Cell, own, shown, wanted, refuse: Refusals, rules: Rules) -> None:
    """One more call of every process after the contest, whose outputs must pass as the first ones did: tokens are those
    that passed."""
    of_name = {one.name: one for one in cell.contenders}
    again = {n: [functools.partial(one.ask, "again", MODEL, cell.task) for one in ones] for n, ones in own.items()}
    for name, answers in at_once(again, _abreast(again, rules)).items():
        with refuse.faults(name):
            if isinstance(answers, Exception):
                raise answers
            for found, first in zip(answers, shown[name], strict=True):
                if cell.task in DECODING:
                    reason = None if found["tokens"] == first else "other tokens than before"
                else:
                    one = of_name[name]
                    due = wanted[cell.name, cell.config_of(one)]
                    reason = gate.refusal(verdicts(cell.of(one), one, found, due), cell.dtype, judge_title(cell))
                if reason is not None:
                    raise UserError(f"{name}, after it was timed: {reason}")


def _still_working(cell: Cell, own, refuse: Refusals) -> None:
    """Of a task that changes its model, two more calls of every process after the contest: they must give numbers, and
    the second call other ones than the first."""
    for name, processes in own.items():
        with refuse.faults(name):
            for worker in processes:
                first, second = (worker.ask("again", MODEL, cell.task) for _ in range(2))
                if not all(digest.finite for digest in second.values()):
                    raise UserError(f"{name}, after it was timed, gives what is no number.")
                if first == second:
                    raise UserError(f"{name}, after it was timed, changes its model no more: it has stopped working.")


def _first_calls(cell: Cell, own, begun, refuse: Refusals, rules: Rules, record: Record) -> dict[str, list[Any]]:
    """What the first calls of every process give, by contender; how long they take, of its first process."""
    shown: dict[str, list[Any]] = {}

    def begin(worker: Worker) -> tuple[dict[str, Any], Any]:
        prepare(worker, cell)
        phases, outputs = worker.ask("begin", MODEL, cell.task, GATE_CALLS.get(cell.task, 1))
        return phases, outputs["tokens"] if cell.task in DECODING else outputs

    first = {name: [functools.partial(begin, worker)] for name, (worker, *_) in own.items()}
    for name, found in at_once(first, _abreast(first, rules)).items():
        if isinstance(found, Exception):
            refuse.add(name, sentence(found))
            continue
        ((phases, outputs),) = found
        shown[name] = [outputs]
        record.add("phase", cell=cell.name, name=name, **begun[name].seconds, **phases)
    more = {name: [functools.partial(begin, worker) for worker in own[name][1:]] for name in shown}
    for name, found in at_once(more).items():
        if isinstance(found, Exception):
            refuse.add(name, sentence(found))
            del shown[name]
        else:
            shown[name] += [outputs for _, outputs in found]
    return shown


def _turn(processes: Sequence[Worker], task: str, calls: int, burn_in: int) -> Turn:
    return lambda copy: processes[copy % len(processes)].ask("sample", MODEL, task, calls, burn_in, timing.GAP)


def _verdicts(
    cell: Cell, shown: Mapping[str, list[Any]], logits, wanted: Wanted, recipes: Recipes, rules: Rules
) -> dict[str, list[list[gate.Verdict]]]:
    """The gate's verdicts on what every process of every contender gave: {name: [[verdict, …], …]}. Tokens do not tell
    how precisely they were computed: `logits` of the prompts do, from the first process of each."""
    own = {one.name: one for one in cell.contenders if one.name in shown}
    if cell.task not in DECODING:
        due = {name: wanted[cell.name, cell.config_of(one)] for name, one in own.items()}
        return {
            name: [verdicts(cell.of(own[name]), own[name], digests, due[name]) for digests in all_digests]
            for name, all_digests in shown.items()
        }
    found: dict[str, list[list[gate.Verdict]]] = {}
    for config in {cell.config_of(one) for one in own.values()}:
        mine = [one for one in own.values() if cell.config_of(one) == config]
        with Worker(ORACLE, threads=rules.threads) as worker:
            found |= _chosen(cell, mine, shown, logits, recipes[config], worker)
    return {name: found[name] for name in shown}


def _chosen(cell: Cell, those: Sequence[Contender], shown, logits, recipe: Recipe, worker: Worker):
    """The verdicts of the oracle in that process on tokens, and on logits, of contenders that have one model."""
    ids, _ = cell.tokens()
    worker.ask("start")
    worker.ask("build", MODEL, recipe, Execution(dtype="float64"))
    own_choices = worker.ask("prefilled", MODEL, ids)

    def told(one: Contender) -> list[gate.Verdict]:
        """The verdicts on logits, and on the choices with which they were computed."""
        digest, *choices = logits[one.name]
        if not choices:
            return verdicts(cell.of(one), one, digest, own_choices)
        due, worst = worker.ask("followed", MODEL, ids, *choices)
        return [chosen_keys(cell.of(one), worst), *verdicts(cell.of(one), one, digest, due)]

    @functools.cache  # most contenders choose the same tokens
    def regret(tokens: tuple[tuple[int, ...], ...]) -> float:
        return worker.ask("regret", MODEL, ids, tokens)

    return {
        one.name: [choice(cell.of(one), rows, regret) + more for rows in shown[one.name]]
        for one in those
        for more in [told(one)]
    }


def _entered(cell: Cell, name: str, all_verdicts: Sequence[list[gate.Verdict]], record: Record) -> str | None:
    """Write down the verdicts on a contender's first process; why it is refused, if one of its processes is."""
    for one in all_verdicts[0]:
        limits = {"error": _plain(one.error), "least": one.least, "bound": one.bound, "passed": one.passed}
        against = "the oracle" if cell.task == "train" and one.what == "loss" else judge_title(cell)
        record.add("gate", cell=cell.name, name=name, against=against, what=one.what, **limits)
    reasons = [gate.refusal(verdicts, cell.dtype, judge_title(cell)) for verdicts in all_verdicts]
    return next((f"{name}: {reason}" for reason in reasons if reason is not None), None)


def passed(cell: Cell, one: Contender, shown: Sequence[Any], wanted: Any, record: Record) -> str | None:
    """The gate for digests of outputs: writes its verdicts into the record; why the contender is refused, if it is."""
    return _entered(cell, one.name, [verdicts(cell, one, digests, wanted) for digests in shown], record)


def _plain(number: float) -> float | None:
    return number if number == number and abs(number) != float("inf") else None
