"""Positions: what is added to embeddings (learned, sinusoidal, nothing); rotary and ALiBi inside attention."""

import functools
import math

import torch

from common.variants import rotary

from .layers import Embedding
from .precision import at_least, dtype


class Rotary:
    """Turns pairs of numbers of a head by the angle of their position: number i and number i + R / 2 are a pair.

    Source: Su et al. 2021, equation 34, with pairs half a width apart.
    """

    def __init__(self, settings, head_dim, positions, execution):
        reduce = execution.precision.reduce
        self.cosines_PR, self.sines_PR = _table(settings, head_dim, positions, reduce, execution.device)

    def __call__(self, x_BHTD, positions_BT):
        # [1] cosine and sine of every position and pair; padding (-1) turns as position 0, and nobody reads it
        at_BT = positions_BT.clamp(min=0)
        cosines_B1TR, sines_B1TR = self.cosines_PR[at_BT][:, None], self.sines_PR[at_BT][:, None]
        # [2] turn the first R numbers, leave the others
        half = self.cosines_PR.shape[-1]
        wide = at_least(x_BHTD, self.cosines_PR.dtype)
        first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
        turned = first * cosines_B1TR - second * sines_B1TR, second * cosines_B1TR + first * sines_B1TR
        return torch.cat([*turned, rest], -1).to(x_BHTD.dtype)


def alibi_slopes(num_heads):
    """How fast scores fall with the distance, head by head: 2^(-8 h / H) for h = 1 … H if H is a power of two, else
    those of the next smaller power and every other one of the next larger. A tuple of H numbers.

    Source: Press et al. 2022, section 3, and the authors' code for other H.
    """
    # [1] the nearest power of two
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    # [2] what is lacking: those between
    return tuple(slopes + [2.0 ** (-4 * h / power) for h in range(1, 2 * (num_heads - power), 2)])


def alibi(scores_BHTS, slopes_H, query_positions_BT, key_positions_BS):
    """Scores less slope times distance."""
    # [1] distance from key to query
    distance_B1TS = (query_positions_BT[:, None, :, None] - key_positions_BS[:, None, None, :]).to(scores_BHTS.dtype)
    # [2] subtract
    # filled where they lie, for what is copied from the host could not be recorded as a graph
    where = {"dtype": scores_BHTS.dtype, "device": scores_BHTS.device}
    slopes_H11 = torch.stack([torch.full((1, 1), slope, **where) for slope in slopes_H])
    return scores_BHTS - slopes_H11 * distance_B1TS


@functools.lru_cache(maxsize=64)
def _table(settings, head_dim, positions, reduce, device):
    """The host's table on the device, one for all layers that share it."""
    return [torch.from_numpy(array).to(device) for array in rotary.table(settings, head_dim, positions, reduce)]


class Sinusoids:
    """Row p of a table of sines and cosines stands for position p. Source: Vaswani et al. 2017, section 3.5."""

    def __init__(self, config, execution):
        table = torch.from_numpy(rotary.sinusoids(config.context_length, config.embed_dim))
        self.table_PE = table.to(dtype(execution.precision.compute)).to(execution.device)

    def __call__(self, positions_BT):
        # [1] pick the rows
        return self.table_PE[positions_BT]


POSITIONS = {
    "learned": lambda config, execution: Embedding(config.context_length, config.embed_dim, execution.precision),
    "sinusoidal": Sinusoids,
    "none": lambda config, execution: None,
}
