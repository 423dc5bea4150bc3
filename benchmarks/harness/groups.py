"""In which order cells are measured: neighbours that share their models together, or one of every suite in turn."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.process import CHANGING
from common import params


def grouped(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Neighbours that share model, precision and contenders, so that models are built once; beginnings stand alone, and
    so does what changes its model."""

    def key(cell: Cell) -> Any:
        own = cell.name if cell.task in (*FRESH, *CHANGING) else ""
        return own, cell.model, cell.config, cell.dtype, cell.weights, cell.contenders

    return (list(group) for _, group in itertools.groupby(cells, key))


def in_turn(cells: Sequence[Cell], dtype: str = "float32") -> list[Cell]:
    """For when time may run out: the first cell of each suite, then the second of each, …; within a suite those of the
    largest model come first, and of these those of that precision. Beginnings, which take a process for every turn,
    come last.
    """
    suites: dict[tuple[bool, str], list[Cell]] = {}
    for cell in cells:
        suites.setdefault((cell.task in FRESH, cell.suite), []).append(cell)
    found: list[Cell] = []
    for fresh in (False, True):
        rows = (
            sorted(own, key=lambda cell: (-params.count(cell.config), cell.dtype != dtype))
            for (kind, _), own in suites.items()
            if kind is fresh
        )
        found += [cell for turn in itertools.zip_longest(*rows) for cell in turn if cell is not None]
    return found
