"""Who judges the outputs of a cell, and what it says of them: verdicts of the gate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.harness import gate
from benchmarks.harness.cells import DATA, DECODING, FRESH, Cell
from benchmarks.harness.contenders import Contender

ORACLE = "numpy"
ORACLE_JUDGES = ("forward", "prefill", "loss", *DECODING)  # of the rest it has no fast enough form
ELEMENTWISE = ("dropout", "sample", "optimizer", "component", *DATA)  # which may well be exact
OTHERS = "benchmarks.outside.data:judge"
NATIVE = "native"


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
