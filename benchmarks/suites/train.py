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
    """Training in float32 and bfloat16 (the large model only where the device multiplies the latter), with memory.
    Everybody's state is in memory at once, so of the large model the fast modes meet `transformers`, then the four
    that a wing has anyway each other, then the fast ones as few calls as do the work."""
    for model in scope.models:
        small = model == scope.small
        ways = (wing("torch"), wing("jax"), wing("torch", "compiled"), wing("jax", "scan"))
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
            rivals = transformers(kept=bool(held) and not small, cast=not single)
            shape = (model, scope.config(model), *SIZES.get(model, (4, 256)), dtype)
            bounds = plain(clipped=not small) if single else ()
            if small:
                yield Cell("train", "train", *shape, (*ways, *best, *bounds, *rivals), memory=True)
                continue
            yield Cell("train", "train", *shape, (*best, *rivals), memory=True)
            yield Cell("train", "train", *shape, ways, part="as it is", memory=True)
            if bounds:
                yield Cell("train", "train", *shape, (*best, *bounds), part="lower bounds", memory=True)


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
