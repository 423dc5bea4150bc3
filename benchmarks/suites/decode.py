"""Decoding after a prompt: over contexts and batches, in both precisions, with and without a cache."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, kept, transformers, wing

MAIN = {"nano": (64, 32), "gpt2-124m": (128, 64)}  # prompt and new tokens
CONTEXTS = {"nano": (16, 64, 112), "gpt2-124m": (32, 256, 512, 960)}
BATCHES = (1, 4, 16)
SHORT = 16
RUNGS = {"torch": ("default", "streamed", FASTEST), "jax": ("default", "streamed")}


def cells(scope: Scope) -> Iterator[Cell]:
    """One prompt first, each wing's precisions against each other, then the sweeps."""
    model = scope.main
    config, (prompt, new) = scope.config(model), MAIN.get(model, (128, 64))
    fast = (wing("torch", FASTEST), wing("jax", FASTEST))
    held = kept(scope, torch=FASTEST, jax=FASTEST)
    best = held or fast
    narrow = (*(wing("torch", how) for how in scope.narrow), wing("jax", FASTEST))
    every = (wing("torch"), wing("jax"), *fast, *held, *transformers(kept=bool(held)))

    def cell(batch, length, dtype, chosen, new=SHORT, **options) -> Cell:
        return Cell("decode", "decode", model, config, batch, length, dtype, chosen, new, **options)

    def after(batch, length, new=SHORT, chosen=best, **options) -> Cell:
        return Cell("decode", "continue", model, config, batch, length, "float32", chosen, new, **options)

    yield cell(1, prompt, "float32", every, new, memory=True)
    yield after(1, prompt, new, (*fast, *held), part="filled cache")
    yield cell(1, prompt, "bfloat16", narrow, new)
    for name, modes in (("torch", scope.narrow), ("jax", (FASTEST,))):
        both = (wing(name, FASTEST), *(wing(name, how, "bfloat16") for how in modes))
        yield cell(1, prompt, "float32", both, new, part=name, mixed=True)
    yield cell(1, prompt, "float32", (*best, *transformers()), SHORT, cached=False, part="no cache")
    for length in CONTEXTS.get(model, (32, 256)):
        yield after(1, length, part="context", axis=("context", length), memory=True)
    for batch in BATCHES[: 2 if scope.quick else None]:
        yield after(batch, prompt, part="batch", axis=("batch", batch), memory=True)


def ablations(scope: Scope) -> Iterator[Cell]:
    """Streaming alone beside the plain form and everything together, one wing at a time; in bfloat16 where the device
    multiplies 16 bits, on a CPU with wide products, too."""
    model = scope.main
    config, (prompt, new) = scope.config(model), MAIN.get(model, (128, 64))
    for dtype in ("float32", "bfloat16") if scope.multiplies_16_bits else ("float32",):
        for name, modes in RUNGS.items():
            wide = [how for how in scope.narrow if name == "torch" and dtype == "bfloat16" and how not in modes]
            wide = ["wide", *wide] if wide else []
            chosen = (*(wing(name, how) for how in (*modes, *wide)), *kept(scope, **{name: modes[-1]}))
            yield Cell("ablation", "decode", model, config, 1, prompt, dtype, chosen, new, part=name)
