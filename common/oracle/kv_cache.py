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

    def take(self, k_BHTD, v_BHTD, positions_BT):
        """`append`. Returns (cache, keys, values, positions) to attend to: all slots."""
        # [1] the new ones are among them
        cache = self.append(k_BHTD, v_BHTD, positions_BT)
        return cache, cache.keys_BHSD, cache.values_BHSD, cache.positions_BS


class NoCache(NamedTuple):
    """Of a layer that reads another one's."""


class RingCache(NamedTuple):
    """The same of a layer that sees W positions back: position p lies in slot p mod W. Keys and values [B, K, W, D],
    positions [B, W] (-1: empty). Padding is not written, so rows may be padded anywhere."""

    keys_BHSD: np.ndarray
    values_BHSD: np.ndarray
    positions_BS: np.ndarray

    def append(self, k_BHTD, v_BHTD, positions_BT):
        """Write the last W of T new positions of every row. Returns the cache with them in it."""
        # [1] where each goes; of what would lie in one slot the last one stays
        keys_BHSD, values_BHSD, positions_BS = self.keys_BHSD.copy(), self.values_BHSD.copy(), self.positions_BS.copy()
        rows_BT = np.broadcast_to(positions_BT, (len(positions_BS), positions_BT.shape[1]))
        # [2] write keys, values, positions
        for row, token in np.argwhere(rows_BT >= 0):
            slot = rows_BT[row, token] % positions_BS.shape[1]
            keys_BHSD[row, :, slot], values_BHSD[row, :, slot] = k_BHTD[row, :, token], v_BHTD[row, :, token]
            positions_BS[row, slot] = rows_BT[row, token]
        return RingCache(keys_BHSD, values_BHSD, positions_BS)

    def take(self, k_BHTD, v_BHTD, positions_BT):
        """`append`. Returns (cache, keys, values, positions) to attend to: the ring as it was and the new ones behind
        it, for the first of them may see what the last ones overwrite; of a single new one, the ring as it is."""
        # [1] a single one overwrites what it cannot see
        cache = self.append(k_BHTD, v_BHTD, positions_BT)
        if k_BHTD.shape[2] == 1:
            return cache, cache.keys_BHSD, cache.values_BHSD, cache.positions_BS
        # [2] several: as it was, then they
        rows_BT = np.broadcast_to(positions_BT, (len(self.positions_BS), positions_BT.shape[1]))
        both = ((self.keys_BHSD, k_BHTD, 2), (self.values_BHSD, v_BHTD, 2), (self.positions_BS, rows_BT, 1))
        return cache, *(np.concatenate([old, new], axis) for old, new, axis in both)


def layer_cache(config, entry, batch, capacity):
    """An empty cache of one layer with room for `capacity` tokens: a ring where it sees a window shorter than that."""
    # [1] slots for keys and values, none of them filled
    _, heads, dim = entry.heads(config)
    held = entry.held(capacity)
    slots = np.zeros((batch, heads, held, dim)), np.zeros((batch, heads, held, dim))
    positions = np.full((batch, held), -1, np.int32)
    # [2] a ring knows by their positions where keys lie
    return RingCache(*slots, positions) if held < capacity else LayerCache(*slots, positions, 0)


def emptied(caches):
    """The caches of all layers as they were made."""
    # [1] every slot is empty, every number and counter 0
    found = []
    for cache in caches:
        fields = cache._asdict().items()
        found.append(cache._replace(**{n: np.full_like(v, -1 if n == "positions_BS" else 0)[()] for n, v in fields}))
    return found
