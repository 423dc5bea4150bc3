"""One attention, many implementations: a layer of it and hardly anything else, forward and with its gradients."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.suites.scope import Scope, wing
from common.config import GPTConfig

WIDE = GPTConfig(16, 1024, 768, 1, 12, ff_dim=1)  # the width and heads of the book's comparison; 98 % is attention
NARROW = GPTConfig(16, 256, 128, 1, 4, ff_dim=1)
SIZES = {"cpu": (2, 512), "cuda": (8, 1024)}  # the book's is the latter
WAYS = ("default", "per head", "joined", "einsum", "blockwise", "masked", "fused", "module", "module weights")


def cells(scope: Scope) -> Iterator[Cell]:
    """All ways of both wings at once; PyTorch's also compiled, as JAX's always are. On a GPU in both precisions."""
    kind = scope.device.partition(":")[0]
    config, size = (NARROW, (4, 128)) if scope.quick else (WIDE, SIZES.get(kind, SIZES["cuda"]))
    ways = ("default", "blockwise", "fused") if scope.quick else WAYS
    compiled = ("compiled", *(f"compiled+{how}" for how in ways[1:]))
    chosen = (*(wing("torch", how) for how in (*ways, *compiled)), *(wing("jax", how) for how in ways))
    model = f"attention {config.embed_dim} wide, {config.num_heads} heads"
    for dtype in ("float32",) if kind == "cpu" or scope.quick else ("float32", "bfloat16"):
        for task, part in (("forward", ""), ("gradients", "backward")):
            those = (*chosen, *own(scope, task, dtype))
            yield Cell("attention", task, model, config, *size, dtype, those, part=part, memory=not scope.quick)


def own(scope: Scope, task: str, dtype: str) -> tuple[Contender, ...]:
    """Kernels of one wing, where they can run: on a CPU PyTorch's flex attention has no backward pass, and Pallas is
    interpreted, which is no speed of its own; cuDNN's takes 16 bits."""
    if scope.quick:
        return ()
    if scope.device == "cpu":
        return (wing("torch", "flex"),) if task == "forward" else ()
    return (wing("torch", "flex"), wing("jax", "pallas"), *([wing("jax", "cudnn")] if dtype == "bfloat16" else []))
