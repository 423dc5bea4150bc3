"""A forward pass with all logits, and the prefill of a cache, which needs the last logits alone."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, kept, plain, transformers, wing

SIZES = {"nano": (8, 128), "gpt2-124m": (4, 256)}
PREFILL = {"nano": (1, 96), "gpt2-124m": (1, 512)}


def contenders(scope: Scope, model: str, dtype: str) -> tuple:
    """Both wings as they are, compiled, at their best (of JAX that is the scan: the rest of "fast" is about losses and
    decoding), and from outside."""
    ours, more = [wing("torch"), wing("torch", "compiled")], []
    if dtype == "float32":
        ours += [wing("torch", FASTEST)] if model == scope.small else []
        ours += plain()
        more += kept(scope, torch="compiled+fused", jax="scan")
    else:
        ours += [wing("torch", how) for how in (*scope.narrow, *scope.flash)]
        more += [wing("jax", how) for how in scope.flash]
    ours += [wing("torch", how) for how in scope.graphs]
    return (*ours, wing("jax"), wing("jax", "scan"), *more, *transformers(cast=dtype == "bfloat16"))


def cells(scope: Scope) -> Iterator[Cell]:
    """Forward in float32 and bfloat16; the large model in the latter where the device multiplies 16 bits."""
    for model in scope.models:
        for dtype in scope.dtypes(model):
            size = SIZES.get(model, (4, 256))
            yield Cell("forward", "forward", model, scope.config(model), *size, dtype, contenders(scope, model, dtype))


def prefills(scope: Scope) -> Iterator[Cell]:
    """One long prompt into an empty cache, in float32 and bfloat16 (the large model in the latter where the device
    multiplies 16 bits). JAX at its best is the scan, as in `contenders`."""
    model = scope.main
    for dtype in scope.dtypes(model):
        fast = (FASTEST, f"{FASTEST}+fused") if dtype == "float32" else scope.narrow
        ours = ("default", "compiled", *fast)
        chosen = (*(wing("torch", how) for how in ours), *(wing("jax", how) for how in ("default", "scan")))
        size, single = PREFILL.get(model, (1, 512)), dtype == "float32"
        yield Cell(
            "prefill",
            "prefill",
            model,
            scope.config(model),
            *size,
            dtype,
            (*chosen, *transformers(cast=not single), *(plain() if single else ())),
        )
