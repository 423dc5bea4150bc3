"""A cell: one task at one size in one precision, and who is timed at it. Cells are data; suites list them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness.contenders import Contender
from common import params
from common.accounting import activations, flops, memory
from common.config import ModelConfig, SamplingConfig, TrainConfig

TRAIN = TrainConfig(schedule="constant", learning_rate=1e-4, clip_norm=1.0)
FRESH = ("compile", "start-up", "load")  # every turn in a process of its own, which measures a beginning


@dataclass(frozen=True)
class Cell:
    """`task` is one of `Model.prepare`, "decode" (generate `new` tokens), or one of FRESH, on `batch` x `length` ids.

    `part` says what of a suite this is, where suite, model and size do not tell cells apart ("no cache").
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
    memory: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        size = f"{self.batch}x{self.length}" + (f"+{self.new}" if self.new else "")
        return "/".join(filter(None, (self.suite, self.part, self.model, size, self.dtype)))

    @property
    def title(self) -> str:
        size = f"{self.batch} × {self.length}" + (f" + {self.new}" if self.new else "")
        return ", ".join(filter(None, (TITLES[self.task], self.part, self.model, size, self.dtype)))

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(max_new_tokens=self.new, cache=self.cached)

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) int32 [B, T]: every contender of the cell gets the same."""
        drawn = np.random.default_rng(self.seed).integers(0, self.config.vocab_size, (self.batch, self.length + 1))
        ids = drawn.astype(np.int32)
        return ids[:, :-1], ids[:, 1:]

    def inputs(self) -> tuple[np.ndarray, np.ndarray | None]:
        """What the task takes: ids and targets, an activation [B, T, E], or logits [B, V]."""
        rng = np.random.default_rng(self.seed)
        if self.task == "dropout":
            return rng.standard_normal((self.batch, self.length, self.config.embed_dim)).astype(np.float32), None
        if self.task == "sample":
            return rng.standard_normal((self.batch, self.config.vocab_size)).astype(np.float32), None
        return self.tokens()

    def line(self) -> dict[str, Any]:
        """The cell as its line of the record has it."""
        axis = None if self.axis is None else {"name": self.axis[0], "value": self.axis[1]}
        return {
            "cell": self.name,
            "suite": self.suite,
            "task": self.task,
            "title": self.title,
            "model": self.model,
            "batch": self.batch,
            "length": self.length,
            "new": self.new,
            "dtype": self.dtype,
            **work(self),
            "ideal": ideal(self),
            "axis": axis,
        }


TITLES = {
    "forward": "Forward",
    "prefill": "Prefill",
    "train": "Training step",
    "decode": "Decoding",
    "gradients": "Loss and gradients",
    "loss": "Loss",
    "optimizer": "AdamW step",
    "dropout": "Dropout",
    "sample": "Sampling",
    "compile": "Compiling a training step",
    "start-up": "Start to first logits",
    "load": "Loading weights",
}


def work(cell: Cell) -> dict[str, Any]:
    """What one call has to do: units, FLOPs with full and with causal scores, least bytes; None where it has none."""
    rule = WORK.get(cell.task)
    found = {"unit": "calls", "work": 1, "flops_full": None, "flops_causal": None, "bytes": None}
    return found | (rule(cell) if rule else {})


def _forward(cell: Cell) -> dict[str, Any]:
    return {"unit": "tokens", "work": cell.batch * cell.length, **_flops(flops.forward, cell)}


def _training(cell: Cell) -> dict[str, Any]:
    return {"unit": "tokens", "work": cell.batch * cell.length, **_flops(flops.training, cell)}


def _flops(rule: Any, cell: Cell) -> dict[str, int]:
    full, causal = (sum(rule(cell.config, cell.batch, cell.length, causal=c).values()) for c in (False, True))
    return {"flops_full": full, "flops_causal": causal}


def _decode(cell: Cell) -> dict[str, Any]:
    """With a cache, every new token needs all weights and the cache so far."""
    found: dict[str, Any] = {"unit": "tokens", "work": cell.batch * cell.new}
    if cell.cached:
        kind = cell.dtype
        steps = [
            sum(memory.decode_bytes(cell.config, cell.batch, cell.length + step, kind).values())
            for step in range(cell.new)
        ]
        found["bytes"] = sum(steps)
    return found


def _optimizer(cell: Cell) -> dict[str, Any]:
    """Weights, gradients and two averages are read, and all but the gradients written."""
    return {"unit": "parameters", "work": params.count(cell.config), "bytes": 7 * memory.weights(cell.config)}


WORK: Mapping[str, Any] = {
    "forward": _forward,
    "gradients": _training,
    "train": _training,
    "decode": _decode,
    "optimizer": _optimizer,
}


def ideal(cell: Cell) -> dict[str, int] | None:
    """Closed-form bytes of what a task must keep, by kind; None for tasks whose memory nobody asks for."""
    if not cell.memory:
        return None
    kept = memory.weights(cell.config)
    found = {"parameters": kept, "gradients": 0, "optimizer": 0, "activations": 0, "cache": 0}
    if cell.task == "train":
        found |= {"gradients": kept, "optimizer": 2 * kept}
        found["activations"] = sum(activations.saved(cell.config, cell.batch, cell.length, cell.dtype).values())
    if cell.task == "decode" and cell.cached:
        found["cache"] = memory.kv_cache(cell.config, cell.batch, cell.length + cell.new, cell.dtype)
    return found
