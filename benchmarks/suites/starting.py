"""Beginnings: from the start of a process to the first logits, and reading weights from disk into a model."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import Scope, transformers, wing


def starts(scope: Scope) -> Iterator[Cell]:
    """The small model, so that frameworks and not weights are what takes time."""
    chosen = (wing("torch"), wing("jax"), *transformers())
    yield Cell("start-up", "start-up", scope.small, scope.config(scope.small), 1, 32, "float32", chosen)


def loads(scope: Scope) -> Iterator[Cell]:
    """A file of safetensors into a model."""
    model = scope.main
    yield Cell("load", "load", model, scope.config(model), 1, 32, "float32", (wing("torch"), wing("jax")))
