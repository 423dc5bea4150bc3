"""A training run's settings."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from common.errors import unknown
from common.record import Record, number, positive_int, require, whole

METHODS = ("adamw", "muon")
SCHEDULES = ("constant", "constant_with_warmup", "cosine", "linear")
DECAYS = ("matrices", "all")


@dataclass(frozen=True)
class TrainConfig(Record):
    """One training run: its optimizer with decoupled decay, global-norm clipping, a learning rate for every step.

    "adamw" moves all parameters; "muon" moves the matrices inside layers by their momentum, made orthogonal, and all
    others by AdamW, at the same rate.

    `learning_rate` is the peak. Schedules warm up linearly from `initial_rate` over `warmup_steps` and then fall on
    half a cosine ("cosine") or on a line ("linear") to `final_rate` at `steps`, or stay there ("constant_with_warmup");
    "constant" is at the peak from the first step on, whatever `warmup_steps` is.
    Gradients are clipped from step `clip_from` on; before it their norm is only measured.
    `trained` are patterns over names of parameters ("model.layers.11.*"): what they name is trained, all else stays as
    it is. Without patterns all is, or of a model with adapters these alone.
    Source: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024 (Muon); Raschka, appendix D (schedule).
    """

    LATER: ClassVar[tuple[str, ...]] = ("clip_from", "trained")

    steps: int = 300
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 20
    initial_rate: float = 0.0
    final_rate: float = 1e-4
    optimizer: str = "adamw"
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    decay: str = "matrices"
    clip_norm: float | None = 1.0
    clip_from: int = 0
    seed: int = 0
    trained: tuple[str, ...] = ()

    def __post_init__(self):
        positive_int(self, "steps", "batch_size", "accumulate")
        for name in ("learning_rate", "initial_rate", "final_rate", "weight_decay"):
            number(self, name, 0.0, 1e6, "a number >= 0")
        for name in ("momentum", "beta1", "beta2"):
            number(self, name, 0.0, 1 - 1e-12, "a number in [0, 1)")
        number(self, "adam_eps", 1e-30, 1.0, "a number in (0, 1]")
        if self.clip_norm is not None:
            number(self, "clip_norm", 1e-12, 1e12, "a number > 0, or none")
        for name in ("warmup_steps", "clip_from"):
            whole(self, name, 0, math.inf, "a whole number >= 0")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", str(self.schedule), SCHEDULES)
        if self.optimizer not in METHODS:
            raise unknown("optimizer", str(self.optimizer), METHODS)
        if self.decay not in DECAYS:
            raise unknown("decay", str(self.decay), DECAYS)
        whole(self, "seed", 0, 2**32, "a whole number in [0, 2^32)")
        patterns = (self.trained,) if isinstance(self.trained, str) else self.trained
        good = isinstance(patterns, (tuple, list)) and all(isinstance(one, str) and one for one in patterns)
        require(good, self, "trained", "patterns such as 'model.layers.11.*'")
        object.__setattr__(self, "trained", tuple(patterns))

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, 2, …"""
        if step < self.warmup_steps and self.schedule != "constant":
            return self.initial_rate + step * (self.learning_rate - self.initial_rate) / self.warmup_steps
        if self.schedule in ("constant", "constant_with_warmup"):
            return self.learning_rate
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        left = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.final_rate + (self.learning_rate - self.final_rate) * left

    def at(self, step: int) -> Self:
        """The settings as they are in step 0, 1, 2, …: nothing is clipped before `clip_from`."""
        return self if step >= self.clip_from else self.with_(clip_norm=None)

    def adam_scalars(self, step: int) -> tuple[float, float, float, int]:
        """(learning rate, 1 - beta1^t, 1 - beta2^t, t = step + 1), in host float64 for both wings."""
        return self.rate(step), 1 - self.beta1 ** (step + 1), 1 - self.beta2 ** (step + 1), step + 1
