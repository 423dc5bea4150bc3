"""Softmax attention that meets its keys block by block."""

import math

import torch

from common.backend import without_dropout
from common.taps import NO_TAPS

from ..layers import matmul
from ..precision import at_least

BLOCK = 128  # keys whose scores exist at once


def blockwise_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """The same for BLOCK keys at a time: a running maximum, a running sum, and contexts that are scaled to them.

    Scores of all keys never exist at once in a forward pass. Source: Milakov and Gimelshein 2018 (online softmax); Dao
    et al. 2022, algorithm 1, without its recomputation on the way back.
    """
    without_dropout("Blockwise", rate, key)
    top_BHT1 = torch.full(
        (*q_BHTD.shape[:3], 1), -torch.inf, dtype=at_least(q_BHTD, reduce).dtype, device=q_BHTD.device
    )
    total_BHT1, context_BHTD = torch.zeros_like(top_BHT1), torch.zeros_like(at_least(q_BHTD, reduce))
    for start in range(0, k_BHSD.shape[2], BLOCK):
        keys = slice(start, start + BLOCK)
        # [1] scores = q k^T / sqrt(D)
        scores_BHTS = matmul("bhtd,bhsd->bhts", q_BHTD, k_BHSD[:, :, keys], reduce) / math.sqrt(q_BHTD.shape[-1])
        # [2] hidden keys get -inf; rows that have seen no key yet are shifted by nothing
        scores_BHTS = torch.where(mask_B1TS[..., keys], scores_BHTS, -torch.inf)
        before_BHT1, top_BHT1 = top_BHT1, torch.maximum(top_BHT1, scores_BHTS.detach().amax(-1, keepdim=True))
        shift_BHT1 = torch.where(top_BHT1 == -torch.inf, 0.0, top_BHT1)
        # [3] weights = softmax over the keys, as far as they are known: what was summed so far is scaled down
        weights_BHTS, fade_BHT1 = torch.exp(scores_BHTS - shift_BHT1), torch.exp(before_BHT1 - shift_BHT1)
        total_BHT1 = fade_BHT1 * total_BHT1 + weights_BHTS.sum(-1, keepdim=True)
        # [5] context = weights v, zero where nothing was visible
        seen_BHTD = matmul("bhts,bhsd->bhtd", weights_BHTS, v_BHSD[:, :, keys], reduce)
        context_BHTD = fade_BHT1 * context_BHTD + seen_BHTD
    # [4] n/a: a dropout mask is drawn for all keys at once
    return (context_BHTD / torch.where(total_BHT1 == 0, 1.0, total_BHT1)).to(q_BHTD.dtype)
