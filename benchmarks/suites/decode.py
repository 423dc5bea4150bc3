"""Decoding after a prompt: over contexts and batches, in both precisions, with and without a cache."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, kept, plain, transformers, wing

MAIN = {"nano": (64, 32), "gpt2-124m": (128, 64)}  # prompt and new tokens
CONTEXTS = {"nano": (16, 64, 112), "gpt2-124m": (32, 512, 960)}
BATCHES = (1, 4, 16)
SHORT, FEW = 16, 8


def cells(scope: Scope) -> Iterator[Cell]:
    """One prompt first, then both precisions against each other, a step by itself, and the sweeps."""
    model = scope.main
    config, (prompt, new) = scope.config(model), MAIN.get(model, (128, 64))
    fast = (wing("torch", FASTEST), wing("jax", FASTEST))
    held = kept(scope, torch=FASTEST, jax=FASTEST)
    best = held or fast

    def cell(batch, length, chosen, new=SHORT, **options) -> Cell:
        return Cell("decode", "decode", model, config, batch, length, "float32", chosen, new, **options)

    def after(batch, length, chosen, new=SHORT, **options) -> Cell:
        return Cell("decode", "continue", model, config, batch, length, "float32", chosen, new, **options)

    recorded = tuple(wing("torch", how) for how in scope.graphs)
    every = (wing("torch"), wing("torch", FASTEST), *recorded, wing("jax"), *held, *transformers(kept=bool(held)))
    yield cell(1, prompt, (*every, *plain()), new, memory=True)
    narrow = (*(wing("torch", how, "bfloat16") for how in scope.narrow), wing("jax", FASTEST, "bfloat16"))
    recorded_narrow = tuple(wing("torch", how, "bfloat16") for how in scope.graphs)
    yield cell(1, prompt, (*fast, *narrow, *recorded, *recorded_narrow), new, mixed=True)
    yield cell(1, prompt, (*best, *transformers(), *plain()), FEW, cached=False, part="no cache")
    yield after(1, prompt, (*best, *recorded, *transformers(), *plain()), new, part="filled cache")
    for length in CONTEXTS.get(model, (32, 256)):
        yield after(1, length, (*best, *transformers()), part="context", axis=("context", length), memory=True)
    for batch in BATCHES[: 2 if scope.quick else None]:
        yield after(batch, prompt, (*best, *transformers()), part="batch", axis=("batch", batch), memory=True)


def ablations(scope: Scope) -> Iterator[Cell]:
    """Streaming beside the plain form; in bfloat16, where the device multiplies 16 bits, on a CPU wide products too."""
    model = scope.main
    config, (prompt, _) = scope.config(model), MAIN.get(model, (128, 64))
    for dtype in ("float32", "bfloat16") if scope.multiplies_16_bits else ("float32",):
        wide = ("wide",) if scope.device == "cpu" and dtype == "bfloat16" else ()
        for name, modes in {"torch": ("default", "streamed", *wide), "jax": ("default", "streamed")}.items():
            chosen = tuple(wing(name, how) for how in modes)
            yield Cell("ablation", "decode", model, config, 1, prompt, dtype, chosen, SHORT, part=name)
