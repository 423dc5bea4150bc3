"""A tensor that stays in its file until it is asked for, whole or in part."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from common.params import LazyWeights

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Stored:
    """Shape, NumPy dtype and a way to read: `read()` gives the whole array, `read(index)` one slice per axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[..., np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


def in_memory(array: np.ndarray) -> Stored:
    """An array that is already there (or mapped), seen as a stored tensor."""
    return Stored(array.shape, array.dtype, lambda index=...: array[index])


class StoredWeights(LazyWeights):
    """Weights by name whose shapes and dtypes are known without reading them."""

    def __init__(self, tensors: Mapping[str, Stored]):
        self.tensors = dict(tensors)
        super().__init__({name: tensor.read for name, tensor in self.tensors.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def stored(weights: Mapping[str, np.ndarray], names: Iterable[str] | None = None) -> dict[str, Stored]:
    """Any weights as stored tensors. Makers that do not tell shape and dtype are run once for them, one at a time."""
    if isinstance(weights, StoredWeights):
        return dict(weights.tensors)
    return {name: _described(weights, name) for name in (weights if names is None else names)}


def _described(weights: Mapping[str, np.ndarray], name: str) -> Stored:
    array = np.asarray(weights[name])
    if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
        raise UserError(f"{name} has dtype {array.dtype}; a weight must be an array of numbers.")

    def read(index: Index = ...) -> np.ndarray:
        return np.asarray(weights[name])[index]

    return Stored(array.shape, array.dtype, read)
