"""Keys and values of the past: an explicit value, static shapes, every slot with its absolute position."""

from typing import NamedTuple

import torch

from .precision import dtype


class LayerCache(NamedTuple):
    """One layer's slots: keys and values [B, H, S, D], positions [B, S] (-1: empty or padding), slots in use."""

    keys_BHSD: torch.Tensor
    values_BHSD: torch.Tensor
    positions_BS: torch.Tensor
    used: torch.Tensor

    def append(self, k_BHTD, v_BHTD, positions_BT):
        """Write T new slots behind those in use, in place. Returns the cache with them in it."""
        # [1] the next T slots
        at = self.used + torch.arange(k_BHTD.shape[2], device=self.used.device)
        # [2] write keys, values, positions
        self.keys_BHSD.index_copy_(2, at, k_BHTD)
        self.values_BHSD.index_copy_(2, at, v_BHTD)
        self.positions_BS.index_copy_(1, at, positions_BT.expand(len(self.positions_BS), -1))
        return LayerCache(self.keys_BHSD, self.values_BHSD, self.positions_BS, self.used + k_BHTD.shape[2])

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

    keys_BHSD: torch.Tensor
    values_BHSD: torch.Tensor
    positions_BS: torch.Tensor

    def append(self, k_BHTD, v_BHTD, positions_BT):
        """Write the last W of T new positions of every row, in place. Returns the cache with them in it."""
        # [1] where each goes; of what would lie in one slot the last one stays
        slots = self.positions_BS.shape[1]
        rows_BT = positions_BT.expand(len(self.positions_BS), -1)
        last_B1 = rows_BT.amax(1, keepdim=True)
        kept_BT = (rows_BT >= 0) & (rows_BT > last_B1 - slots)
        hits_BST = kept_BT[:, None] & (rows_BT[:, None] % slots == torch.arange(slots, device=rows_BT.device)[:, None])
        written_BS, from_BS = hits_BST.any(-1), hits_BST.to(torch.uint8).argmax(-1)
        # [2] write keys, values, positions
        for old_BHSD, new_BHTD in ((self.keys_BHSD, k_BHTD), (self.values_BHSD, v_BHTD)):
            picked = new_BHTD.gather(2, from_BS[:, None, :, None].expand(-1, new_BHTD.shape[1], -1, new_BHTD.shape[3]))
            old_BHSD.copy_(torch.where(written_BS[:, None, :, None], picked, old_BHSD))
        self.positions_BS.copy_(torch.where(written_BS, rows_BT.gather(1, from_BS), self.positions_BS))
        return self

    def take(self, k_BHTD, v_BHTD, positions_BT):
        """`append`. Returns (cache, keys, values, positions) to attend to: the ring as it was and the new ones behind
        it, for the first of them may see what the last ones overwrite; of a single new one, the ring as it is."""
        # [1] a single one overwrites what it cannot see
        if k_BHTD.shape[2] == 1:
            cache = self.append(k_BHTD, v_BHTD, positions_BT)
            return cache, cache.keys_BHSD, cache.values_BHSD, cache.positions_BS
        # [2] several: as it was, then they
        rows_BT = positions_BT.expand(len(self.positions_BS), -1)
        both = ((self.keys_BHSD, k_BHTD, 2), (self.values_BHSD, v_BHTD, 2), (self.positions_BS, rows_BT, 1))
        seen = [torch.cat([old, new], axis) for old, new, axis in both]
        return self.append(k_BHTD, v_BHTD, positions_BT), *seen


def layer_cache(config, entry, batch, capacity, execution):
    """An empty cache of one layer with room for `capacity` tokens: a ring where it sees a window shorter than that."""
    # [1] slots for keys and values, none of them filled
    _, heads, dim = entry.heads(config)
    held, place = entry.held(capacity), {"device": execution.device}
    slots = [torch.zeros((batch, heads, held, dim), dtype=dtype(execution.precision.compute), **place) for _ in "kv"]
    positions = torch.full((batch, held), -1, dtype=torch.int32, **place)
    # [2] a ring knows by their positions where keys lie
    if held < capacity:
        return RingCache(*slots, positions)
    return LayerCache(*slots, positions, torch.zeros((), dtype=torch.int64, **place))


def emptied(caches):
    """The caches of all layers as they were made, in place."""
    # [1] every slot is empty, every number and counter 0
    for cache in caches:
        for name, value in cache._asdict().items():
            value.fill_(-1 if name == "positions_BS" else 0)
    return caches
