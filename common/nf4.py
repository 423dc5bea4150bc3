"""What a base in 4 bits is made of: the numbers that codes stand for, the sizes of blocks, and whom it concerns.

NF4 are 16 quantiles of the normal distribution: weights are nearly normal, so all codes are used about equally often.
Dettmers et al. 2023 (QLoRA), section 3 and appendix E. The arithmetic stands in `quantise.py` of all implementations.
"""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from common import params
from common.config import ModelConfig
from common.errors import UserError
from common.parameter import is_matrix

BLOCK = 64  # weights that share one largest absolute value (absmax)
GROUP = 256  # of these, how many share a scale where they are kept in 8 bits themselves ("nf4_double")
OFFSET = 0.9677083  # 1 - (1/30 + 1/32) / 2 as published: the outermost of 2 * 15 and of 2 * 16 equal parts, averaged
TINY = 2.0**-100  # a block whose absmax is smaller counts as zeros: no number here is subnormal, which XLA has not
CLOSE = 2.0**-24  # a group whose absmax part by less of their mean counts as one number


def nf4_values() -> np.ndarray:
    """The 16 numbers that codes stand for, ascending, float32 [16]: zero, 7 negative and 8 positive ones.

    Equal to the published ones to the bit, for they are computed in float32 as those were.
    """
    negative, positive = -_quantiles(7), _quantiles(8)
    values = np.sort(np.concatenate([negative, np.zeros(1, np.float32), positive]))
    return values / values.max()


def _quantiles(count: int) -> np.ndarray:
    """Quantiles of N(0, 1) at probabilities from OFFSET down to above one half, evenly spaced: float32 [count]."""
    return np.array([NormalDist().inv_cdf(float(p)) for p in _spaced(OFFSET, 0.5, count)[:-1]], np.float32)


def _spaced(start: float, end: float, parts: int) -> np.ndarray:
    """Where equal parts between two numbers begin and end: float32 [parts + 1], each counted from the nearer end."""
    first, last = np.float32(start), np.float32(end)
    step, at = (last - first) / np.float32(parts), np.arange(parts + 1, dtype=np.float32)
    return np.where(2 * at < parts + 1, first + step * at, last - step * (parts - at))


def dynamic_values() -> np.ndarray:
    """The numbers of an 8-bit code, ascending, float32 [256]: the decade from 10^(k-7) to 10^(k-6) has 2^k of either
    sign, k = 0 to 6, each amid one of as many equal parts; beside them are zero and 1.

    Dettmers 2016, section 2.2 (dynamic tree); Dettmers et al. 2022, section 1.3. In float32 as they are in use.
    """
    decades = []
    for k in range(7):
        borders = _spaced(0.1, 1.0, 2**k)
        decades.append(np.float32(10.0 ** (k - 6)) * ((borders[:-1] + borders[1:]) * np.float32(0.5)))
    positive = np.concatenate(decades)
    return np.sort(np.concatenate([-positive, positive, np.array([0, 1], np.float32)]))


def midpoints(values: np.ndarray) -> np.ndarray:
    """The borders between what is nearest to one of these numbers and to the next, float32."""
    return (values[1:] + values[:-1]) * np.float32(0.5)


NF4, DYNAMIC = nf4_values(), dynamic_values()


def names(config: ModelConfig) -> tuple[str, ...]:
    """The parameters that a base in 4 bits keeps so: weights of linear maps inside layers. Embeddings, heads, routers
    and experts, whose matrices lie one on the other, stay as they are."""
    inside = (one for one in params.table(config).values() if one.name.startswith("model.layers."))
    return tuple(one.name for one in inside if one.part == "linear" and is_matrix(one.name, len(one.shape)))


PARTS = ("packed", "absmax", "scale", "offset")  # what stands for a matrix, in the place of `weight`


def kept(config: ModelConfig, base: str) -> tuple[str, ...]:
    """The parameters that this base keeps in 4 bits, if it does."""
    return () if base == "plain" else names(config)


def is_part(name: str) -> bool:
    """Whether an array of this name stands for a matrix in 4 bits, or for a part of what does: it is no parameter."""
    return name.rpartition(".")[2] in PARTS


def check_trained(config: ModelConfig, base: str, trained: Mapping[str, bool]) -> None:
    """Refuse to train what is kept in 4 bits. `trained[name]` says what a run trains."""
    stuck = [name for name in kept(config, base) if trained[name]]
    if stuck:
        more = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
        raise UserError(
            f"base={base!r} keeps {stuck[0]}{more} in 4 bits, which cannot be trained: give the model adapters, or"
            " train other parameters."
        )


def parts(config: ModelConfig, base: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and number format of all that stands for the matrices that this base keeps in 4 bits, by full name."""
    table, found = params.table(config), {}
    for name in kept(config, base):
        for part, own in stored(table[name].size, base).items():
            found[f"{name.removesuffix('.weight')}.{part}"] = own
    return found


def stored(size: int, base: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and number format of what stands for a matrix of `size` weights, by name."""
    blocks = -(-size // BLOCK)
    if base == "nf4":
        return {"packed": ((-(-size // 2),), "uint8"), "absmax": ((blocks,), "float32")}
    return {
        "packed": ((-(-size // 2),), "uint8"),
        "absmax": ((blocks,), "uint8"),
        "scale": ((-(-blocks // GROUP),), "float32"),
        "offset": ((1,), "float32"),
    }
