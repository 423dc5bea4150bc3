"""Keys and values of the past: an explicit value, static shapes, every slot with its absolute position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .precision import dtype


def put(slots, new, at, axis):
    """Write new slots at a place."""
    return branched(lambda slots: jax.lax.dynamic_update_slice_in_dim(slots, new, at, axis), slots, at)


def scatter(slots, new, at, last):
    """Write each of the new ones to a place of its own; what has none is dropped. `last` is below 0 if none has one."""
    return branched(lambda slots: slots.at[at].set(new, mode="drop"), slots, last)


def branched(write, slots, last):
    """`write(slots)`, or the slots as they are where `last` is below 0, for then nothing is written.

    On a CPU XLA would write anew for everyone who reads, in copies of all slots; it does not look into a branch.
    """

    def branch(slots):
        return jax.lax.cond(last >= 0, write, lambda slots: slots, slots)

    return jax.lax.platform_dependent(slots, cpu=branch, default=write)


class LayerCache(NamedTuple):
    """One layer's slots: keys and values [B, H, S, D], positions [B, S] (-1: empty or padding), slots in use."""

    keys_BHSD: jax.Array
    values_BHSD: jax.Array
    positions_BS: jax.Array
    used: jax.Array

    def append(self, k_BHTD, v_BHTD, positions_BT):
        """Write T new slots behind those in use. Returns the cache with them in it."""
        # [1] the next T slots
        at = self.used
        # [2] write keys, values, positions
        rows_BT = jnp.broadcast_to(positions_BT, (len(self.positions_BS), positions_BT.shape[1]))
        return LayerCache(
            put(self.keys_BHSD, k_BHTD, at, axis=2),
            put(self.values_BHSD, v_BHTD, at, axis=2),
            put(self.positions_BS, rows_BT, at, axis=1),
            self.used + k_BHTD.shape[2],
        )

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

    keys_BHSD: jax.Array
    values_BHSD: jax.Array
    positions_BS: jax.Array

    def append(self, k_BHTD, v_BHTD, positions_BT):
        """Write the last W of T new positions of every row. Returns the cache with them in it."""
        # [1] where each goes; of what would lie in one slot the last one stays
        slots = self.positions_BS.shape[1]
        rows_BT = jnp.broadcast_to(positions_BT, (len(self.positions_BS), positions_BT.shape[1]))
        last_B1 = rows_BT.max(1, keepdims=True)
        kept_BT = (rows_BT >= 0) & (rows_BT > last_B1 - slots)
        slot_BT, row_B1 = jnp.where(kept_BT, rows_BT % slots, slots), jnp.arange(len(rows_BT))[:, None]
        # [2] write keys, values, positions
        at, last = (row_B1, slice(None), slot_BT), last_B1.max()
        return RingCache(
            scatter(self.keys_BHSD, jnp.swapaxes(k_BHTD, 1, 2), at, last),
            scatter(self.values_BHSD, jnp.swapaxes(v_BHTD, 1, 2), at, last),
            scatter(self.positions_BS, rows_BT, (row_B1, slot_BT), last),
        )

    def take(self, k_BHTD, v_BHTD, positions_BT):
        """`append`. Returns (cache, keys, values, positions) to attend to: the ring as it was and the new ones behind
        it, for the first of them may see what the last ones overwrite; of a single new one, the ring as it is."""
        # [1] a single one overwrites what it cannot see
        cache = self.append(k_BHTD, v_BHTD, positions_BT)
        if k_BHTD.shape[2] == 1:
            return cache, cache.keys_BHSD, cache.values_BHSD, cache.positions_BS
        # [2] several: as it was, then they
        rows_BT = jnp.broadcast_to(positions_BT, (len(self.positions_BS), positions_BT.shape[1]))
        both = ((self.keys_BHSD, k_BHTD, 2), (self.values_BHSD, v_BHTD, 2), (self.positions_BS, rows_BT, 1))
        return cache, *(jnp.concatenate([old, new], axis) for old, new, axis in both)


def layer_cache(config, entry, batch, capacity, execution):
    """An empty cache of one layer with room for `capacity` tokens: a ring where it sees a window shorter than that."""
    # [1] slots for keys and values, none of them filled
    _, heads, dim = entry.heads(config)
    held = entry.held(capacity)
    slots = [jnp.zeros((batch, heads, held, dim), dtype(execution.precision.compute)) for _ in "kv"]
    positions = jnp.full((batch, held), -1, jnp.int32)
    # [2] a ring knows by their positions where keys lie
    if held < capacity:
        return RingCache(*slots, positions)
    return LayerCache(*slots, positions, jnp.zeros((), jnp.int32))


def emptied(caches):
    """The caches of all layers as they were made."""
    # [1] every slot is empty, every number and counter 0
    found = []
    for cache in caches:
        fields = cache._asdict().items()
        found.append(cache._replace(**{n: jnp.full_like(v, -1 if n == "positions_BS" else 0) for n, v in fields}))
    return found
