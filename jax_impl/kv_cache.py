"""Keys and values of the past: an explicit value, static shapes, every slot with its absolute position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .precision import dtype


class LayerCache(NamedTuple):
    """One layer's slots: keys and values [B, H, S, D], positions [B, S] (-1: empty or padding), slots in use."""

    keys_BHSD: jax.Array
    values_BHSD: jax.Array
    positions_BS: jax.Array
    used: jax.Array

    def append(self, k_BHTD, v_BHTD, positions_BT):
        """Write T new slots behind those in use. Returns the cache with them in it."""
        # [1] the next T slots
        put, at = jax.lax.dynamic_update_slice_in_dim, self.used
        # [2] write keys, values, positions
        rows_BT = jnp.broadcast_to(positions_BT, (len(self.positions_BS), positions_BT.shape[1]))
        return LayerCache(
            put(self.keys_BHSD, k_BHTD, at, axis=2),
            put(self.values_BHSD, v_BHTD, at, axis=2),
            put(self.positions_BS, rows_BT, at, axis=1),
            self.used + k_BHTD.shape[2],
        )


def empty_cache(config, batch, capacity, execution):
    """One empty `LayerCache` of `capacity` slots for every layer."""
    shape = (batch, config.num_heads, capacity, config.head_dim)
    kind = dtype(execution.precision.compute)
    return [
        LayerCache(
            jnp.zeros(shape, kind),
            jnp.zeros(shape, kind),
            jnp.full((batch, capacity), -1, jnp.int32),
            jnp.zeros((), jnp.int32),
        )
        for _ in range(config.num_layers)
    ]
