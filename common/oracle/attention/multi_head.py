"""Causal multi-head attention (Vaswani et al. 2017, section 3.2.2)."""

import numpy as np

from common.taps import NO_TAPS

from ..kv_cache import layer_cache
from ..layers import Linear
from ..masks import causal_mask, full_mask
from ..module import Module
from .kernels import KERNELS


class MultiHeadAttention(Module):
    """q, k, v from x; H heads of size D attend causally; their contexts are joined and projected.

    x [B, T, E], positions [B or 1, T]. With a cache, k and v are appended to it and all of its slots are keys.
    Returns ([B, T, E], the cache).
    """

    empty_cache = staticmethod(layer_cache)

    def __init__(self, config, entry):
        embed = config.embed_dim
        self.num_heads, self.rate, self.causal = config.num_heads, config.dropout_attn, config.causal
        self.kernel, self.project = KERNELS["plain"], PROJECTIONS["plain"]
        self.q_proj = Linear(embed, embed, bias=config.qkv_bias)
        self.k_proj = Linear(embed, embed, bias=config.qkv_bias)
        self.v_proj = Linear(embed, embed, bias=config.qkv_bias)
        self.o_proj = Linear(embed, embed, bias=True)

    def __call__(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS):
        # [1] q, k, v = x W^T + b, split into heads
        linears = self.q_proj, self.k_proj, self.v_proj
        q_BHTD, k_BHSD, v_BHSD = map(taps, "qkv", self.project(linears, x_BTE, self.num_heads))
        key_positions_BS = positions_BT
        # [2] with a cache: append k, v and their positions, then attend to every slot
        if cache is not None:
            cache, k_BHSD, v_BHSD, key_positions_BS = cache.take(k_BHSD, v_BHSD, positions_BT)
        # [3] a query sees keys that are not later than itself (all, if the model is not causal)
        mask_B1TS = causal_mask(positions_BT, key_positions_BS)
        if not self.causal:
            mask_B1TS = full_mask(positions_BT, key_positions_BS)
        # [4] softmax attention
        context_BHTD = self.kernel(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, self.rate, dropout_key, taps)
        # [5] join the heads, project
        return taps("output", self.o_proj(join_heads(context_BHTD))), cache


def split_heads(x_BTE, num_heads):
    """[B, T, E] -> [B, H, T, D]."""
    batch, length, embed = x_BTE.shape
    return np.swapaxes(x_BTE.reshape(batch, length, num_heads, embed // num_heads), 1, 2)


def join_heads(x_BHTD):
    """[B, H, T, D] -> [B, T, E]."""
    batch, heads, length, dim = x_BHTD.shape
    return np.swapaxes(x_BHTD, 1, 2).reshape(batch, length, heads * dim)


def plain_projections(linears, x_BTE, num_heads):
    """q, k and v [B, H, T, D] by a product each."""
    # [1] x W^T + b, then split
    return [split_heads(linear(x_BTE), num_heads) for linear in linears]


PROJECTIONS = {"plain": plain_projections}
