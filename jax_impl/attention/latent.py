"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1); see common/variants."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from common.backend import only_plain
from common.taps import NO_TAPS

from ..kv_cache import put
from ..layers import NORMS, Linear, dropout, matmul
from ..masks import causal_mask
from ..positions import Rotary
from ..precision import dtype
from .multi_head import join_heads, split_heads


class LatentCache(NamedTuple):
    """One layer's slots: latents, the key that turned behind each [B, S, W], positions [B, S] (-1: empty or padding),
    slots in use."""

    latents_BSW: jax.Array
    positions_BS: jax.Array
    used: jax.Array

    def take(self, latents_BTW, positions_BT):
        """Write T new slots behind those in use. Returns (cache, latents, positions) to attend to: all slots."""
        # [1] the next T slots
        at = self.used
        # [2] write latents and positions
        rows_BT = jnp.broadcast_to(positions_BT, (len(self.positions_BS), positions_BT.shape[1]))
        latents_BSW = put(self.latents_BSW, latents_BTW, at, axis=1)
        positions_BS = put(self.positions_BS, rows_BT, at, axis=1)
        return LatentCache(latents_BSW, positions_BS, self.used + latents_BTW.shape[1]), latents_BSW, positions_BS


def latent_cache(config, entry, batch, capacity, execution):
    """An empty cache of one layer with room for `capacity` tokens."""
    # [1] slots for latents, none of them filled
    held = entry.held(capacity)
    latents = jnp.zeros((batch, held, entry.width(config)), dtype(execution.precision.compute))
    positions = jnp.full((batch, held), -1, jnp.int32)
    return LatentCache(latents, positions, jnp.zeros((), jnp.int32))


class LatentAttention(nnx.Module):
    """Keys and values of all heads are made from one latent of R numbers a token.

    Of the D = N + P numbers of a head's queries and keys P turn with their positions; all heads share the key that
    turns, which lies behind the latent (W = R + P). Values have U. x [B, T, E], positions [B or 1, T]. Returns
    ([B, T, E], the cache).
    """

    empty_cache = staticmethod(latent_cache)

    def __init__(self, config, entry, execution):
        only_plain("Latent", execution)
        self.heads, self.rate = config.num_heads, config.dropout_attn
        self.plain, turned, values = entry.sizes(config)
        self.scale = 1 / math.sqrt(self.plain + turned) if entry.scale is None else entry.scale
        self.score, self.mix = FORMS[execution.latent]
        self.reduce, norm = dtype(execution.precision.reduce), NORMS["rms_norm"][execution.norm]
        embed, bias, eps = config.embed_dim, config.qkv_bias, config.norm_eps
        rank, own, size = entry.rank_of(config), entry.query_rank, self.heads * (self.plain + turned)
        self.q_proj = Linear(embed, size, bias, execution) if own is None else None
        self.q_down_proj = Linear(embed, own, bias, execution) if own is not None else None
        self.q_norm = norm(own, eps, execution.precision) if own is not None and entry.norm else None
        self.q_up_proj = Linear(own, size, False, execution) if own is not None else None
        self.kv_down_proj = Linear(embed, rank, bias, execution)
        self.kv_norm = norm(rank, eps, execution.precision) if entry.norm else None
        self.k_rotary_proj = Linear(embed, turned, bias, execution) if turned else None
        self.turn = Rotary(entry.rotary, turned, config.context_length, execution) if turned else None
        self.k_up_proj = Linear(rank, self.heads * self.plain, False, execution)
        self.v_up_proj = Linear(rank, self.heads * values, False, execution)
        self.o_proj = Linear(self.heads * values, embed, entry.out_bias, execution)

    def __call__(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS):
        # [1] queries, from x or from a latent of their own, split into heads
        if self.q_down_proj is None:
            q_BTD = self.q_proj(x_BTE)
        else:
            q_BTD = self.q_up_proj(taps("q_latent", _normed(self.q_norm, self.q_down_proj(x_BTE))))
        q_BHTD = taps("q", split_heads(q_BTD, self.heads))
        q_BHTN, q_BHTP = q_BHTD[..., : self.plain], q_BHTD[..., self.plain :]
        # [2] the latent that the keys and values of all heads are made from
        latents_BTW = taps("latent", _normed(self.kv_norm, self.kv_down_proj(x_BTE)))
        # [3] the last P numbers of queries turn with their positions; so does a key for all heads, behind the latent
        if self.turn is not None:
            q_BHTP = taps("turned_q", self.turn(q_BHTP, positions_BT))
            k_B1TP = taps("turned_k", self.turn(self.k_rotary_proj(x_BTE)[:, None], positions_BT))
            latents_BTW = jnp.concatenate([latents_BTW, k_B1TP[:, 0]], -1)
        # [4] with a cache: append latents and their positions, then attend to what it holds
        latents_BSW, key_positions_BS = latents_BTW, positions_BT
        if cache is not None:
            cache, latents_BSW, key_positions_BS = cache.take(latents_BTW, positions_BT)
        # [5] a query sees keys that are not later than itself
        mask_B1TS = causal_mask(positions_BT, key_positions_BS)
        sees_B1T1 = mask_B1TS.any(-1, keepdims=True)
        # [6] weights = softmax of q k^T, scaled, over the visible keys
        scores_BHTS = self.score(q_BHTN, q_BHTP, latents_BSW, self.k_up_proj, self.reduce) * self.scale
        scores_BHTS = taps("scores", jnp.where(mask_B1TS, scores_BHTS, jnp.where(sees_B1T1, -jnp.inf, 0.0)))
        weights_BHTS = taps("weights", jax.nn.softmax(scores_BHTS, -1).astype(x_BTE.dtype))
        weights_BHTS = dropout(weights_BHTS, self.rate, dropout_key, 0)
        # [7] context = weights v, zero where nothing was visible
        context_BHTU = self.mix(weights_BHTS, latents_BSW, self.v_up_proj, self.reduce)
        context_BHTU = taps("context", jnp.where(sees_B1T1, context_BHTU, 0.0))
        # [8] join the heads, project
        return taps("output", self.o_proj(join_heads(context_BHTU))), cache


def expanded_scores(q_BHTN, q_BHTP, latents_BSW, up_proj, reduce):
    """q k^T with the keys of all heads made from the latents, and the key that turned behind each."""
    # [1] k = c W^T for every head
    heads, rank = q_BHTN.shape[1], up_proj.weight[...].shape[1]
    k_BHSN = split_heads(up_proj(latents_BSW[..., :rank]), heads)
    # [2] the key that turned is the same for all
    k_B1SP = latents_BSW[:, None, :, rank:]
    k_BHSP = jnp.broadcast_to(k_B1SP, (*k_BHSN.shape[:3], k_B1SP.shape[-1]))
    # [3] one product
    q_BHTD, k_BHSD = jnp.concatenate([q_BHTN, q_BHTP], -1), jnp.concatenate([k_BHSN, k_BHSP], -1)
    return matmul("bhtd,bhsd->bhts", q_BHTD, k_BHSD, reduce)


def absorbed_scores(q_BHTN, q_BHTP, latents_BSW, up_proj, reduce):
    """The same with W on the side of the queries: q (c W^T)^T = (q W) c^T, so what is held is the key of all heads."""
    # [1] q W for every head
    up_HNR = _by_head(up_proj, q_BHTN)
    q_HBTN = q_BHTN.swapaxes(0, 1)  # heads first: XLA's CPU has no 16-bit product with heads in the second place
    q_HBTR = matmul("hbtn,hnr->hbtr", q_HBTN, up_HNR, reduce).astype(q_BHTN.dtype)
    # [2] one product
    q_BHTW = jnp.concatenate([q_HBTR.swapaxes(0, 1), q_BHTP], -1)
    return matmul("bhtw,bsw->bhts", q_BHTW, latents_BSW, reduce)


def expanded_context(weights_BHTS, latents_BSW, up_proj, reduce):
    """Weights v with the values of all heads made from the latents."""
    # [1] v = c W^T for every head
    heads, rank = weights_BHTS.shape[1], up_proj.weight[...].shape[1]
    v_BHSU = split_heads(up_proj(latents_BSW[..., :rank]), heads)
    # [2] one product
    return matmul("bhts,bhsu->bhtu", weights_BHTS, v_BHSU, reduce).astype(weights_BHTS.dtype)


def absorbed_context(weights_BHTS, latents_BSW, up_proj, reduce):
    """The same with W behind the weighted latents: weights (c W^T) = (weights c) W^T."""
    # [1] weights c for every head
    up_HUR, kind = _by_head(up_proj, weights_BHTS), weights_BHTS.dtype
    seen_BHTR = matmul("bhts,bsr->bhtr", weights_BHTS, latents_BSW[..., : up_HUR.shape[-1]], reduce).astype(kind)
    # [2] times W^T
    return matmul("bhtr,hur->bhtu", seen_BHTR, up_HUR, reduce).astype(kind)


FORMS = {"expanded": (expanded_scores, expanded_context), "absorbed": (absorbed_scores, absorbed_context)}


def _normed(norm, x):
    return x if norm is None else norm(x)


def _by_head(up_proj, x_BHTD):
    """W [H, D, R] in the type of x."""
    weight = up_proj.weight[...].astype(x_BHTD.dtype)
    return weight.reshape(x_BHTD.shape[1], -1, weight.shape[1])
