"""Positions: what is added to embeddings (learned, sinusoidal, nothing); rotary and ALiBi inside attention."""

import math

import jax.numpy as jnp

from common.variants import rotary

from .layers import Embedding
from .precision import at_least, dtype


class Rotary:
    """Turns pairs of numbers of a head by the angle of their position: number i and number i + R / 2 are a pair.

    Source: Su et al. 2021, equation 34, with pairs half a width apart.
    """

    def __init__(self, settings, head_dim, positions, execution):
        self.settings = settings, head_dim, positions, execution.precision.reduce

    def __eq__(self, other):
        return isinstance(other, Rotary) and vars(self) == vars(other)

    def __hash__(self):
        return hash(self.settings)

    def __call__(self, x_BHTD, positions_BT):
        # [1] cosine and sine of every position and pair; padding (-1) turns as position 0, and nobody reads it
        at_BT = jnp.maximum(positions_BT, 0)
        cosines_PR, sines_PR = map(jnp.asarray, rotary.table(*self.settings))  # the same arrays: one constant each
        cosines_B1TR, sines_B1TR = cosines_PR[at_BT][:, None], sines_PR[at_BT][:, None]
        # [2] turn the first R numbers, leave the others
        half, wide = cosines_PR.shape[-1], at_least(x_BHTD, cosines_PR.dtype)
        first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
        turned = first * cosines_B1TR - second * sines_B1TR, second * cosines_B1TR + first * sines_B1TR
        return jnp.concatenate([*turned, rest], -1).astype(x_BHTD.dtype)


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
    distance_B1TS = (query_positions_BT[:, None, :, None] - key_positions_BS[:, None, None, :]).astype(
        scores_BHTS.dtype
    )
    # [2] subtract
    return scores_BHTS - jnp.asarray(slopes_H, scores_BHTS.dtype)[:, None, None] * distance_B1TS


class Sinusoids:
    """Row p of a table of sines and cosines stands for position p. Source: Vaswani et al. 2017, section 3.5."""

    def __init__(self, config, execution):
        self.size, self.compute = (config.context_length, config.embed_dim), dtype(execution.precision.compute)

    def __call__(self, positions_BT):
        # [1] pick the rows
        return jnp.asarray(rotary.sinusoids(*self.size), self.compute)[positions_BT]


POSITIONS = {
    "learned": lambda config, execution: Embedding(config.context_length, config.embed_dim, execution.precision),
    "sinusoidal": Sinusoids,
    "none": lambda config, execution: None,
}
