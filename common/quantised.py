"""What 4 bits make of a model's weights: the same model with the numbers that the bits stand for, errors and bytes."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common import nf4, params
from common.accounting import memory
from common.accounting.parts import kind
from common.config import ModelConfig
from common.errors import UserError
from common.oracle.quantise import dequantise, quantise

FORMATS = ("float32", "bfloat16", "nf4", "nf4_double")
BASES = FORMATS[2:]


def quantised(config: ModelConfig, weights: Mapping[str, np.ndarray], base: str = "nf4") -> params.LazyWeights:
    """The weights that a model whose base is kept so computes with: float32 where 4 bits stand for them, else the same.

    Whoever computes with these must find what a wing with `base` finds: this is its truth.
    """
    own = set(nf4.names(config))

    def stand_in(name: str) -> np.ndarray:
        weight = weights[name]
        return dequantise(quantise(weight, base, name), weight.shape)

    makers = {
        name: functools.partial(stand_in if name in own else weights.__getitem__, name) for name in params.table(config)
    }
    return params.LazyWeights(makers)


@dataclass(frozen=True)
class Kind:
    """All matrices of a kind, as "q_proj": how many, their weights, bytes by format, and what 4 bits do to them.

    `rms` is the root of the mean square of what changes, relative to that of the weights; `largest` the largest change
    of one weight, in the weights' own unit. Both by base.
    """

    name: str
    matrices: int
    weights: int
    bytes: dict[str, int]
    rms: dict[str, float]
    largest: dict[str, float]

    def bits(self, format: str) -> float:
        """Bits a weight."""
        return 8 * self.bytes[format] / self.weights


@dataclass(frozen=True)
class Report:
    """A model in 4 bits: its kinds of matrices, all of these together ("base"), what stays as it is ("rest", weights
    and bytes by format; in 4 bits they are kept in float32), and losses in nats by format, where a text was given."""

    kinds: tuple[Kind, ...]
    base: Kind
    rest: int
    loss: dict[str, float] | None = None
    tokens: int = 0

    def whole(self, format: str) -> int:
        """Bytes of the whole model; beside 4 bits the rest is kept in float32."""
        return self.base.bytes[format] + self.rest * memory.ITEM_BYTES.get(format, 4)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        told = [{**asdict(one), "bits": {name: one.bits(name) for name in FORMATS}} for one in (*self.kinds, self.base)]
        return {
            "kinds": told[:-1],
            "base": told[-1],
            "rest": self.rest,
            "model_bytes": {name: self.whole(name) for name in FORMATS},
            "loss": self.loss,
            "tokens": self.tokens,
        }


def report(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Report:
    """What 4 bits do to every kind of matrix. `watch` passes names on, and may show how far it is."""
    names = nf4.names(config)
    if not names:
        raise UserError("This model has no linear maps inside layers, so there is nothing to keep in 4 bits.")
    table = params.table(config)
    found: dict[str, list[_Sums]] = {}
    for name in watch(names):
        found.setdefault(kind(name.removesuffix(".weight")), []).append(_sums(weights[name], name))
    kinds = tuple(_kind(name, own) for name, own in found.items())
    whole = _kind("base", [one for own in found.values() for one in own])
    return Report(kinds, whole, sum(one.size for one in table.values()) - whole.weights)


@dataclass(frozen=True)
class _Sums:
    """Of one matrix: its size, the sum of squares, and by base that of changes, and the largest."""

    size: int
    squares: float
    changed: dict[str, float]
    largest: dict[str, float]


def _sums(weight: np.ndarray, name: str) -> _Sums:
    wide, changed, largest = np.asarray(weight, np.float64), {}, {}
    for base in BASES:
        change = dequantise(quantise(weight, base, name), weight.shape) - wide
        changed[base], largest[base] = float(np.square(change).sum()), float(np.abs(change).max())
    return _Sums(weight.size, float(np.square(wide).sum()), changed, largest)


def _kind(name: str, own: Sequence[_Sums]) -> Kind:
    size, squares = sum(one.size for one in own), sum(one.squares for one in own)
    return Kind(
        name=name,
        matrices=len(own),
        weights=size,
        bytes={format: sum(memory.matrix(one.size, format) for one in own) for format in FORMATS},
        rms={base: math.sqrt(sum(one.changed[base] for one in own) / squares) if squares else 0.0 for base in BASES},
        largest={base: max(one.largest[base] for one in own) for base in BASES},
    )
