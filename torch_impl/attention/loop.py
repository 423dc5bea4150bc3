"""Softmax attention with one head after the other."""

import math

import torch

from common.taps import NO_TAPS

from ..layers import dropout, matmul


def loop_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """The same, one head after the other, as heads are first met: H small products in place of one large one.

    Source: Raschka, *Build a Large Language Model (From Scratch)*, section 3.6.1.
    """
    # [1] scores = q k^T / sqrt(D)
    products = [matmul("btd,bsd->bts", q, k, reduce) for q, k in zip(q_BHTD.unbind(1), k_BHSD.unbind(1), strict=True)]
    scores_BHTS = torch.stack(products, 1) / math.sqrt(q_BHTD.shape[-1])
    # [2] hidden keys get -inf; a row without any visible key gets zeros, so that nothing becomes NaN
    sees_B1T1 = mask_B1TS.any(-1, keepdim=True)
    scores_BHTS = taps("scores", torch.where(mask_B1TS, scores_BHTS, torch.where(sees_B1T1, -torch.inf, 0.0)))
    # [3] weights = softmax over the keys
    weights = [torch.softmax(scores, -1) for scores in scores_BHTS.unbind(1)]
    weights_BHTS = taps("weights", torch.stack(weights, 1).to(q_BHTD.dtype))
    # [4] dropout on the weights
    weights_BHTS = dropout(weights_BHTS, rate, key, 0)
    # [5] context = weights v, zero where nothing was visible
    contexts = [weights @ v for weights, v in zip(weights_BHTS.unbind(1), v_BHSD.unbind(1), strict=True)]
    return torch.where(sees_B1T1, torch.stack(contexts, 1), 0.0)
