"""Who judges the outputs of a cell, and what it says of them: verdicts of the gate."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.harness import gate
from benchmarks.harness.cells import DATA, DECODING, FRESH, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.process import MODEL, Rules, prepare
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.worker import Worker
from common.config import Execution, ModelConfig

Report = Callable[[str, float], None]
Recipes = Mapping[ModelConfig, Recipe]  # of every model of a cell
Wanted = dict[tuple[str, ModelConfig], dict[str, gate.Digest]]  # by a cell's name and a model of it

ORACLE = "numpy"
ORACLE_JUDGES = ("forward", "prefill", "loss", *DECODING)  # of the rest it has no fast enough form
ELEMENTWISE = ("dropout", "sample", "optimizer", "component", *DATA)  # which may well be exact
OTHERS = "benchmarks.outside.data:judge"
NATIVE = "native"
GATE_CALLS = {"train": 2}  # the second loss depends on the first step's update


def judge(cell: Cell) -> str:
    """The backend that judges a cell."""
    if cell.task in DATA:
        return OTHERS
    return ORACLE if cell.task in (*ORACLE_JUDGES, *FRESH) else "torch"


def judge_title(cell: Cell) -> str:
    """Who judges a cell, in words."""
    if cell.task in DATA:
        return "a plain form of it"
    return "the oracle" if judge(cell) == ORACLE else "PyTorch in float64"


def wanted_of(cells: Sequence[Cell], recipes: Recipes, rules: Rules, report: Report) -> Wanted:
    """What the float64 judge says of every cell and model, before anybody else takes memory; once for all cells of a
    run whose work is the same."""
    pairs = [pair for pair in itertools.product(cells, recipes.items()) if pair[0].task not in DECODING]
    work = {(cell.name, config): _same_work(cell, config) for cell, (config, _) in pairs}
    first = {same: pair for pair in reversed(pairs) if (same := work[pair[0].name, pair[1][0]]) not in rules.judged}
    new = list(reversed(first.values()))
    told: dict[Any, dict[str, gate.Digest]] = {}
    for name in dict.fromkeys(judge(cell) for cell, _ in new):
        with Worker(name, threads=rules.threads) as worker:
            worker.ask("start")
            for cell, (config, recipe) in new:
                if judge(cell) == name:
                    worker.ask("build", MODEL, recipe, Execution(dtype="float64"))
                    report(f"{cell.title}: the judge", 0.0)
                    prepare(worker, cell)
                    calls = GATE_CALLS.get(cell.task, 1)
                    _, told[work[cell.name, config]] = worker.ask("begin", MODEL, cell.task, calls)
    for cell, (config, recipe) in new:
        if cell.task == "train":  # its judge is a wing: the loss that all begin with is the oracle's word
            with Worker(ORACLE, threads=rules.threads) as worker:
                worker.ask("start")
                worker.ask("build", MODEL, recipe, Execution(dtype="float64"))
                worker.ask("prepare", MODEL, "loss", *cell.tokens())
                told[work[cell.name, config]] |= worker.ask("begin", MODEL, "loss", 1)[1]
    rules.judged.update(told)
    return {place: rules.judged[same] for place, same in work.items()}


def _same_work(cell: Cell, config: ModelConfig) -> tuple[Any, ...]:
    """What a judge's word on a cell depends on."""
    return cell.task, config, cell.config, cell.batch, cell.length, cell.path, cell.weights, cell.seed


def verdicts(cell: Cell, one: Contender, shown: Any, wanted: Any) -> list[gate.Verdict]:
    """What the gate says of a contender's outputs; those drawn by a generator of its own can only be as many."""
    if one.options.get("rng") == NATIVE:
        return gate.judge_drawn(shown, wanted, cell.config.vocab_size)
    found = gate.judge(shown, wanted, arithmetic(cell, one), cell.config, sums=cell.task not in ELEMENTWISE)
    return [replace(own, bound=max(own.bound, one.allowed.get(kind(own.what), 0.0))) for own in found]


def arithmetic(cell: Cell, one: Contender) -> str:
    """The precision by whose errors a contender is judged: its own, or that to which products cut their factors."""
    return gate.CUT if one.options.get("products") == gate.CUT else cell.dtype


def kind(what: str) -> str:
    """What an output is: "loss" of "loss 2" (of a second call), "exp_avg" of "exp_avg/model.norm.weight"."""
    return what.partition(" ")[0].partition("/")[0]


def choice(cell: Cell, rows: Sequence[Sequence[int]], regret: Callable[[tuple[tuple[int, ...], ...]], float]):
    """The verdicts on chosen tokens: as many as were asked for, from the vocabulary, and below the oracle's largest
    logit by no more than what two logits can be off. `regret(tokens)` says by how much they are below it."""
    whole = len(rows) == cell.batch and all(len(row) == cell.new for row in rows)
    known = whole and all(0 <= token < cell.config.vocab_size for row in rows for token in row)
    error = regret(tuple(tuple(map(int, row)) for row in rows)) if known else math.inf
    return [gate.Verdict("choice of tokens", error, 0.0, 2 * gate.bounds(cell.dtype, cell.config.num_layers, 1)[1])]


def chosen_keys(cell: Cell, regret: float) -> gate.Verdict:
    """The verdict on the keys that layers chose: below the oracle's largest scores by no more than what two scores can
    be off."""
    return gate.Verdict("choice of keys", regret, 0.0, 2 * gate.bounds(cell.dtype, cell.config.num_layers, 2)[1])
