"""Rotary positions: pairs of numbers of queries and keys turn by an angle that grows with the position.

Source: Su et al. 2021 (RoFormer), section 3.2.2; scalings as named at each.
"""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import unknown
from common.record import Record, flag, number, positive_int, require

if TYPE_CHECKING:  # settings must be readable without NumPy, which functions import
    import numpy as np

SCALINGS = ("none", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rotary(Record):
    """Which angles: `base`^(-2i / R) a position for pair i of the first R = `fraction` D numbers of a head.

    `scaling` stretches a trained context of `original` positions by `factor`: "linear" divides all angles (Chen et al.
    2023); "llama3" those whose waves are longer than `original / low`, and those between that and `original / high` in
    part (Llama 3.1); "yarn" from pair to pair along a ramp between `fast` and `slow` turns in the original context, and
    multiplies queries and keys by `attention_factor` (Peng et al. 2023, sections 3.2, 3.4; None is 0.1 ln factor + 1);
    without `truncate` the ramp does not begin and end at whole pairs.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: str = "none"
    factor: float = 1.0
    original: int = 8192
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        number(self, "base", 1.0 + 1e-9, 1e12, "a number > 1")
        number(self, "fraction", 1e-9, 1.0, "a number in (0, 1]")
        if self.scaling not in SCALINGS:
            raise unknown("scaling of rotary positions", str(self.scaling), SCALINGS)
        number(self, "factor", 1.0, 1e6, "a number >= 1")
        positive_int(self, "original")
        for name in ("low", "high", "fast", "slow"):
            number(self, name, 1e-9, 1e9, "a number > 0")
        require(self.low < self.high, self, "low", f"a number below high ({self.high:g})")
        require(self.slow < self.fast, self, "slow", f"a number below fast ({self.fast:g})")
        if self.attention_factor is not None:
            number(self, "attention_factor", 1e-9, 1e9, "a number > 0, or none")
        flag(self, "truncate")

    def width(self, head_dim: int) -> int:
        """R, how many of a head's numbers turn: even, at least 2."""
        return max(2, 2 * int(self.fraction * head_dim / 2))

    def frequencies(self, head_dim: int) -> "np.ndarray":
        """The angle of every pair at position 1, float64 [R / 2]."""
        import numpy as np

        width = self.width(head_dim)
        plain = self.base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            wave = 2 * math.pi / plain
            share = np.clip((self.original / wave - self.low) / (self.high - self.low), 0, 1)
            return (1 - share) * plain / self.factor + share * plain
        if self.scaling == "yarn":
            first, last = (self._pair(turns, width) for turns in (self.fast, self.slow))
            if self.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, width - 1)
            ramp = np.clip((np.arange(width // 2) - first) / max(last - first, 1e-3), 0, 1)
            return plain / self.factor * ramp + plain * (1 - ramp)
        return plain

    def _pair(self, turns: float, width: int) -> float:
        """The pair that turns so often in the original context."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.base))

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by: 1, or YaRN's attention factor."""
        if self.scaling != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor


@functools.lru_cache(maxsize=64)
def table(rotary: Rotary, head_dim: int, positions: int, dtype: str = "float64") -> tuple["np.ndarray", "np.ndarray"]:
    """(cosines, sines) of every position and pair, [positions, R / 2], made in float64 and then rounded to `dtype`.

    Made once on the host for all implementations, whose layers share the arrays: one ulp of a float32 frequency moves
    an angle at position 40,000 by 2e-3.
    """
    import numpy as np

    angles = np.arange(positions, dtype=np.float64)[:, None] * rotary.frequencies(head_dim)
    cosines, sines = rotary.amplitude * np.cos(angles), rotary.amplitude * np.sin(angles)
    return cosines.astype(dtype, copy=False), sines.astype(dtype, copy=False)


def interleaved_to_halves(weight: "np.ndarray", head_dim: int, width: int | None = None) -> "np.ndarray":
    """Rows of a query or key projection [H D, …] whose pairs lie side by side (0 1, 2 3, …), for pairs that lie half a
    width apart (0 and R / 2, …): the same attention. `width` is R where not all of a head turns."""
    return weight[_order(weight.shape[0], head_dim, width)]


def halves_to_interleaved(weight: "np.ndarray", head_dim: int, width: int | None = None) -> "np.ndarray":
    """The inverse of `interleaved_to_halves`."""
    import numpy as np

    return weight[np.argsort(_order(weight.shape[0], head_dim, width))]


def _order(rows: int, head_dim: int, width: int | None) -> "np.ndarray":
    import numpy as np

    width = head_dim if width is None else width
    own = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2), np.arange(width, head_dim)])
    return (np.arange(0, rows, head_dim)[:, None] + own).ravel()


@functools.lru_cache(maxsize=16)
def sinusoids(positions: int, dim: int) -> "np.ndarray":
    """sin and cos of position / 10000^(2i / E), side by side for every i: float64 [positions, E], added to embeddings.

    Source: Vaswani et al. 2017, section 3.5.
    """
    import numpy as np

    angles = np.arange(positions)[:, None] / 10_000.0 ** (np.arange(0, dim, 2) / dim)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(positions, -1)[:, :dim]
