"""Grouped-query attention (Ainslie et al. 2023), with what today's models add to it; see common/variants."""

import math

import torch
from torch import nn

from common.backend import only_plain
from common.taps import NO_TAPS

from ..kv_cache import NoCache, layer_cache
from ..layers import NORMS, Linear, at_least, dropout, matmul
from ..masks import causal_mask, full_mask, local_mask
from ..positions import Rotary, alibi, alibi_slopes
from ..precision import dtype
from .multi_head import join_heads, split_heads


class GroupedQueryAttention(nn.Module):
    """H query heads of size D share the keys and values of K heads: query head h those of head h K / H.

    x [B, T, E], positions [B or 1, T]. `given` holds keys, values and their positions by window: layers that make them
    put them there, layers that share read them. Returns ([B, T, E], the cache).
    """

    @staticmethod
    def empty_cache(config, entry, batch, capacity, execution):
        """A layer that shares has none."""
        # [1] as other layers have it
        return NoCache() if entry.shares else layer_cache(config, entry, batch, capacity, execution)

    def __init__(self, config, entry, execution):
        super().__init__()
        only_plain("Grouped-query", execution)
        self.heads, self.groups, dim = entry.heads(config)
        self.rate, self.softcap, self.whole = config.dropout_attn, entry.softcap, entry.whole
        self.window, self.reach, self.causal = entry.window, entry.reach(config), config.causal
        self.scale = 1 / math.sqrt(dim) if entry.scale is None else entry.scale
        precision, norm = execution.precision, NORMS["rms_norm"][execution.norm]
        kind, self.reduce = dtype(precision.param), dtype(precision.reduce)
        self.q_proj = Linear(config.embed_dim, self.heads * dim, config.qkv_bias, execution)
        own = not entry.shares
        self.k_proj = Linear(config.embed_dim, self.groups * dim, config.qkv_bias, execution) if own else None
        self.v_proj = Linear(config.embed_dim, self.groups * dim, config.qkv_bias, execution) if own else None
        there = entry.qk_norm != "none"
        self.q_norm = norm(entry.normed(config, "q_norm"), config.norm_eps, precision) if there else None
        self.k_norm = norm(entry.normed(config, "k_norm"), config.norm_eps, precision) if there and own else None
        self.turn = None if entry.rotary is None else Rotary(entry.rotary, dim, config.context_length, execution)
        self.slopes = alibi_slopes(self.heads) if entry.alibi else None
        self.sinks = nn.Parameter(torch.empty(self.heads, dtype=kind)) if entry.sinks else None
        self.gate_proj = Linear(config.embed_dim, self.heads * dim, config.qkv_bias, execution) if entry.gate else None
        self.o_proj = Linear(self.heads * dim, config.embed_dim, entry.out_bias, execution)

    def forward(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS, given=None):
        # [1] q = x W^T + b, split into heads, normalised, turned with its positions
        q_BHTD = taps("q", self._heads(self.q_proj(x_BTE), self.heads, self.q_norm))
        if self.turn is not None:
            q_BHTD = taps("turned_q", self.turn(q_BHTD, positions_BT))
        # [2] k and v likewise, or those of an earlier layer
        if self.k_proj is None:
            k_BKSD, v_BKSD, key_positions_BS = given[self.window]
        else:
            cache, k_BKSD, v_BKSD, key_positions_BS = self._keys(x_BTE, positions_BT, cache, taps)
            if given is not None:
                given[self.window] = k_BKSD, v_BKSD, key_positions_BS
        # [3] a query sees keys that are not later than itself, and no further back than its window (or all)
        mask_B1TS = causal_mask(positions_BT, key_positions_BS)
        if not self.causal:
            mask_B1TS = full_mask(positions_BT, key_positions_BS)
        if self.reach is not None:
            mask_B1TS = mask_B1TS & local_mask(positions_BT, key_positions_BS, self.reach)
        # [4] scores, bent and lowered; softmax attention
        scores_BHTS = self._scores(q_BHTD, k_BKSD, positions_BT, key_positions_BS)
        context_BHTD = self._attend(scores_BHTS, v_BKSD, mask_B1TS, dropout_key, taps)
        # [5] join the heads, gate, project
        joined_BTD = join_heads(context_BHTD)
        if self.gate_proj is not None:
            joined_BTD = joined_BTD * taps(
                "gate", torch.sigmoid(at_least(self.gate_proj(x_BTE), self.reduce)).to(x_BTE.dtype)
            )
        return taps("output", self.o_proj(joined_BTD)), cache

    def _keys(self, x_BTE, positions_BT, cache, taps):
        """Keys, values and their positions; with a cache they are put into it, and all come out that it holds. Returns
        (cache, keys, values, positions)."""
        k_BKSD = taps("k", self._heads(self.k_proj(x_BTE), self.groups, self.k_norm))
        v_BKSD = taps("v", split_heads(self.v_proj(x_BTE), self.groups))
        if self.turn is not None:
            k_BKSD = taps("turned_k", self.turn(k_BKSD, positions_BT))
        if cache is None:
            return None, k_BKSD, v_BKSD, positions_BT
        return cache.take(k_BKSD, v_BKSD, positions_BT)

    def _heads(self, x_BTD, count, norm):
        """Normalised over the whole width or head by head, and split."""
        if norm is not None and self.whole:
            x_BTD = norm(x_BTD)
        x_BHTD = split_heads(x_BTD, count)
        return norm(x_BHTD) if norm is not None and not self.whole else x_BHTD

    def _scores(self, q_BHTD, k_BKSD, positions_BT, key_positions_BS):
        """q k^T, scaled, bent into (-softcap, softcap), lowered with the distance."""
        scores_BHTS = matmul("bkmd,bksd->bkms", grouped(q_BHTD, self.groups), k_BKSD, self.reduce) * self.scale
        scores_BHTS = scores_BHTS.reshape(*q_BHTD.shape[:3], -1)
        if self.softcap is not None:
            scores_BHTS = self.softcap * torch.tanh(scores_BHTS / self.softcap)
        if self.slopes is not None:
            scores_BHTS = alibi(scores_BHTS, self.slopes, positions_BT, key_positions_BS)
        return scores_BHTS

    def _attend(self, scores_BHTS, v_BKSD, mask_B1TS, dropout_key, taps):
        """softmax over the visible keys, and the sink if there is one, whose weight goes nowhere; weights v."""
        sees_B1T1 = mask_B1TS.any(-1, keepdim=True)
        scores_BHTS = taps("scores", torch.where(mask_B1TS, scores_BHTS, torch.where(sees_B1T1, -torch.inf, 0.0)))
        if self.sinks is None:
            weights_BHTS = torch.softmax(scores_BHTS, -1)
        else:
            sink_BHT1 = self.sinks.to(scores_BHTS.dtype)[:, None, None].expand(*scores_BHTS.shape[:3], 1)
            weights_BHTS = torch.softmax(torch.cat([scores_BHTS, sink_BHT1], -1), -1)[..., :-1]
        weights_BHTS = dropout(taps("weights", weights_BHTS.to(v_BKSD.dtype)), self.rate, dropout_key, 0)
        context = torch.einsum("bkms,bksd->bkmd", grouped(weights_BHTS, self.groups), v_BKSD)
        return torch.where(sees_B1T1, context.reshape(*scores_BHTS.shape[:3], -1), 0.0)


def grouped(x_BHTD, groups):
    """[B, H, T, D] -> [B, K, H / K T, D]: what all heads have that share keys and values, as rows of one matrix."""
    batch, heads, length, dim = x_BHTD.shape
    return x_BHTD.reshape(batch, groups, heads // groups * length, dim)
