"""One attention, many implementations: a layer of it and hardly anything else, forward and with its gradients."""

import itertools
from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.suites.scope import Scope, wing
from common.config import GPTConfig

WIDE = GPTConfig(16, 1024, 768, 1, 12, ff_dim=1)  # the width and heads of the book's comparison; 98 % is attention
NARROW = GPTConfig(16, 256, 128, 1, 4, ff_dim=1)
QUICK, SMALLER, BOOK = (4, 128), (2, 512), (8, 1024)
WAYS = ("default", "per head", "joined", "einsum", "blockwise", "masked", "fused", "module", "module weights")
TASKS = {"forward": "", "gradients": "backward"}  # what cells of it are called
PARTS = ("PyTorch", "PyTorch compiled", "JAX")


def cells(scope: Scope) -> Iterator[Cell]:
    """All ways of both wings at once; PyTorch's also compiled, as JAX's always are. On a GPU at the book's size too,
    first, and in both precisions."""
    for size in (SMALLER,) if _kind(scope) == "cpu" or scope.quick else (BOOK, SMALLER):
        for dtype, (task, part) in itertools.product(_dtypes(scope), TASKS.items()):
            those = sum(_contenders(scope, task, dtype).values(), ())
            yield _cell(scope, "attention", size, dtype, task, part, those)


def book(scope: Scope) -> Iterator[Cell]:
    """At the book's size on every device: in parts, each beside PyTorch's plain form, for everybody keeps scores of
    403 MB for the way back, and the memory of a host does not hold all at once."""
    for dtype, name, (task, part) in itertools.product(_dtypes(scope), PARTS, TASKS.items()):
        found = _contenders(scope, task, dtype)
        beside = () if name == PARTS[0] else found[PARTS[0]][:1]
        yield _cell(scope, "attention-book", BOOK, dtype, task, f"{name} {part}".strip(), (*beside, *found[name]))


def _kind(scope: Scope) -> str:
    return scope.device.partition(":")[0]


def _dtypes(scope: Scope) -> tuple[str, ...]:
    return ("float32",) if _kind(scope) == "cpu" or scope.quick else ("float32", "bfloat16")


def _cell(scope: Scope, suite: str, size: tuple[int, int], dtype: str, task: str, part: str, those) -> Cell:
    config, size = (NARROW, QUICK) if scope.quick else (WIDE, size)
    model = f"attention {config.embed_dim} wide, {config.num_heads} heads"
    return Cell(suite, task, model, config, *size, dtype, those, part=part, memory=not scope.quick)


def _contenders(scope: Scope, task: str, dtype: str) -> dict[str, tuple[Contender, ...]]:
    """Everybody, by part; kernels of one wing stand with the ways of that wing."""
    ways = ("default", "blockwise", "fused") if scope.quick else WAYS
    compiled = ("compiled", *(f"compiled+{how}" for how in ways[1:]))
    own = _own(scope, task, dtype)
    found = zip(PARTS, ("torch", "torch", "jax"), (ways, compiled, ways), strict=True)
    return {part: tuple(wing(name, how) for how in (*hows, *own.get(part, ()))) for part, name, hows in found}


def _own(scope: Scope, task: str, dtype: str) -> dict[str, tuple[str, ...]]:
    """Kernels of one wing by part, where they can run: on a CPU PyTorch's flex attention has no backward pass, and
    Pallas is interpreted, which is no speed of its own; cuDNN's takes 16 bits."""
    if scope.quick:
        return {}
    if _kind(scope) == "cpu":
        return {"PyTorch compiled": ("flex",)} if task == "forward" else {}
    return {"PyTorch compiled": ("flex",), "JAX": ("pallas", *(["cudnn"] if dtype == "bfloat16" else []))}
