"""Every contender against itself under another name: nobody may be ahead, or the clock favours somebody."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.suites.scope import Scope, wing


def cells(scope: Scope) -> Iterator[Cell]:
    """Short calls (a forward pass, a training step of the small model) and decoding, both wings twice."""
    config, twice = scope.config(scope.small), [one for name in ("torch", "jax") for one in _twice(wing(name))]
    for task, size, new in (("forward", (8, 128), 0), ("train", (4, 128), 0), ("decode", (1, 64), 32)):
        yield Cell("same", task, scope.small, config, *size, "float32", tuple(twice), new)


def _twice(one: Contender) -> tuple[Contender, Contender]:
    return one, replace(one, name=f"{one.name} again", title=f"{one.title}, again")
