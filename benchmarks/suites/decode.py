"""Decoding after a prompt: over contexts and batches, in both precisions, with and without a cache."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, transformers, wing

MAIN = {"nano": (64, 32), "gpt2-124m": (128, 64)}  # prompt and new tokens
CONTEXTS = {"nano": (16, 64, 112), "gpt2-124m": (32, 256, 512, 960)}
BATCHES = (1, 4, 16)
SHORT = 16


def cells(scope: Scope) -> Iterator[Cell]:
    """One prompt first, then the sweeps."""
    model = scope.main
    config, (prompt, new) = scope.config(model), MAIN.get(model, (128, 64))
    best = (wing("torch", FASTEST), wing("jax", FASTEST))
    narrow = (*(wing("torch", how) for how in scope.narrow), wing("jax", FASTEST))
    every = (wing("torch"), wing("jax"), *best, *transformers())

    def cell(batch, length, dtype, chosen, new=SHORT, **options) -> Cell:
        return Cell("decode", "decode", model, config, batch, length, dtype, chosen, new, **options)

    yield cell(1, prompt, "float32", every, new, memory=True)
    yield cell(1, prompt, "bfloat16", narrow, new)
    yield cell(1, prompt, "float32", (*best, *transformers()), SHORT, cached=False, part="no cache")
    for length in CONTEXTS.get(model, (32, 256)):
        yield cell(1, length, "float32", best, part="context", axis=("context", length))
    for batch in BATCHES[: 2 if scope.quick else None]:
        yield cell(batch, prompt, "float32", best, part="batch", axis=("batch", batch))
