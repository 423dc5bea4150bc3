"""Parts of a step by themselves (loss, optimizer, random numbers), and every registered model at its own size."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import FASTEST, Scope, padded, plain, wing
from common.cases import CASES, Case

SIZES = {"nano": (8, 128), "gpt2-124m": (4, 256)}


def losses(scope: Scope) -> Iterator[Cell]:
    """Head and cross-entropy of a model of one layer, forward and backward, with whole logits, in chunks, and with a
    vocabulary padded where it is no round number."""
    model, config = scope.main, scope.config(scope.main).with_(num_layers=1)
    ours = tuple(wing(name, mode) for name in ("torch", "jax") for mode in ("default", "chunked loss"))
    wider = padded(config)
    more = tuple(wing(name, model=wider) for name in ("torch", "jax")) if wider else ()
    size = SIZES.get(model, (4, 256))
    name = f"{model} × 1 layer"
    yield Cell("loss", "gradients", name, config, *size, "float32", (*ours, *more, *plain()), memory=True)


def optimizers(scope: Scope) -> Iterator[Cell]:
    """Clipping and one AdamW update of all parameters."""
    model = scope.main
    ours = tuple(wing(name, mode) for name in ("torch", "jax") for mode in ("default", "fused optimizer"))
    contenders = (*ours, *plain(clipped=model != scope.small))
    yield Cell("optimizer", "optimizer", model, scope.config(model), 1, 8, "float32", contenders)


def random_numbers(scope: Scope) -> Iterator[Cell]:
    """Dropout of an activation and drawing tokens, by the shared generator and by the framework's own."""
    model = scope.main
    config = scope.config(model).with_(num_layers=1, dropout_embed=0.1)
    ours = tuple(wing(name, mode) for name in ("torch", "jax") for mode in ("default", "native rng"))
    chosen = (*ours, *plain(rng="native"))
    for task in ("dropout", "sample"):
        size = SIZES.get(model, (4, 256))
        yield Cell("random", task, model, config, *size, "float32", chosen, part=task)


def cases(scope: Scope) -> Iterator[Cell]:
    """Every registered model, its forward pass at its own size: mostly what calling a framework costs."""
    return (_cell("cases", "forward", case) for case in CASES.values() if not case.path)


def components(scope: Scope) -> Iterator[Cell]:
    """Every registered component forwards and backwards at its own size: what calling and differentiating cost. Of what
    "fast" turns on there is hardly anything in one."""
    return (_cell("components", "component", case, ("default",), case.path) for case in CASES.values() if case.path)


def _cell(suite: str, task: str, case: Case, modes: tuple[str, ...] = ("default", FASTEST), path: str = "") -> Cell:
    chosen = tuple(wing(name, how) for name in ("torch", "jax") for how in modes)
    size, more = (case.batch, case.length), {"weights": "randomised", "path": path}
    return Cell(suite, task, case.name, case.config, *size, "float32", chosen, **more)
