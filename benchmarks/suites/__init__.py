"""What is measured: suites by name, each a function from a `Scope` to cells. A new suite is one file and one entry."""

from benchmarks.suites import (
    attention,
    data,
    decode,
    depth,
    finetune,
    forward,
    ladder,
    parts,
    same,
    starting,
    train,
    variants,
)
from benchmarks.suites.scope import Scope


def _ablations(scope: Scope):
    yield from train.ablations(scope)
    yield from decode.ablations(scope)
    yield from variants.ablations(scope)


SUITES = {
    "forward": forward.cells,
    "train": train.cells,
    "decode": decode.cells,
    "prefill": forward.prefills,
    "compile": depth.cells,
    "loss": parts.losses,
    "optimizer": parts.optimizers,
    "random": parts.random_numbers,
    "start-up": starting.starts,
    "load": starting.loads,
    "ablation": _ablations,
    "cases": parts.cases,
    "components": parts.components,
    "attention": attention.cells,
    "attention-book": attention.book,
    "variants": variants.cells,
    "experts": variants.experts,
    "same": same.cells,
    "data": data.cells,
    "ladder": ladder.cells,
    "finetune": finetune.cells,
}
NAMED = (  # measured when they are named
    "components",
    "attention",
    "attention-book",
    "variants",
    "experts",
    "same",
    "data",
    "ladder",
    "finetune",
)
DEFAULT = tuple(name for name in SUITES if name not in NAMED)

__all__ = ["DEFAULT", "SUITES", "Scope"]
