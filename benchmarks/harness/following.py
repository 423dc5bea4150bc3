"""Layers that choose keys for their queries: the judge follows a contender's choices, and says how good they were.

Scores of two keys may lie nearer than float32 can tell. Then an honest contender may take the other one, and what
follows is as different as two keys are: here by 2e-4 of the logits where rounding alone makes 1e-6. So the oracle
computes what is due with the contender's own choices, which must be those of the largest of the oracle's scores to
within rounding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from common.config import ModelConfig
from common.taps import Taps

TAP = "*.self_attn.chosen"
Choices = Mapping[str, tuple[tuple[int, ...], bytes]]  # masks [B, T, S] by tap: shape and bits


def chooses(config: ModelConfig) -> bool:
    """Whether a model has layers that choose keys."""
    return any(entry.chooses for entry in config.attention)


def packed(taps: Mapping[str, Any]) -> Choices:
    """Masks as bits, for the way between processes."""
    masks = {name: np.asarray(mask) > 0.5 for name, mask in taps.items()}
    return {name: (mask.shape, np.packbits(mask).tobytes()) for name, mask in masks.items()}


def mask(shape: tuple[int, ...], bits: bytes) -> np.ndarray:
    """One of them as it was."""
    count = int(np.prod(shape))
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).reshape(shape).astype(bool)


class Following(Taps):
    """The oracle's listener: goes on with the choices that it was given, and keeps the worst `regret` of them in
    `found`, over the RMS of a query's scores; infinite where a query has not as many keys as the oracle gives it."""

    def __init__(self, choices: Choices, *, prefix: str = "", found: dict[str, Any] | None = None):
        super().__init__(("*.index_scores", TAP), prefix=prefix, found=found)
        self.choices = choices
        self.found.setdefault("regret", 0.0)

    def under(self, name: str) -> "Following":
        return Following(self.choices, prefix=f"{self.prefix}{name}.", found=self.found)

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if name == "index_scores":
            self.found["scores"] = value
        if name != "chosen" or "scores" not in self.found or not self.prefix.endswith("self_attn."):
            return value
        scores = self.found.pop("scores")
        given = self.choices.get(self.prefix + name)
        if given is None or given[0] != value.shape:
            self.found["regret"] = np.inf
            return value
        chosen = mask(*given)
        self.found["regret"] = max(self.found["regret"], regret(scores, chosen, value > 0.5))
        return chosen.astype(np.float64)


def regret(scores: np.ndarray, chosen: np.ndarray, best: np.ndarray) -> float:
    """By how much the largest score that was left lies above the smallest that was taken, at worst, over the RMS of the
    visible scores of that query; all [B, T, S]. Source: C4 of the certificate, for whole texts."""
    visible = scores > -np.inf
    if (chosen & ~visible).any() or (chosen.sum(-1) != best.sum(-1)).any():
        return np.inf
    least = np.where(chosen, scores, np.inf).min(-1)
    left = np.where(chosen, -np.inf, scores).max(-1)
    shown = np.where(visible, scores, 0.0)
    size = np.sqrt(np.square(shown).sum(-1) / np.maximum(1, visible.sum(-1)))
    over = np.where(left > least, left - least, 0.0)  # nothing is left, or nothing taken: no regret
    return float((over / np.maximum(size, np.finfo(np.float64).tiny)).max())
