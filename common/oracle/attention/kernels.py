"""Softmax attention from queries, keys, values and a mask."""

import math

import numpy as np

from common.taps import NO_TAPS

from ..layers import dropout


def plain_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, rate=0.0, key=None, taps=NO_TAPS):
    """softmax(q k^T / sqrt(D)) v over the visible keys; a query that sees no key gets zeros. Returns [B, H, T, D].

    Source: Vaswani et al. 2017, equation 1.
    """
    # [1] scores = q k^T / sqrt(D)
    scores_BHTS = q_BHTD @ np.swapaxes(k_BHSD, 2, 3) / math.sqrt(q_BHTD.shape[-1])
    # [2] hidden keys get -inf; a row without any visible key gets zeros, so that nothing becomes NaN
    sees_B1T1 = mask_B1TS.any(-1, keepdims=True)
    scores_BHTS = taps("scores", np.where(mask_B1TS, scores_BHTS, np.where(sees_B1T1, -np.inf, 0.0)))
    # [3] weights = softmax over the keys
    weights_BHTS = taps("weights", softmax(scores_BHTS))
    # [4] dropout on the weights
    weights_BHTS = dropout(weights_BHTS, rate, key, 0)
    # [5] context = weights v, zero where nothing was visible
    return np.where(sees_B1T1, weights_BHTS @ v_BHSD, 0.0)


def softmax(x):
    """exp(x) / sum exp(x) over the last axis, shifted by the largest real part."""
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


KERNELS = {"plain": plain_attention}
