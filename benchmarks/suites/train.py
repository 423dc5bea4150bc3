"""A training step (loss, gradients, clipping, AdamW), and what each of its optimisations buys."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, kept, plain, transformers, wing

SIZES = {"nano": (8, 128), "gpt2-124m": (4, 256)}
ABLATION = {"nano": (8, 128), "gpt2-124m": (2, 128)}
BEST = {"torch": f"{FASTEST}+fused", "jax": FASTEST}
RUNGS = {
    "torch": ("default", "fused", "fused norm", "fused optimizer", "chunked loss", "compiled", FASTEST),
    "jax": ("default", "fused", "fused norm", "fused optimizer", "chunked loss", "scan", "checkpointed", FASTEST),
}


def cells(scope: Scope) -> Iterator[Cell]:
    """Training in float32 and bfloat16 (the large model only where the device multiplies the latter), with memory."""
    for model in scope.models:
        small = model == scope.small
        # everybody's state is in memory at once, so of the large model only the fast modes meet
        ours = (wing("torch"), wing("jax"), wing("torch", "compiled"), wing("jax", "scan")) if small else ()
        for dtype in scope.dtypes(model):
            single = dtype == "float32"
            flash = () if single else scope.flash
            fast = ((FASTEST,) if single else scope.narrow) + flash
            best = (
                *(wing("torch", how) for how in (*fast, *scope.graphs)),
                *(wing("jax", how) for how in (FASTEST, *flash)),
            )
            held = kept(scope, **BEST) if single else ()
            best = (*best, *held) if small or not held else held
            more = plain() if small and single else ()
            more += transformers(kept=bool(held) and not small, cast=not single)
            size = SIZES.get(model, (4, 256))
            yield Cell("train", "train", model, scope.config(model), *size, dtype, (*ours, *best, *more), memory=True)


def ablations(scope: Scope) -> Iterator[Cell]:
    """Each optimisation alone beside the plain form and all of them together, one wing at a time."""
    model, config, size = scope.main, scope.config(scope.main), ABLATION.get(scope.main, (2, 128))
    if model != scope.small:  # everybody's state is in memory at once
        config = config.with_(num_layers=max(1, config.num_layers // 4))
        model = f"{model} × {config.num_layers} layers"
    for name, modes in RUNGS.items():
        own = kept(scope, **{name: BEST[name]})
        alone = tuple(wing(name, "kept") for _ in own)
        chosen = (*(wing(name, mode) for mode in modes), *alone, *own)
        yield Cell("ablation", "train", model, config, *size, "float32", chosen, part=name, memory=True)
