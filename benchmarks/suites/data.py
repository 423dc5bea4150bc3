"""What lies around a model against what a user would take instead: tokenizers, loaders, checkpoints."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.suites.scope import Scope
from common.data.corpora import corpus

RIVALS = {
    "encode": ("tiktoken", "tokenizers"),
    "learn": ("tokenizers",),
    "windows": ("torch",),
    "checkpoint": ("torch", "safetensors"),
}
PARTS = {
    "encode": "encoded",
    "learn": "2,000 merges learnt",
    "windows": "windows read",
    "checkpoint": "written and read",
}
TITLES = {"torch": "PyTorch", "parallax": "Parallax"}
QUICK = 60_000  # bytes of the text


def cells(scope: Scope) -> Iterator[Cell]:
    """The text is Python's own reference; the checkpoint is of a model of two layers and its optimizer."""
    size = len(corpus("pydoc").text.encode("utf-8"))
    for task, rivals in RIVALS.items():
        model = scope.main if task == "checkpoint" else scope.small
        config = scope.config(model).with_(num_layers=2)
        length = 1 if task == "checkpoint" else min(QUICK, size) if scope.quick else size
        chosen = tuple(_contender(name, task) for name in ("parallax", *rivals))
        name = f"{model} × 2 layers" if task == "checkpoint" else "pydoc"
        yield Cell("data", task, name, config, 1, length, "float32", chosen, part=PARTS[task])


def _contender(name: str, task: str) -> Contender:
    title = "PyTorch's DataLoader" if (name, task) == ("torch", "windows") else TITLES.get(name, name)
    return Contender(name, title, f"benchmarks.outside.data:{name}", name, "as it is")
