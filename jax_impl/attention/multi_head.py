"""Causal multi-head attention (Vaswani et al. 2017, section 3.2.2)."""

import jax.numpy as jnp
from flax import nnx

from common.taps import NO_TAPS

from ..kv_cache import layer_cache
from ..layers import Linear, matmul
from ..masks import MASKS, causal_mask, full_mask
from ..precision import dtype
from .kernels import KERNELS


class MultiHeadAttention(nnx.Module):
    """q, k, v from x; H heads of size D attend causally; their contexts are joined and projected.

    x [B, T, E], positions [B or 1, T]. With a cache, k and v are appended to it and all of its slots are keys.
    Returns ([B, T, E], the cache).
    """

    empty_cache = staticmethod(layer_cache)

    def __init__(self, config, entry, execution):
        embed = config.embed_dim
        self.num_heads, self.rate, self.causal = config.num_heads, config.dropout_attn, config.causal
        self.kernel, self.reduce = KERNELS.get(execution.attention), dtype(execution.precision.reduce)
        self.project, self.counted = PROJECTIONS[execution.projections], MASKS[execution.masks](config, execution)
        self.q_proj = Linear(embed, embed, config.qkv_bias, execution)
        self.k_proj = Linear(embed, embed, config.qkv_bias, execution)
        self.v_proj = Linear(embed, embed, config.qkv_bias, execution)
        self.o_proj = Linear(embed, embed, True, execution)

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
        if mask_B1TS is None:  # positions only count
            mask_B1TS = self.counted(x_BTE.shape[1])
        # [4] softmax attention
        context_BHTD = self.kernel(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, self.reduce, self.rate, dropout_key, taps)
        # [5] join the heads, project
        return taps("output", self.o_proj(join_heads(context_BHTD))), cache


def split_heads(x_BTE, num_heads):
    """[B, T, E] -> [B, H, T, D]."""
    batch, length, embed = x_BTE.shape
    return jnp.swapaxes(x_BTE.reshape(batch, length, num_heads, embed // num_heads), 1, 2)


def join_heads(x_BHTD):
    """[B, H, T, D] -> [B, T, E]."""
    batch, heads, length, dim = x_BHTD.shape
    return jnp.swapaxes(x_BHTD, 1, 2).reshape(batch, length, heads * dim)


def plain_projections(linears, x_BTE, num_heads):
    """q, k and v [B, H, T, D] by a product each."""
    # [1] x W^T + b, then split
    return [split_heads(linear(x_BTE), num_heads) for linear in linears]


def joined_projections(linears, x_BTE, num_heads):
    """The same by one product with all three matrices, one below the other."""
    # [1] x W^T + b, cut in three, then split
    weight_OE = jnp.concatenate([linear.weight[...] for linear in linears])
    bias_O = None if linears[0].bias is None else jnp.concatenate([linear.bias[...] for linear in linears])
    joined_BTO = linears[0].product(x_BTE, weight_OE, bias_O, linears[0].reduce).astype(x_BTE.dtype)
    return [split_heads(part_BTE, num_heads) for part_BTE in jnp.split(joined_BTO, 3, -1)]


def einsum_projections(linears, x_BTE, num_heads):
    """The same by contractions with W seen as [H, D, E], whose result has its heads in place."""
    # [1] x W^T + b, head by head
    found = []
    for linear in linears:
        weight_HDE = linear.weight[...].reshape(num_heads, -1, x_BTE.shape[-1]).astype(x_BTE.dtype)
        part_BHTD = matmul("bte,hde->bhtd", x_BTE, weight_HDE, linear.reduce)
        bias = None if linear.bias is None else linear.bias[...].reshape(num_heads, 1, -1)
        found.append((part_BHTD if bias is None else part_BHTD + bias).astype(x_BTE.dtype))
    return found


PROJECTIONS = {"plain": plain_projections, "joined": joined_projections, "einsum": einsum_projections}
