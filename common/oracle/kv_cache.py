"""Keys and values of the past: an explicit value, static shapes, every slot with its absolute position."""

from typing import NamedTuple

import numpy as np


class LayerCache(NamedTuple):
    """One layer's slots: keys and values [B, H, S, D], positions [B, S] (-1: empty or padding), slots in use."""

    keys_BHSD: np.ndarray
    values_BHSD: np.ndarray
    positions_BS: np.ndarray
    used: int

    def append(self, k_BHTD, v_BHTD, positions_BT):
        """Write T new slots behind those in use. Returns the cache with them in it."""
        # [1] the next T slots
        at = slice(self.used, self.used + k_BHTD.shape[2])
        # [2] write keys, values, positions
        keys_BHSD, values_BHSD, positions_BS = self.keys_BHSD.copy(), self.values_BHSD.copy(), self.positions_BS.copy()
        keys_BHSD[:, :, at], values_BHSD[:, :, at], positions_BS[:, at] = k_BHTD, v_BHTD, positions_BT
        return LayerCache(keys_BHSD, values_BHSD, positions_BS, at.stop)


def empty_cache(config, batch, capacity):
    """One empty `LayerCache` of `capacity` slots for every layer."""
    shape = (batch, config.num_heads, capacity, config.head_dim)
    return [
        LayerCache(np.zeros(shape), np.zeros(shape), np.full((batch, capacity), -1, np.int32), 0)
        for _ in range(config.num_layers)
    ]
