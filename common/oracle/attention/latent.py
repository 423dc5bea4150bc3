"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1); see common/variants."""

import math
from typing import NamedTuple

import numpy as np

from common.taps import NO_TAPS

from ..layers import Linear, RMSNorm, dropout
from ..masks import causal_mask
from ..module import Module
from ..positions import Rotary
from .kernels import softmax
from .multi_head import join_heads, split_heads


class LatentCache(NamedTuple):
    """One layer's slots: latents, the key that turned behind each [B, S, W], positions [B, S] (-1: empty or padding),
    slots in use."""

    latents_BSW: np.ndarray
    positions_BS: np.ndarray
    used: int

    def take(self, latents_BTW, positions_BT):
        """Write T new slots behind those in use. Returns (cache, latents, positions) to attend to: all slots."""
        # [1] the next T slots
        at = slice(self.used, self.used + latents_BTW.shape[1])
        # [2] write latents and positions
        latents_BSW, positions_BS = self.latents_BSW.copy(), self.positions_BS.copy()
        latents_BSW[:, at], positions_BS[:, at] = latents_BTW, positions_BT
        return LatentCache(latents_BSW, positions_BS, at.stop), latents_BSW, positions_BS


def latent_cache(config, entry, batch, capacity):
    """An empty cache of one layer with room for `capacity` tokens."""
    # [1] slots for latents, none of them filled
    held = entry.held(capacity)
    return LatentCache(np.zeros((batch, held, entry.width(config))), np.full((batch, held), -1, np.int32), 0)


class LatentAttention(Module):
    """Keys and values of all heads are made from one latent of R numbers a token.

    Of the D = N + P numbers of a head's queries and keys P turn with their positions; all heads share the key that
    turns, which lies behind the latent (W = R + P). Values have U. x [B, T, E], positions [B or 1, T]. Returns
    ([B, T, E], the cache).
    """

    empty_cache = staticmethod(latent_cache)

    def __init__(self, config, entry):
        self.heads, self.rate = config.num_heads, config.dropout_attn
        self.plain, turned, values = entry.sizes(config)
        self.scale = 1 / math.sqrt(self.plain + turned) if entry.scale is None else entry.scale
        self.score, self.mix = FORMS["expanded"]
        embed, bias, eps = config.embed_dim, config.qkv_bias, config.norm_eps
        rank, own, size = entry.rank_of(config), entry.query_rank, self.heads * (self.plain + turned)
        self.q_proj = Linear(embed, size, bias=bias) if own is None else None
        self.q_down_proj = Linear(embed, own, bias=bias) if own is not None else None
        self.q_norm = RMSNorm(own, eps) if own is not None and entry.norm else None
        self.q_up_proj = Linear(own, size, bias=False) if own is not None else None
        self.kv_down_proj = Linear(embed, rank, bias=bias)
        self.kv_norm = RMSNorm(rank, eps) if entry.norm else None
        self.k_rotary_proj = Linear(embed, turned, bias=bias) if turned else None
        self.turn = Rotary(entry.rotary, turned, config.context_length) if turned else None
        self.k_up_proj = Linear(rank, self.heads * self.plain, bias=False)
        self.v_up_proj = Linear(rank, self.heads * values, bias=False)
        self.o_proj = Linear(self.heads * values, embed, bias=entry.out_bias)

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
            latents_BTW = np.concatenate([latents_BTW, k_B1TP[:, 0]], -1)
        # [4] with a cache: append latents and their positions, then attend to what it holds
        latents_BSW, key_positions_BS = latents_BTW, positions_BT
        if cache is not None:
            cache, latents_BSW, key_positions_BS = cache.take(latents_BTW, positions_BT)
        # [5] a query sees keys that are not later than itself
        mask_B1TS = causal_mask(positions_BT, key_positions_BS)
        sees_B1T1 = mask_B1TS.any(-1, keepdims=True)
        # [6] weights = softmax of q k^T, scaled, over the visible keys
        scores_BHTS = self.score(q_BHTN, q_BHTP, latents_BSW, self.k_up_proj) * self.scale
        scores_BHTS = taps("scores", np.where(mask_B1TS, scores_BHTS, np.where(sees_B1T1, -np.inf, 0.0)))
        weights_BHTS = dropout(taps("weights", softmax(scores_BHTS)), self.rate, dropout_key, 0)
        # [7] context = weights v, zero where nothing was visible
        context_BHTU = self.mix(weights_BHTS, latents_BSW, self.v_up_proj)
        context_BHTU = taps("context", np.where(sees_B1T1, context_BHTU, 0.0))
        # [8] join the heads, project
        return taps("output", self.o_proj(join_heads(context_BHTU))), cache


def expanded_scores(q_BHTN, q_BHTP, latents_BSW, up_proj):
    """q k^T with the keys of all heads made from the latents, and the key that turned behind each."""
    # [1] k = c W^T for every head
    heads, rank = q_BHTN.shape[1], up_proj.weight.shape[1]
    k_BHSN = split_heads(up_proj(latents_BSW[..., :rank]), heads)
    # [2] the key that turned is the same for all
    k_B1SP = latents_BSW[:, None, :, rank:]
    k_BHSP = np.broadcast_to(k_B1SP, (*k_BHSN.shape[:3], k_B1SP.shape[-1]))
    # [3] one product
    q_BHTD, k_BHSD = np.concatenate([q_BHTN, q_BHTP], -1), np.concatenate([k_BHSN, k_BHSP], -1)
    return q_BHTD @ np.swapaxes(k_BHSD, 2, 3)


def expanded_context(weights_BHTS, latents_BSW, up_proj):
    """Weights v with the values of all heads made from the latents."""
    # [1] v = c W^T for every head
    heads, rank = weights_BHTS.shape[1], up_proj.weight.shape[1]
    v_BHSU = split_heads(up_proj(latents_BSW[..., :rank]), heads)
    # [2] one product
    return weights_BHTS @ v_BHSU


FORMS = {"expanded": (expanded_scores, expanded_context)}


def _normed(norm, x):
    return x if norm is None else norm(x)
