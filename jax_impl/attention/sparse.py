"""Sparse attention with a lightning indexer (DeepSeek-AI 2025, DeepSeek-V3.2-Exp) on grouped-query heads.

Letters of its own: J heads of the indexer, I their size, C chosen keys.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.backend import only_plain
from common.taps import NO_TAPS

from ..kv_cache import LayerCache, layer_cache, put
from ..layers import NORMS, Linear, at_least, matmul
from ..masks import causal_mask
from ..positions import Rotary
from ..precision import dtype
from .grouped_query import GroupedQueryAttention
from .multi_head import join_heads, split_heads


class SparseCache(NamedTuple):
    """A `LayerCache` with the indexer's keys [B, S, I] beside: keys and values [B, K, S, D], positions [B, S]."""

    keys_BKSD: jax.Array
    values_BKSD: jax.Array
    index_BSI: jax.Array
    positions_BS: jax.Array
    used: jax.Array

    def append(self, k_BKTD, v_BKTD, index_BTI, positions_BT):
        """Write T new slots behind those in use. Returns the cache with them in it."""
        # [1] keys, values and positions as everywhere
        plain = LayerCache(self.keys_BKSD, self.values_BKSD, self.positions_BS, self.used)
        plain = plain.append(k_BKTD, v_BKTD, positions_BT)
        # [2] the indexer's keys beside them
        index_BSI = put(self.index_BSI, index_BTI, self.used, axis=1)
        return SparseCache(plain.keys_BHSD, plain.values_BHSD, index_BSI, plain.positions_BS, plain.used)


def sparse_cache(config, entry, batch, capacity, execution):
    """An empty cache of one layer with room for `capacity` tokens."""
    # [1] keys, values and positions as everywhere
    plain = layer_cache(config, entry, batch, capacity, execution)
    # [2] the indexer's keys beside them
    index_BSI = jnp.zeros((batch, capacity, entry.index_dim), dtype(execution.precision.compute))
    return SparseCache(plain.keys_BHSD, plain.values_BHSD, index_BSI, plain.positions_BS, plain.used)


class SparseAttention(GroupedQueryAttention):
    """Grouped-query attention to the keys that an indexer chooses for every query.

    x [B, T, E], positions [B or 1, T]. Layers that share keys and values find all of them in `given`. A single query
    reads no key or value of its cache but the chosen ones. Returns ([B, T, E], the cache). Source: DeepSeek-AI 2025,
    equations 1 and 2.
    """

    empty_cache = staticmethod(sparse_cache)

    def __init__(self, config, entry, execution):
        only_plain("Sparse", execution)
        super().__init__(config, entry, execution)
        norm = NORMS["layer_norm"][execution.norm]
        self.top_k, self.index_heads, self.weighting = entry.top_k, entry.index_heads, entry.weighting
        self.index_loss = entry.index_loss
        self.index_queries = Linear(config.embed_dim, entry.index_heads * entry.index_dim, False, execution)
        self.index_keys = Linear(config.embed_dim, entry.index_dim, False, execution)
        self.index_norm = norm(entry.index_dim, config.norm_eps, execution.precision) if entry.index_norm else None
        self.index_weights = Linear(config.embed_dim, entry.index_heads, False, execution)
        turn = entry.index_rotary
        self.index_turn = None if turn is None else Rotary(turn, entry.index_dim, config.context_length, execution)

    def __call__(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS, given=None):
        # [1] q = x W^T + b, split into heads, normalised, turned with its positions
        q_BHTD = taps("q", self._heads(self.q_proj(x_BTE), self.heads, self.q_norm))
        if self.turn is not None:
            q_BHTD = taps("turned_q", self.turn(q_BHTD, positions_BT))
        # [2] k and v likewise; of the indexer queries, one key, and how much each of its heads counts
        _, k_BKSD, v_BKSD, key_positions_BS = self._keys(x_BTE, positions_BT, None, taps)
        index_q_BJTI, index_k_BSI, index_w_BTJ = self._index(x_BTE, positions_BT, taps)
        # [3] with a cache: append k, v, the indexer's key and positions, then choose from what it holds
        if cache is not None:
            cache = cache.append(k_BKSD, v_BKSD, index_k_BSI, positions_BT)
            k_BKSD, v_BKSD, index_k_BSI, key_positions_BS, _ = cache
        if given is not None:
            given[self.window] = k_BKSD, v_BKSD, key_positions_BS
        # [4] index scores of the keys that are not later than the query; those of the largest are chosen
        visible_BTS = causal_mask(positions_BT, key_positions_BS)[:, 0]
        index_BTS = self._index_scores(index_q_BJTI, index_k_BSI, index_w_BTJ)
        index_BTS = taps("index_scores", jnp.where(visible_BTS, index_BTS, -jnp.inf))
        count = min(self.top_k, index_BTS.shape[2])
        chosen_BTS = taps("chosen", choose(index_BTS, count))
        # [5] a single query takes its chosen keys and values out of the cache, and leaves the others unread
        if chosen_BTS.shape[1] == 1 and count < chosen_BTS.shape[2]:
            slots_BC = chosen_slots(chosen_BTS[:, 0], count)
            k_BKSD, v_BKSD = pick(k_BKSD, slots_BC, 2), pick(v_BKSD, slots_BC, 2)
            index_BTS, chosen_BTS = pick(index_BTS, slots_BC, 2), pick(chosen_BTS, slots_BC, 2)
            key_positions_BS = pick(key_positions_BS, slots_BC, 1)
        # [6] scores, bent and lowered; softmax attention to the chosen keys
        shown = {}

        def show(name, value):
            shown[name] = taps(name, value)
            return shown[name]

        scores_BHTS = self._scores(q_BHTD, k_BKSD, positions_BT, key_positions_BS)
        context_BHTD = self._attend(scores_BHTS, v_BKSD, chosen_BTS[:, None], dropout_key, show)
        # [7] what the indexer learns from: for those who look, and what training adds to its loss
        if self._learns(taps):
            loss_BT = taps("indexer_loss", indexer_loss(index_BTS, chosen_BTS, shown["weights"], self.reduce))
            if self.index_loss:
                taps("index_loss", self.index_loss * loss_BT.mean())
        # [8] join the heads, gate, project
        joined_BTD = join_heads(context_BHTD)
        if self.gate_proj is not None:
            joined_BTD = joined_BTD * taps(
                "gate", jax.nn.sigmoid(at_least(self.gate_proj(x_BTE), self.reduce)).astype(x_BTE.dtype)
            )
        return taps("output", self.o_proj(joined_BTD)), cache

    def _learns(self, taps):
        """Whether the indexer's loss is asked for: by who looks, or by training where it has a weight."""
        return taps.wants("indexer_loss") or (self.index_loss > 0 and taps.wants("index_loss"))

    def _index(self, x_BTE, positions_BT, taps):
        """Queries [B, J, T, I], keys [B, T, I] and weights of the heads [B, T, J]. No gradient goes back into x."""
        x_BTE = jax.lax.stop_gradient(x_BTE)
        q_BJTI = taps("index_q", split_heads(self.index_queries(x_BTE), self.index_heads))
        k_BTI = self.index_keys(x_BTE)
        k_BTI = taps("index_k", k_BTI if self.index_norm is None else self.index_norm(k_BTI))
        if self.index_turn is not None:
            q_BJTI = taps("turned_index_q", self.index_turn(q_BJTI, positions_BT))
            k_BTI = taps("turned_index_k", self.index_turn(k_BTI[:, None], positions_BT)[:, 0])
        w_BTJ = at_least(self.index_weights(x_BTE), self.reduce)
        w_BTJ = jax.nn.softmax(w_BTJ, -1) if self.weighting == "softmax" else w_BTJ / math.sqrt(self.index_heads)
        return q_BJTI, k_BTI, taps("index_weights", w_BTJ)

    def _index_scores(self, q_BJTI, k_BSI, w_BTJ):
        """The sum over heads of w ReLU(q k^T / sqrt(I)), [B, T, S]."""
        each_BJTS = matmul("bjti,bsi->bjts", q_BJTI, k_BSI, self.reduce) / math.sqrt(k_BSI.shape[2])
        each_BJTS = jax.nn.relu(each_BJTS)
        return matmul("btj,bjts->bts", w_BTJ, each_BJTS, self.reduce)


def choose(index_BTS, count):
    """Which keys have the `count` largest index scores, bool [B, T, S]; of equal ones the first. Hidden keys have -inf,
    and are never chosen, so where fewer are visible, fewer are. A choice has no gradient.

    The least chosen score is looked for bit by bit: `jax.lax.top_k` would sort all keys on a CPU.
    """
    # [1] the first `count` in the order of their scores, then of their slots
    index_BTS = jax.lax.stop_gradient(index_BTS)
    least_BT1 = _largest(index_BTS, count)
    above_BTS, equal_BTS = index_BTS > least_BT1, index_BTS == least_BT1
    lacking_BT1 = count - above_BTS.sum(-1, keepdims=True)
    first_BTS = above_BTS | (equal_BTS & (equal_BTS.cumsum(-1) <= lacking_BT1))
    # [2] those of them that are visible
    return first_BTS & (index_BTS > -jnp.inf)


def chosen_slots(chosen_BS, count):
    """The slots of at most `count` chosen keys, [B, C]; where fewer are chosen, others fill up."""
    # [1] chosen ones before all others
    rows_B1, slots_S = jnp.arange(len(chosen_BS))[:, None], jnp.arange(chosen_BS.shape[1], dtype=jnp.int32)
    before_BS = jnp.cumsum(chosen_BS, 1, dtype=jnp.int32)
    place_BS = jnp.where(chosen_BS, before_BS - 1, before_BS[:, -1:] + slots_S - before_BS)
    empty_BC = jnp.zeros((len(chosen_BS), count), jnp.int32)
    return empty_BC.at[rows_B1, place_BS].set(slots_S, mode="drop", unique_indices=True)


def pick(x, slots_BC, axis):
    """Those slots of an array [B, …] whose slots lie along `axis`."""
    # [1] the same slots for whatever else a row has
    shape = [-1 if i == axis else slots_BC.shape[0] if i == 0 else 1 for i in range(x.ndim)]
    return jnp.take_along_axis(x, slots_BC.reshape(shape), axis)


def indexer_loss(index_BTS, chosen_BTS, weights_BHTS, reduce):
    """KL(weights of attention, summed over heads || softmax of index scores) over the chosen keys, in nats [B, T].

    The indexer is trained by it alone; of the weights there is no gradient. Source: DeepSeek-AI 2025, equation 4.
    """
    # [1] the weights of all heads together, as shares of one
    share_BTS = at_least(jax.lax.stop_gradient(weights_BHTS), reduce).sum(1)
    share_BTS = share_BTS / share_BTS.sum(-1, keepdims=True)
    # [2] the logs of what the indexer would give each key
    sees_BT1 = chosen_BTS.any(-1, keepdims=True)
    index_BTS = jnp.where(chosen_BTS, index_BTS, jnp.where(sees_BT1, -jnp.inf, 0.0))
    logs_BTS = jax.nn.log_softmax(index_BTS, -1)
    # [3] the mean of how far the logs are apart
    there_BTS = share_BTS > 0
    apart_BTS = jnp.where(there_BTS, jnp.log(jnp.where(there_BTS, share_BTS, 1.0)) - logs_BTS, 0.0)
    return (share_BTS * apart_BTS).sum(-1)


def _largest(x, count):
    """The number that is the `count`-th largest along the last axis, [..., 1]; of no use where one is NaN."""
    word = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits, top = 8 * word.itemsize, jnp.asarray(1 << (8 * word.itemsize - 1), word)
    # [1] words in the order of the numbers
    words = jax.lax.bitcast_convert_type(x, word)
    words = jnp.where(words & top != 0, ~words, words | top)

    # [2] from the highest bit down: it is set if enough words are as large as that
    def step(at, least):
        more = least | (top >> jnp.asarray(at, word))
        return jnp.where((words >= more).sum(-1, keepdims=True) >= count, more, least)

    least = jax.lax.fori_loop(0, bits, step, jnp.zeros((*x.shape[:-1], 1), word))
    # [3] back to a number
    return jax.lax.bitcast_convert_type(jnp.where(least & top != 0, least ^ top, ~least), x.dtype)
