"""From logits to the next token."""

import numpy as np

from common import rng

from .attention.kernels import softmax


def filter_logits(logits_BV, temperature, top_k, top_p):
    """Temperature, then top-k, then top-p; what may not be drawn becomes -inf."""
    # [1] divide by the temperature
    logits_BV = logits_BV / temperature
    # [2] top-k: below the k-th largest nothing is drawn
    if top_k is not None:
        kth_B1 = np.sort(logits_BV, -1)[:, ::-1][:, min(top_k, logits_BV.shape[-1]) - 1][:, None]
        logits_BV = np.where(logits_BV >= kth_B1, logits_BV, -np.inf)
    # [3] top-p: the fewest most likely tokens whose probabilities reach p
    if top_p is not None:
        sorted_BV = np.sort(logits_BV, -1)[:, ::-1]
        probs_BV = softmax(sorted_BV)
        inside_BV = np.cumsum(probs_BV, -1) - probs_BV < top_p
        least_B1 = np.where(inside_BV, sorted_BV, np.inf).min(-1, keepdims=True)
        logits_BV = np.where(logits_BV >= least_B1, logits_BV, -np.inf)
    return logits_BV


def sample(logits_BV, positions_B, sampling, seed, address=rng.address):
    """The next token of every row, [B]. Row b draws its noise at address (seed, SAMPLING, position, b)."""
    # [1] of ids that are tokens: greedy takes the largest logit, the lowest id among equals
    logits_BV = logits_BV[:, : sampling.tokens]
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    # [2] keep what may be drawn
    logits_BV = filter_logits(logits_BV, sampling.temperature, sampling.top_k, sampling.top_p)
    # [3] add Gumbel noise and take the largest: a draw from the softmax
    keys = [address(seed, rng.SAMPLING, int(p), row) for row, p in enumerate(positions_B)]
    noise_BV = np.stack([rng.gumbel(key, logits_BV.shape[1:], logits_BV.dtype) for key in keys])
    return (logits_BV + noise_BV).argmax(-1)
