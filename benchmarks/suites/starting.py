"""Beginnings: from the start of a process to the first logits, and reading weights from disk into a model."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import Scope, transformers, wing


def starts(scope: Scope) -> Iterator[Cell]:
    """The small model, so that frameworks and not weights are what takes time."""
    chosen = (wing("torch"), wing("jax"), *transformers())
    yield Cell("start-up", "start-up", scope.small, scope.config(scope.small), 1, 32, "float32", chosen)


def loads(scope: Scope) -> Iterator[Cell]:
    """A file of safetensors into a model, tensor by tensor, and all of it first."""
    model, chosen = scope.main, (wing("torch"), wing("jax"))
    others = (
        replace(
            one,
            name=f"{one.name} all at once",
            title=f"{one.title}, all at once",
            source=f"benchmarks.outside.loading:{one.name}",
        )
        for one in chosen
    )
    yield Cell("load", "load", model, scope.config(model), 1, 32, "float32", (*chosen, *others))
