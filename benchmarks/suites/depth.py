"""What compiling a training step costs as models get deeper: a loop over layers against a scan."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.suites.scope import FASTEST, Scope, wing

DEPTHS = {True: (2, 4), False: (2, 6, 12)}
DEEP = 48
SIZE = (2, 64)


def cells(scope: Scope) -> Iterator[Cell]:
    """The small model at several depths; then the width of the large one, at its own depth and with 48 layers, of which
    only a scan compiles in seconds."""
    scan = wing("jax", "scan")
    chosen = (wing("jax"), scan, wing("torch", "compiled"))
    for layers in DEPTHS[scope.quick]:
        yield _cell(scope, scope.small, layers, chosen)
    if not scope.quick:
        own = scope.config(scope.model).num_layers
        yield _cell(scope, scope.model, own, (*chosen, wing("jax", FASTEST)))
        if own < DEEP:
            yield _cell(scope, scope.model, DEEP, (scan, wing("jax", FASTEST)))


def _cell(scope: Scope, model: str, layers: int, chosen: tuple[Contender, ...]) -> Cell:
    config, name = scope.config(model).with_(num_layers=layers), f"{model} × {layers} layers"
    along = {"axis": ("layers", layers), "group": model}
    return Cell("compile", "compile", name, config, *SIZE, "float32", chosen, **along)
