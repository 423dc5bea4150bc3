"""Beginnings: from the start of a process to the first logits, and reading weights from disk into a model."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import Scope, transformers, wing
from common.weights import loading

OTHER_WAYS = tuple(loading.WAYS)[1:]  # the first is what wings do


def starts(scope: Scope) -> Iterator[Cell]:
    """The small model, so that frameworks and not weights are what takes time."""
    chosen = (wing("torch"), wing("jax"), *transformers())
    yield Cell("start-up", "start-up", scope.small, scope.config(scope.small), 1, 32, "float32", chosen)


def loads(scope: Scope) -> Iterator[Cell]:
    """A file of safetensors into a model, tensor by tensor and by the other ways that a wing has there, with the memory
    of each. What stays mapped is read by whoever uses it first, which is not measured here."""
    model, chosen = scope.main, (wing("torch"), wing("jax"))
    others = tuple(
        replace(
            one,
            name=f"{one.name} {how}",
            title=f"{one.title}, {how}",
            source=f"benchmarks.outside.loading:{one.name} {how}",
        )
        for one in chosen
        for how in OTHER_WAYS
        if how != "mapped and kept" or (one.wing == "torch" and scope.device == "cpu")
    )
    yield Cell("load", "load", model, scope.config(model), 1, 32, "float32", (*chosen, *others), memory=True)
