"""Cross-entropy over next tokens, and perplexity."""

import math

import numpy as np

from common.backend import IGNORED
from common.preference import Pairs

from .preference import preference_loss


def token_loss(logits_BTV, targets_BT):
    """(sum of -log p(target) in nats, number of targets that count); a target of -100 does not count."""
    # [1] log of the normaliser
    peak = logits_BTV.real.max(-1, keepdims=True)
    normaliser_BT = (np.log(np.exp(logits_BTV - peak).sum(-1, keepdims=True)) + peak)[..., 0]
    # [2] the target's logit
    counts_BT = targets_BT != IGNORED
    picked_BT = np.take_along_axis(logits_BTV, np.where(counts_BT, targets_BT, 0)[..., None], -1)[..., 0]
    # [3] sum over the targets that count
    return np.where(counts_BT, normaliser_BT - picked_BT, 0.0).sum(), counts_BT.sum()


def plain_loss(model, hidden_BTE, targets_BT):
    """`token_loss` of the logits of hidden states, all of them at once."""
    # [1] logits, then their loss
    return token_loss(model.head(hidden_BTE), targets_BT)


LOSSES = {"plain": plain_loss}


def batch_loss(model, hidden_BTE, targets_BT):
    """(sum of losses, how much it is summed over) of a batch: of tokens, in the model's way, or of pairs."""
    # [1] by what stands in the place of targets
    if isinstance(targets_BT, Pairs):
        return preference_loss(model, hidden_BTE, targets_BT)
    return model.loss(model, hidden_BTE, targets_BT)


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
