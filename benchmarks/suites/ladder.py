"""A training step made faster rung by rung: every contender has all that the ones before it have, and one thing more.

After the ladder of the book's bonus material to chapter 5. One of its rungs is where both wings begin: batches are made
in NumPy beside the step. What the rungs after it cannot have, or should not, stands aside: of them none has it. Both
begin with a stored mask, and operation by operation, JAX too (16 s a step of `nano` on two busy cores), whose programs
are whole from the next rung on; its GELU is written out on all rungs, for XLA fuses it, and on a GPU has cuBLAS compute
JAX's own function less exactly.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.room import least, need, room
from benchmarks.suites.scope import TITLES, Scope, kept, padded, wing
from common.config import ModelConfig

# the first rungs by what they add: a mode of their own, for the plain one has more than they
BARE = {
    "torch": {"": "stored masks+formula gelu", "mask on the fly": "formula gelu"},
    "jax": {"": "eager+undonated+stored masks", "compiled": "undonated+stored masks", "mask on the fly": "undonated"},
}
# what a rung is called, and the word of `--mode` that it adds; "" leaves out what was bare
RUNGS = {
    "torch": {
        "PyTorch's GELU": "",
        "fused optimizer": "fused optimizer",
        "PyTorch's norm": "fused norm",
        "fused attention": "fused",
        "checkpointed": "checkpointed",
        "chunked loss": "chunked loss",
        "compiled": "compiled",
    },
    "jax": {
        "donated buffers": "",
        "JAX's GELU": "own gelu",
        "fused optimizer": "fused optimizer",
        "JAX's norm": "fused norm",
        "fused attention": "fused",
        "scan": "scan",
        "checkpointed": "checkpointed",
        "chunked loss": "chunked loss",
    },
}
# a compiled block chooses by itself what it keeps; what is less exact is no ground for the next rung
ASIDE = {("torch", "checkpointed"), ("jax", "JAX's GELU")}
SIZES = {"nano": (8, 128), "gpt2-124m": (2, 128)}
LARGE = (4, 1024)  # on a GPU: the size of a large model
LAST = 3  # rungs that are measured at twice the batch
HELD = 0.8  # share of free memory that rungs may need at once


def cells(scope: Scope) -> Iterator[Cell]:
    """In float32, with a padded vocabulary, and in fewer bits at the end; then the last rungs at twice the batch. On a
    GPU a large model has all its layers, as many rungs at a time as memory holds, of which the last is the first of the
    next ones; and those at twice the batch that it holds."""
    model, config = scope.main, scope.config(scope.main)
    large = model != scope.small
    if large and scope.device == "cpu":  # everybody's state is in memory at once
        config = config.with_(num_layers=max(1, config.num_layers // 4))
        model = f"{model} × {config.num_layers} layers"
    batch, length = SIZES.get(scope.main, (2, 128))
    for name in TITLES:
        rungs = tuple(_numbered(name, _rungs(scope, name, config)))
        along = {"part": name, "mixed": True, "memory": True}
        if large and scope.device != "cpu":
            size = LARGE[0], min(LARGE[1], config.context_length)
            whole = Cell("ladder", "train", model, config, *size, "float32", rungs, **along)
            for at, some in _flights(rungs, max(2, _at_once(scope, whole))):
                yield replace(whole, contenders=some, part=f"{name} from {at}")
            held = min(LAST, _at_once(scope, replace(whole, batch=2 * whole.batch)))
        else:
            whole, held = Cell("ladder", "train", model, config, batch, length, "float32", rungs, **along), LAST
            yield whole
        if held:
            yield replace(whole, batch=2 * whole.batch, contenders=rungs[-held:])


def _at_once(scope: Scope, whole: Cell) -> int:
    """How many rungs there is memory for."""
    _, there = least(room(scope.device))
    return int(HELD * there * len(whole.contenders) / need(whole))


def _flights(rungs: tuple[Contender, ...], most: int) -> Iterator[tuple[int, tuple[Contender, ...]]]:
    """Rungs in flights of at most so many, about equally long, each from the last of the one before; and where they
    begin."""
    steps = len(rungs) - 1
    count = -(-steps // (most - 1))
    ends = [steps * number // count for number in range(count + 1)]
    yield from ((low, rungs[low : high + 1]) for low, high in pairwise(ends))


def _numbered(name: str, rungs: Iterator[tuple[str, Contender]]) -> Iterator[Contender]:
    """The rungs by number and what they add; what stands aside has the number of the rung that it stands beside."""
    count = 0
    for label, one in rungs:
        beside = (name, label) in ASIDE
        count += bool(label) and not beside
        number = f"{count} aside" if beside else count
        named = {"name": f"{name} {number}: {label}", "title": f"{TITLES[name]}, {number}: + {label}"}
        yield replace(one, **named) if label else one


def _rungs(scope: Scope, name: str, config: ModelConfig) -> Iterator[tuple[str, Contender]]:
    """(what it adds, who has it), from the bare step on."""
    yield from ((label, wing(name, how)) for label, how in BARE[name].items())
    words: list[str] = []
    for label, word in RUNGS[name].items():
        yield label, wing(name, _joined(*words, word))
        words += [word] if (name, label) not in ASIDE else []
    how = _joined(*words)
    for one in kept(scope, **{name: how}):
        how = one.mode
        yield "kept memory", one
    model = padded(config)
    if model is not None:
        yield "padded vocabulary", wing(name, how, model=model)
    if scope.device != "cpu":
        yield "TF32", wing(name, _joined(how, "tf32"), model=model)
    wide = not scope.multiplies_16_bits and name == "torch"
    yield "bfloat16", wing(name, _joined(how, "wide" if wide else ""), dtype="bfloat16", model=model)


def _joined(*words: str) -> str:
    return "+".join(filter(None, words)) or "default"
