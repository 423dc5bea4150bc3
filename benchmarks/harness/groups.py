"""In which order cells are measured: neighbours that share their models together, or one of every suite in turn."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.process import CHANGING
from common import params

Group = list[Cell]  # that are measured together


def grouped(cells: Sequence[Cell]) -> Iterator[Group]:
    """Neighbours that share model, precision and contenders, so that models are built once; beginnings stand alone, and
    so does what changes its model."""

    def key(cell: Cell) -> Any:
        own = cell.name if cell.task in (*FRESH, *CHANGING) else ""
        return own, cell.model, cell.config, cell.dtype, cell.weights, cell.seed, cell.contenders

    return (list(group) for _, group in itertools.groupby(cells, key))


def in_turn(groups: Iterable[Group], dtype: str = "float32") -> list[Group]:
    """For when time may run out: the first group of each suite, then the second of each, …; within a suite those of the
    largest model come first, and of these those of that precision. Beginnings, which take a process for every turn,
    come last.
    """
    suites: dict[tuple[bool, str], list[Group]] = {}
    for group in groups:
        suites.setdefault((group[0].task in FRESH, group[0].suite), []).append(group)
    found: list[Group] = []
    for fresh in (False, True):
        rows = (
            sorted(own, key=lambda group: (-params.count(group[0].config), group[0].dtype != dtype))
            for (kind, _), own in suites.items()
            if kind is fresh
        )
        found += [group for turn in itertools.zip_longest(*rows) for group in turn if group is not None]
    return found
