"""Cross-entropy over next tokens, and perplexity."""

import math

import torch

from common.backend import IGNORED


def token_loss(logits_BTV, targets_BT):
    """(sum of -log p(target) in nats, number of targets that count); a target of -100 does not count."""
    # [1] log of the normaliser
    log_probs_BTV = torch.log_softmax(logits_BTV, -1)  # subtracted at once: logsumexp's backward rounds more
    # [2] the target's logit
    counts_BT = targets_BT != IGNORED
    picked_BT = log_probs_BTV.gather(-1, torch.where(counts_BT, targets_BT, 0)[..., None].long())[..., 0]
    # [3] sum over the targets that count
    return torch.where(counts_BT, -picked_BT, 0.0).sum(), counts_BT.sum()


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
