"""A cell's task run once in this process, and its result held against the judge: the benchmarks as tests."""

import functools
from dataclasses import replace

from benchmarks.harness import fresh, gate, judging, process
from benchmarks.harness.cells import DECODING, FRESH, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.process import MODEL
from benchmarks.harness.recipe import Recipe, on_disk
from benchmarks.harness.service import Service
from common.config import Execution


class Here:
    """A service in this process, asked as a worker is."""

    def __init__(self, source: str):
        self.service = Service(source)

    def ask(self, method, *args, **options):
        return getattr(self.service, method)(*args, **options)


@functools.lru_cache(maxsize=4)
def _judge(source: str, recipe: Recipe) -> Here:
    """A judge that tasks leave as it is."""
    return _new_judge(source, recipe)


def _new_judge(source: str, recipe: Recipe) -> Here:
    judge = Here(source)
    judge.ask("start")
    judge.ask("build", MODEL, recipe, Execution(dtype="float64"))
    return judge


@functools.lru_cache(maxsize=8)
def _wanted(cell: Cell) -> dict[str, gate.Digest]:
    judge = (_new_judge if cell.task in process.CHANGING else _judge)(judging.judge(cell), recipe(cell))
    process.prepare(judge, cell)
    return judge.ask("begin", MODEL, cell.task, judging.GATE_CALLS.get(cell.task, 1))[1]


@functools.lru_cache(maxsize=8)
def _beginning(cell: Cell) -> dict[str, gate.Digest]:
    return fresh.outputs(_judge(judging.ORACLE, recipe(cell)), cell)


def recipe(cell: Cell) -> Recipe:
    return Recipe(cell.weights, cell.config, cell.seed)


def check(cell: Cell, one: Contender) -> None:
    """Raises AssertionError with the gate's sentence if the contender's result is not the judge's."""
    own, mine = Here(one.source), cell.of(one)
    own.ask("start")
    here = one.execution(cell.dtype, "cpu", None).with_(allocator="plain")  # of this process, whatever it has
    if cell.task in FRESH:
        with on_disk(recipe(mine)) as stored:  # beginnings read files
            own.ask("build", MODEL, stored, here)
            fresh.prepare(own, cell)
            _, shown = own.ask("begin", MODEL, fresh.TASKS[cell.task], 1)
        refusal = gate.refusal(judging.verdicts(mine, one, shown, _beginning(cell)), mine.dtype, "the oracle")
        assert refusal is None, refusal
        return
    own.ask("build", MODEL, recipe(mine), here)
    process.prepare(own, cell)
    _, shown = own.ask("begin", MODEL, cell.task, judging.GATE_CALLS.get(cell.task, 1))
    if cell.task in DECODING:
        judge, ids = _judge(judging.ORACLE, recipe(mine)), cell.tokens()[0]
        found = judging.choice(mine, shown["tokens"], lambda tokens: judge.ask("regret", MODEL, ids, tokens))
    else:
        found = judging.verdicts(mine, one, shown, _wanted(replace(cell, config=mine.config)))
    refusal = gate.refusal(found, mine.dtype, judging.judge_title(cell))
    assert refusal is None, refusal
