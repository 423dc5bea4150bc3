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
        return self._replace(used=self.used + k_BHTD.shape[2])


def empty_cache(config, batch, capacity, execution):
    """One empty `LayerCache` of `capacity` slots for every layer."""
    shape = (batch, config.num_heads, capacity, config.head_dim)
    kind = {"dtype": dtype(execution.precision.compute), "device": execution.device}
    return [
        LayerCache(
            torch.zeros(shape, **kind),
            torch.zeros(shape, **kind),
            torch.full((batch, capacity), -1, dtype=torch.int32, device=execution.device),
            torch.zeros((), dtype=torch.int64, device=execution.device),
        )
        for _ in range(config.num_layers)
    ]
