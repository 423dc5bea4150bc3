"""One entry of the parameter table, and the entries that linear maps, norms and embeddings consist of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """One tensor: its name, shape, initial distribution ("normal", "zeros", "ones",
    "log_uniform": the logarithm of U(0, 16), "uniform": U(-std, std), "norms": those of the rows of the linear map that
    an adapter's magnitudes belong to) and whether AdamW decays it.

    `part` says what the module that owns it does with it: "linear", "router", "experts" (as many linear maps),
    "embedding", "layer_norm", "rms_norm", "lora" (of an adapter), or "scale" (numbers that are added or multiplied one
    by one). `dead` marks a
    parameter whose gradient is exactly zero in theory, so that what arrives is rounding noise: softmax ignores what is
    the same for all keys, hence a key bias without rotary positions. `chooses` marks a dead one on which outputs depend
    all the same, in jumps.
    """

    name: str
    shape: tuple[int, ...]
    init: str = "normal"
    std: float = 0.02
    decays: bool = True
    dead: bool = False
    chooses: bool = False
    part: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def is_matrix(name: str, dims: int) -> bool:
    """Whether a tensor is multiplied, in the type of compute, or looked up. Biases are added, in the type of
    parameters, even where those of several experts lie one on the other."""
    return dims > 1 and not name.endswith("bias")


def linear(
    name: str, out_dim: int, in_dim: int, *, bias: bool, std: float = 0.02, dead_bias: bool = False
) -> Iterator[Parameter]:
    """W [out, in] and b [out]."""
    yield Parameter(f"{name}.weight", (out_dim, in_dim), std=std, part="linear")
    if bias:
        yield Parameter(f"{name}.bias", (out_dim,), init="zeros", decays=False, dead=dead_bias, part="linear")


def layer_norm(name: str, width: int) -> Iterator[Parameter]:
    """Scale and shift."""
    yield Parameter(f"{name}.weight", (width,), init="ones", decays=False, part="layer_norm")
    yield Parameter(f"{name}.bias", (width,), init="zeros", decays=False, part="layer_norm")


def rms_norm(name: str, width: int) -> Iterator[Parameter]:
    """Scale."""
    yield Parameter(f"{name}.weight", (width,), init="ones", decays=False, part="rms_norm")


def embedding(name: str, count: int, dim: int) -> Iterator[Parameter]:
    """A row for every id."""
    yield Parameter(f"{name}.weight", (count, dim), part="embedding")


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}
