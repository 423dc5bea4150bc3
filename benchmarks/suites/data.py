"""What lies around a model against what a user would take instead: tokenizers, loaders, checkpoints."""

from collections.abc import Iterator

from benchmarks.harness.cells import Cell, long_text
from benchmarks.harness.contenders import Contender
from benchmarks.outside.data import merges_of
from benchmarks.suites.scope import Scope
from common.data.corpora import corpus

RIVALS = {
    "encode": ("tiktoken", "tokenizers"),
    "learn": ("tokenizers",),
    "learn_long": ("tokenizers",),
    "windows": ("torch",),
    "checkpoint": ("torch", "safetensors"),
}
PARTS = {
    "encode": "encoded",
    "learn": "2,000 merges learnt",
    "windows": "windows read",
    "checkpoint": "written and read",
}
NAMES = {"learn_long": "pydoc and library"}
TITLES = {"torch": "PyTorch", "parallax": "Parallax"}
QUICK = 60_000  # bytes of the text


def cells(scope: Scope) -> Iterator[Cell]:
    """The text is Python's own reference, and, for 8,000 merges, a megabyte of it and of its library; the checkpoint is
    of a model of two layers and its optimizer."""
    reference = len(corpus("pydoc").text.encode("utf-8"))
    for task, rivals in RIVALS.items():
        model = scope.main if task == "checkpoint" else scope.small
        config = scope.config(model).with_(num_layers=2)
        size = len(long_text()) if task == "learn_long" else reference
        length = 1 if task == "checkpoint" else min(QUICK, size) if scope.quick else size
        chosen = tuple(_contender(name, task) for name in ("parallax", *rivals))
        name = f"{model} × 2 layers" if task == "checkpoint" else NAMES.get(task, "pydoc")
        part = PARTS.get(task) or f"{merges_of(length):,} merges learnt"
        yield Cell("data", task, name, config, 1, length, "float32", chosen, part=part)


def _contender(name: str, task: str) -> Contender:
    title = "PyTorch's DataLoader" if (name, task) == ("torch", "windows") else TITLES.get(name, name)
    return Contender(name, title, f"benchmarks.outside.data:{name}", name, "as it is")
