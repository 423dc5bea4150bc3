"""What compiling a training step costs as models get deeper: a loop over layers against a scan."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, wing

DEPTHS = {True: (2, 4), False: (2, 6, 12, 24)}
SIZE = (2, 64)


def cells(scope: Scope) -> Iterator[Cell]:
    """The small model at several depths, then the large one at its own."""
    chosen = (wing("jax"), wing("jax", "scan"), wing("torch", "compiled"))
    for layers in DEPTHS[scope.quick]:
        config = scope.config(scope.small).with_(num_layers=layers)
        name = f"{scope.small} × {layers} layers"
        yield Cell("compile", "compile", name, config, *SIZE, "float32", chosen, axis=("layers", layers))
    if not scope.quick:
        config = scope.config(scope.model)
        yield Cell("compile", "compile", scope.model, config, *SIZE, "float32", (*chosen, wing("jax", FASTEST)))
        deep = config.with_(num_layers=48, embed_dim=384, num_heads=6, ff_dim=1536)
        yield Cell("compile", "compile", "48 layers of 384", deep, *SIZE, "float32", (wing("jax", "scan"),))
