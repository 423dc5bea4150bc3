"""A training step made faster rung by rung: every contender has all that the ones before it have, and one thing more.

After the ladder of the book's bonus material to chapter 5. Its first rung, a mask that is made on the fly, is where
both wings begin: no mask is stored.
"""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.suites.scope import TITLES, Scope, kept, wing
from common.config import ModelConfig

RUNGS = {
    "torch": ("fused optimizer", "fused norm", "fused", "chunked loss", "compiled"),
    "jax": ("fused", "scan", "checkpointed", "chunked loss"),
}
ROUND = 64  # a padded vocabulary is a multiple of it
SIZES = {"nano": (8, 128), "gpt2-124m": (2, 128)}


def cells(scope: Scope) -> Iterator[Cell]:
    """In float32, with a padded vocabulary and in bfloat16 at the end; then the last rungs at twice the batch."""
    model, config = scope.main, scope.config(scope.main)
    if model != scope.small:  # everybody's state is in memory at once
        config = config.with_(num_layers=max(1, config.num_layers // 4))
        model = f"{model} × {config.num_layers} layers"
    batch, length = SIZES.get(scope.main, (2, 128))
    for name in TITLES:
        rungs = tuple(_rungs(scope, name, config))
        along = {"part": name, "mixed": True, "memory": True}
        yield Cell("ladder", "train", model, config, batch, length, "float32", rungs, **along)
        yield Cell("ladder", "train", model, config, 2 * batch, length, "float32", rungs[-3:], **along)


def _rungs(scope: Scope, name: str, config: ModelConfig) -> Iterator[Contender]:
    yield wing(name)
    for count in range(1, len(RUNGS[name]) + 1):
        how = "+".join(RUNGS[name][:count])
        yield replace(wing(name, how), name=f"{name} {count}: {RUNGS[name][count - 1]}", title=_title(name, count))
    for one in kept(scope, **{name: how}):
        how = one.mode
        yield replace(one, name=f"{name} {count + 1}: kept memory", title=f"{TITLES[name]}, {count + 1}: + kept memory")
    padded = config.with_(vocab_size=-(-config.vocab_size // ROUND) * ROUND)
    if padded != config:
        label = "padded vocabulary"
        found = wing(name, how, model=(label, padded))
        yield replace(found, name=f"{name} {count + 2}: {label}", title=f"{TITLES[name]}, {count + 2}: + {label}")
    narrow = wing(name, how, dtype="bfloat16")
    if not scope.multiplies_16_bits and name == "torch":
        narrow = wing(name, f"{how}+wide", dtype="bfloat16")
    yield replace(narrow, name=f"{name} {count + 3}: bfloat16", title=f"{TITLES[name]}, {count + 3}: in bfloat16")


def _title(name: str, count: int) -> str:
    return f"{TITLES[name]}, {count}: + {RUNGS[name][count - 1]}"
