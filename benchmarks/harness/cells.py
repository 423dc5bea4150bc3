"""A cell: one task at one size in one precision, and who is timed at it. Cells are data; suites list them."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.harness.contenders import Contender
from common import params
from common.accounting import activations, estimate, flops, memory, parts
from common.config import PRECISIONS, ModelConfig, SamplingConfig, TrainConfig
from common.data.corpora import corpus

TRAIN = TrainConfig(schedule="constant", learning_rate=1e-4, clip_norm=1.0)
DECODING = ("decode", "continue")  # tasks that give tokens
DATA = ("encode", "learn", "learn_long", "windows", "checkpoint")  # around a model: see benchmarks/outside/data.py
FRESH = ("compile", "start-up", "load")  # every turn in a process of its own, which measures a beginning
LEARNING = ("train", "gradients", "optimizer", "component", "compile")  # tasks that take gradients
FLOAT, ID = 4, 4  # bytes of a number of what is dropped or drawn from, and of a token


@dataclass(frozen=True)
class Cell:
    """`task` is one of `Model.prepare`, "decode" (generate `new` tokens), or one of FRESH, on `batch` x `length` ids.

    `part` says what of a suite this is, where suite, model and size do not tell cells apart ("no cache"). `group` is
    the model's name without what the axis changes, if that is in it ("nano" of "nano × 6 layers"). `mixed` cells have
    contenders in several precisions; `dtype` is that of those which name none. `weights` is the recipe's kind. The
    task "component" is about the module at `path`.
    """

    suite: str
    task: str
    model: str
    config: ModelConfig
    batch: int
    length: int
    dtype: str
    contenders: tuple[Contender, ...]
    new: int = 0
    cached: bool = True
    part: str = ""
    axis: tuple[str, int] | None = None
    group: str = ""
    mixed: bool = False
    memory: bool = False
    weights: str = "uneven"
    seed: int = 0
    path: str = ""

    def __post_init__(self):
        if self.task in FRESH and any(one.config for one in self.contenders):
            raise ValueError("the contenders of a beginning have no models of their own")

    @property
    def name(self) -> str:
        size = f"{self.batch}x{self.length}" + (f"+{self.new}" if self.new else "")
        return "/".join(filter(None, (self.suite, self.part, self.model, size, self._precision)))

    @property
    def title(self) -> str:
        size = f"{self.batch} × {self.length}" + (f" + {self.new}" if self.new else "")
        part = self.part if self.part != self.task else ""
        return ", ".join(filter(None, (TITLES[self.task], part, self.model, size, self._precision)))

    @property
    def _precision(self) -> str:
        return "both precisions" if self.mixed else self.dtype

    def dtype_of(self, one: Contender) -> str:
        """The precision in which a contender runs here, and by which it is judged."""
        return one.dtype or self.dtype

    def config_of(self, one: Contender) -> ModelConfig:
        """The model that a contender computes here."""
        return one.config or self.config

    @property
    def configs(self) -> tuple[ModelConfig, ...]:
        """All of these, its own first."""
        return tuple(dict.fromkeys((self.config, *map(self.config_of, self.contenders))))

    def of(self, one: Contender) -> Self:
        """The cell in a contender's precision, with its model."""
        return replace(self, dtype=self.dtype_of(one), config=self.config_of(one))

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Rows, tokens, and whether gradients are taken: by what a framework may choose its kernels."""
        return self.batch, self.length, self.task in LEARNING

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(max_new_tokens=self.new, cache=self.cached)

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) int32 [B, T]: every contender of the cell gets the same."""
        drawn = np.random.default_rng(self.seed).integers(0, self.config.vocab_size, (self.batch, self.length + 1))
        ids = drawn.astype(np.int32)
        return ids[:, :-1], ids[:, 1:]

    def inputs(self) -> tuple[np.ndarray, np.ndarray | None]:
        """What the task takes: ids and targets, an activation [B, T, E] (and its cotangent), or logits [B, V]."""
        rng = np.random.default_rng(self.seed)
        if self.task == "dropout":
            return rng.standard_normal((self.batch, self.length, self.config.embed_dim)).astype(np.float32), None
        if self.task == "component":
            both = rng.standard_normal((2, self.batch, self.length, self.config.embed_dim)).astype(np.float32)
            return both[0], both[1]
        if self.task in DATA:
            text = long_text() if self.task == "learn_long" else corpus("pydoc").text.encode("utf-8")
            return np.frombuffer(text[: self.length], np.uint8), None
        if self.task == "sample":
            return rng.standard_normal((self.batch, self.config.vocab_size)).astype(np.float32), None
        return self.tokens()

    def line(self) -> dict[str, Any]:
        """The cell as its line of the record has it: what it is, its `work`, the bytes that it must keep (`ideal`), and
        where it lies on an axis along which the cells of a group are compared. `own` is what differs for contenders
        with a precision, model or form of their own, by name."""
        axis = None if self.axis is None else {"name": self.axis[0], "value": self.axis[1]}
        return {
            "cell": self.name,
            "suite": self.suite,
            "task": self.task,
            "title": self.title,
            "model": self.model,
            "group": self.group or self.model,
            "batch": self.batch,
            "length": self.length,
            "new": self.new,
            "cached": self.cached,
            "dtype": self.dtype,
            **work(self),
            "own": {one.name: own for one in self.contenders if (own := self._own(one))},
            "ideal": ideal(self),
            "axis": axis,
        }

    def _own(self, one: Contender) -> dict[str, Any]:
        """What a contender does otherwise than the cell says: in another precision, by another model, or in forms that
        others do not have."""
        other = self.of(one)
        mine, found = work(self), work(replace(other, contenders=(one,)))
        changed = {name: value for name, value in found.items() if value != mine[name]}
        return {"dtype": other.dtype, "bytes": found["bytes"]} | changed if changed or other != self else {}


@functools.lru_cache(maxsize=1)
def long_text() -> bytes:
    """A megabyte that needs no download: Python's own reference, and the modules of its library that are ASCII."""
    modules = sorted(Path(os.__file__).parent.glob("*.py"))
    ascii_ones = (one for one in (path.read_bytes() for path in modules) if one.isascii())
    return b"\n".join((corpus("pydoc").text.encode("utf-8"), *ascii_ones))[: 1 << 20]


TITLES = {
    "forward": "Forward",
    "prefill": "Prefill",
    "train": "Training step",
    "decode": "Decoding",
    "continue": "Decoding steps",
    "gradients": "Loss and gradients",
    "loss": "Loss",
    "optimizer": "AdamW step",
    "component": "Forward and gradients",
    "dropout": "Dropout",
    "sample": "Sampling",
    "compile": "Compiling a training step",
    "start-up": "Start to first logits",
    "load": "Loading weights",
    "encode": "Text",
    "learn": "Text",
    "learn_long": "Text",
    "windows": "Token file",
    "checkpoint": "Checkpoint",
}


@functools.lru_cache(maxsize=256)
def work(cell: Cell) -> Mapping[str, Any]:
    """What one call has to do: units, FLOPs with full and with causal scores, least bytes; None where it has none.

    Least bytes are what has to pass between memory and processor however it is programmed: every weight is read once in
    a pass through the model, in the format of compute, and what a call leaves behind is written. Whatever may stay in a
    cache of the processor (activations, scores) counts nothing, so a real program moves more.
    """
    rule = WORK.get(cell.task)
    found = {"unit": "calls", "work": 1, "flops_full": None, "flops_causal": None, "bytes": None}
    return found | (rule(cell) if rule else {})


def _tokens(count: int, found: tuple[int, int], moved: int) -> dict[str, Any]:
    return {"unit": "tokens", "work": count, "flops_full": found[0], "flops_causal": found[1], "bytes": moved}


def _flops(cell: Cell, rule: Any, length: int, **options: Any) -> tuple[int, int]:
    """(full, causal), in the forms that all contenders have; those that stream while they decode have others then."""
    each = [dict(one.options) for one in cell.contenders]
    for own in each:
        if rule is flops.decode_step and own.get("decode") == "streamed":
            own |= parts.decoding(cell.config)
    shared = dict(item for item in each[0].items() if all(item in own.items() for own in each)) if each else {}
    options |= {"forms": shared}
    full, causal = (sum(rule(cell.config, cell.batch, length, causal=c, **options).values()) for c in (False, True))
    return full, causal


def _steps(cell: Cell, seen: list[int]) -> tuple[int, int, int]:
    """(FLOPs full and causal, least bytes) of decoding steps that see so many tokens, their own among them. Kernels
    read all slots, as many as the last one sees; what is visible need not grow evenly, for windows have an end.
    """
    found = [_flops(cell, flops.decode_step, seen[-1], visible=own) for own in seen]
    moved = sum(sum(memory.decode_bytes(cell.config, cell.batch, own, cell.dtype).values()) for own in seen)
    return sum(full for full, _ in found), sum(causal for _, causal in found), moved


def _read(cell: Cell) -> int:
    """Bytes of the weights that one pass reads; of tables that are looked up, a row for every position."""
    return memory.decode_bytes(cell.config, cell.length, 0, cell.dtype)["weights read"]


def _logits(cell: Cell, rows: int) -> int:
    return rows * cell.config.vocab_size * memory.ITEM_BYTES[PRECISIONS[cell.dtype].compute]


def _cache(cell: Cell) -> int:
    """Bytes of a cache of `length` slots."""
    return memory.kv_cache(cell.config, cell.batch, cell.length, PRECISIONS[cell.dtype].compute)


def _kept(cell: Cell) -> int:
    """Bytes of all parameters as they are kept: those of their gradients, and of each average, too."""
    return memory.weights(cell.config, PRECISIONS[cell.dtype].param)


def _forward(cell: Cell) -> dict[str, Any]:
    """The weights are read, all logits written."""
    count, found = cell.batch * cell.length, _flops(cell, flops.forward, cell.length)
    return _tokens(count, found, _read(cell) + _logits(cell, count))


def _prefill(cell: Cell) -> dict[str, Any]:
    """The weights are read, a cache that is full afterwards and the last logits written."""
    count, found = cell.batch * cell.length, _flops(cell, flops.prefill, cell.length)
    return _tokens(count, found, _read(cell) + _cache(cell) + _logits(cell, cell.batch))


def _gradients(cell: Cell) -> dict[str, Any]:
    """The weights are read forwards and backwards, the gradients written; logits need not be."""
    count, found = cell.batch * cell.length, _flops(cell, flops.training, cell.length)
    return _tokens(count, found, 2 * _read(cell) + _kept(cell))


def _component(cell: Cell) -> dict[str, Any]:
    """A module's weights are read forwards and backwards (of experts those of one token at least), as are input and
    cotangent; the gradients of all, the output and the input's gradient are written."""
    count, precision = cell.batch * cell.length, PRECISIONS[cell.dtype]
    read, written = (part(cell.config, cell.path) for part in (estimate.active, estimate.parameters))
    moved = (2 * read + 4 * count * cell.config.embed_dim) * memory.ITEM_BYTES[precision.compute]
    found = _flops(cell, flops.training, cell.length, path=cell.path)
    return _tokens(count, found, moved + written * memory.ITEM_BYTES[precision.param])


def _train(cell: Cell) -> dict[str, Any]:
    """As for gradients, of what a run trains, and then the optimizer's pass, which waits for the norm of all."""
    trained = params.trained(cell.config, TRAIN)
    count, found = cell.batch * cell.length, _flops(cell, flops.training, cell.length, trained=trained)
    learning = memory.gradients(cell.config, PRECISIONS[cell.dtype].param, TRAIN)
    return _tokens(count, found, 2 * _read(cell) + (1 + 7) * learning)


def _optimizer(cell: Cell) -> dict[str, Any]:
    """Weights, gradients and two averages are read, and all but the gradients written."""
    return {"unit": "parameters", "work": params.count(cell.config), "bytes": 7 * _kept(cell)}


def _decode(cell: Cell) -> dict[str, Any]:
    """With a cache: a prefill, which gives the first token, and a step for every other one, which reads all weights and
    the cache so far and writes a slot; "full" FLOPs are those on a cache as large as it becomes. Without: a pass over
    all tokens so far for every token, of which the head predicts the last."""
    count, lengths = cell.batch * cell.new, [cell.length + step for step in range(cell.new)]
    if not cell.cached:
        passes = [_flops(cell, flops.prefill, length) for length in lengths]
        full, causal = (sum(kind) for kind in zip(*passes, strict=True))
        return _tokens(count, (full, causal), cell.new * _read(cell))
    full, causal = _flops(cell, flops.prefill, cell.length, slots=lengths[-1])
    moved = _read(cell) + _cache(cell)
    if lengths[1:]:
        more = _steps(cell, lengths[1:])
        full, causal, moved = full + more[0], causal + more[1], moved + more[2]
    return _tokens(count, (full, causal), moved)


def _continue(cell: Cell) -> dict[str, Any]:
    """The first token was chosen beforehand; every other one takes a step."""
    seen = [cell.length + step for step in range(1, cell.new)]
    full, causal, moved = _steps(cell, seen) if seen else (0, 0, 0)
    return _tokens(cell.batch * cell.new, (full, causal), moved)


def _dropout(cell: Cell) -> dict[str, Any]:
    """An activation is read and written. What drops it is made on the way, by any generator."""
    return {"bytes": 2 * cell.batch * cell.length * cell.config.embed_dim * FLOAT}


def _sample(cell: Cell) -> dict[str, Any]:
    """The logits are read, and a token for every row of them is written."""
    return {"bytes": cell.batch * (cell.config.vocab_size * FLOAT + ID)}


WORK: Mapping[str, Any] = {
    "forward": _forward,
    "prefill": _prefill,
    "gradients": _gradients,
    "train": _train,
    "decode": _decode,
    "continue": _continue,
    "optimizer": _optimizer,
    "component": _component,
    "dropout": _dropout,
    "sample": _sample,
    **dict.fromkeys(("encode", "learn", "learn_long", "windows"), lambda cell: {"unit": "bytes", "work": cell.length}),
    "checkpoint": lambda cell: {"unit": "bytes", "work": 2 * 3 * _kept(cell)},
}


def ideal(cell: Cell) -> dict[str, int] | None:
    """Closed-form bytes of what a task keeps where PyTorch runs it eagerly with plain kernels, by kind; None for tasks
    whose memory is not drawn."""
    if not cell.memory:
        return None
    kept = memory.weights(cell.config)
    found = {"parameters": kept, "gradients": 0, "optimizer": 0, "activations": 0, "cache": 0}
    if cell.task in ("gradients", "train"):
        own = memory.gradients(cell.config, train=TRAIN) if cell.task == "train" else kept
        found |= {"gradients": own, "optimizer": 2 * own if cell.task == "train" else 0}
        if own == kept:  # of a model of which a part is trained less is kept: how much has no closed form
            found["activations"] = sum(activations.saved(cell.config, cell.batch, cell.length, cell.dtype).values())
    if cell.task in DECODING and cell.cached:
        found["cache"] = memory.kv_cache(cell.config, cell.batch, cell.length + cell.new, cell.dtype)
    return found
