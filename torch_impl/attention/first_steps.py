"""The way to multi-head attention in five steps: without weights, with weights, causal, with dropout, stacked heads.

Each step adds one idea to the one before; `multi_head.py` is the last, where all heads are computed at once.
Source: Raschka, *Build a Large Language Model (From Scratch)*, chapter 3.
"""

import math

import torch

from common.taps import NO_TAPS

from ..layers import dropout, layer_key
from ..masks import causal_mask


def simple_attention(x_TE, taps=NO_TAPS):
    """Each token becomes a mean of all tokens, weighted by how much they are like it. x [T, E] -> [T, E]."""
    # [1] scores = x x^T
    scores_TS = taps("scores", x_TE @ x_TE.T)
    # [2] weights = softmax over the keys
    weights_TS = taps("weights", torch.softmax(scores_TS, -1))
    # [3] context = weights x
    return weights_TS @ x_TE


def self_attention(x_TE, query_DE, key_DE, value_DE, taps=NO_TAPS):
    """The same between learned views of the tokens: W [D, E] for queries, keys and values. x [T, E] -> [T, D]."""
    # [1] q, k, v = x W^T
    q_TD, k_SD, v_SD = taps("q", x_TE @ query_DE.T), taps("k", x_TE @ key_DE.T), taps("v", x_TE @ value_DE.T)
    # [2] scores = q k^T / sqrt(D), so that their spread does not grow with D
    scores_TS = taps("scores", q_TD @ k_SD.T) / math.sqrt(q_TD.shape[-1])
    # [3] weights = softmax over the keys
    weights_TS = taps("weights", torch.softmax(scores_TS, -1))
    # [4] context = weights v
    return weights_TS @ v_SD


def causal_attention(x_BTE, query_DE, key_DE, value_DE, rate=0.0, key=None, taps=NO_TAPS):
    """The same for B texts, where no token sees a later one, and weights are dropped while training. -> [B, T, D]."""
    # [1] q, k, v = x W^T
    q_BTD, k_BSD, v_BSD = x_BTE @ query_DE.T, x_BTE @ key_DE.T, x_BTE @ value_DE.T
    # [2] scores = q k^T / sqrt(D)
    scores_BTS = q_BTD @ k_BSD.transpose(1, 2) / math.sqrt(q_BTD.shape[-1])
    # [3] later keys get -inf, which softmax makes zero
    places_1T = torch.arange(x_BTE.shape[1], device=x_BTE.device)[None]
    weights_BTS = torch.softmax(torch.where(causal_mask(places_1T, places_1T)[0], scores_BTS, -torch.inf), -1)
    # [4] dropout on the weights
    weights_BTS = taps("weights", dropout(weights_BTS, rate, key, 0))
    # [5] context = weights v
    return weights_BTS @ v_BSD


def stacked_heads(x_BTE, heads, rate=0.0, key=None):
    """Several heads, each (query, key, value) weights [D, E], side by side. x [B, T, E] -> [B, T, H D]."""
    # [1] one head after the other
    contexts = [causal_attention(x_BTE, *head, rate, layer_key(key, index)) for index, head in enumerate(heads)]
    # [2] join them
    return torch.cat(contexts, -1)
