"""Who may attend to whom: boolean, True means attend, derived from absolute positions."""

import functools

import jax.numpy as jnp
import numpy as np


def causal_mask(query_positions_BT, key_positions_BS):
    """[B, 1, T, S]: a query sees keys at its own position and before; position -1 is padding or an empty slot. None for
    positions None: all rows count 0, 1, 2, …, which the kernel must know how to do (fused attention)."""
    # [1] not later than the query, and not empty
    if query_positions_BT is None:
        return None
    query, key = query_positions_BT[:, None, :, None], key_positions_BS[:, None, None, :]
    return (key <= query) & (key >= 0)


def full_mask(query_positions_BT, key_positions_BS):
    """[B, 1, T, S]: a query sees all keys, later ones too; position -1 is padding or an empty slot."""
    # [1] not empty
    seen_B1TS = jnp.ones_like(query_positions_BT[:, None, :, None], bool)
    return seen_B1TS & (key_positions_BS[:, None, None, :] >= 0)


def local_mask(query_positions_BT, key_positions_BS, window):
    """[B, 1, T, S]: a query sees `window` positions, the last of them its own; `causal_mask` hides later ones."""
    # [1] not too far back
    return key_positions_BS[:, None, None, :] > query_positions_BT[:, None, :, None] - window


class StoredMask:
    """[1, 1, T, T]: what `causal_mask` gives for positions 0, 1, 2, …, cut out of one for the whole context, which is a
    constant of compiled programs. Source: Raschka, *Build a Large Language Model (From Scratch)*, section 3.5.
    """

    def __init__(self, config, execution):
        self.size = config.context_length

    def __eq__(self, other):
        return isinstance(other, StoredMask) and self.size == other.size

    def __hash__(self):
        return hash(self.size)

    def __call__(self, length):
        # [1] its upper left corner
        return jnp.asarray(_whole(self.size)[..., :length, :length])


@functools.lru_cache(maxsize=8)
def _whole(size):
    return np.tril(np.ones((1, 1, size, size), bool))


def no_mask(length):
    """None: left to the kernel, or made from positions for every call."""
    # [1] nothing is kept
    return None


MASKS = {"plain": lambda config, execution: no_mask, "stored": StoredMask}
