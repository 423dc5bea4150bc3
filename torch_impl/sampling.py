"""From logits to the next token."""

import torch

from common.rng import SAMPLING

from . import rng


def filter_logits(logits_BV, temperature, top_k, top_p):
    """Temperature, then top-k, then top-p; what may not be drawn becomes -inf."""
    # [1] divide by the temperature
    logits_BV = logits_BV / temperature
    # [2] top-k: below the k-th largest nothing is drawn
    if top_k is not None:
        kth_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1]), -1).values[:, -1:]
        logits_BV = torch.where(logits_BV >= kth_B1, logits_BV, -torch.inf)
    # [3] top-p: the fewest most likely tokens whose probabilities reach p
    if top_p is not None:
        sorted_BV = logits_BV.sort(-1, descending=True).values
        probs_BV = torch.softmax(sorted_BV, -1)
        inside_BV = probs_BV.cumsum(-1) - probs_BV < top_p
        least_B1 = torch.where(inside_BV, sorted_BV, torch.inf).amin(-1, keepdim=True)
        logits_BV = torch.where(logits_BV >= least_B1, logits_BV, -torch.inf)
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
    keys = [address(seed, SAMPLING, int(p), row) for row, p in enumerate(positions_B)]
    noise_BV = torch.stack([rng.gumbel(key, logits_BV.shape[1:], logits_BV.dtype, logits_BV.device) for key in keys])
    return (logits_BV + noise_BV).argmax(-1)
