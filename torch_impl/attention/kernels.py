"""Softmax attention from queries, keys, values and a mask."""

import math

import torch
from torch.nn import functional as F

from common.errors import UserError
from common.taps import NO_TAPS

from ..layers import dropout, matmul


def plain_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """softmax(q k^T / sqrt(D)) v over the visible keys; a query that sees no key gets zeros. Returns [B, H, T, D].

    Source: Vaswani et al. 2017, equation 1.
    """
    # [1] scores = q k^T / sqrt(D)
    scores_BHTS = matmul("bhtd,bhsd->bhts", q_BHTD, k_BHSD, reduce) / math.sqrt(q_BHTD.shape[-1])
    # [2] hidden keys get -inf; a row without any visible key gets zeros, so that nothing becomes NaN
    sees_B1T1 = mask_B1TS.any(-1, keepdim=True)
    scores_BHTS = taps("scores", torch.where(mask_B1TS, scores_BHTS, torch.where(sees_B1T1, -torch.inf, 0.0)))
    # [3] weights = softmax over the keys
    weights_BHTS = taps("weights", torch.softmax(scores_BHTS, -1).to(q_BHTD.dtype))
    # [4] dropout on the weights
    weights_BHTS = dropout(weights_BHTS, rate, key, 0)
    # [5] context = weights v, zero where nothing was visible
    return torch.where(sees_B1T1, weights_BHTS @ v_BHSD, 0.0)


def fused_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """The same function by PyTorch's `scaled_dot_product_attention`, which never holds all scores at once."""
    # [1-4] n/a: inside the kernel, which can neither show its scores nor draw the shared dropout mask
    if key is not None and rate > 0:
        raise UserError("Fused attention cannot draw the shared dropout mask: use attention='plain' or dropout_attn 0.")
    # [5] context = weights v, zero where nothing was visible
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_B1TS)


KERNELS = {"plain": plain_attention, "fused": fused_attention}
