"""Cross-entropy over next tokens, and perplexity."""

import math

import jax
import jax.numpy as jnp

from common.backend import IGNORED


def token_loss(logits_BTV, targets_BT):
    """(sum of -log p(target) in nats, number of targets that count); a target of -100 does not count."""
    # [1] log of the normaliser
    normaliser_BT = jax.nn.logsumexp(logits_BTV, -1)
    # [2] the target's logit
    counts_BT = targets_BT != IGNORED
    picked_BT = jnp.take_along_axis(logits_BTV, jnp.where(counts_BT, targets_BT, 0)[..., None], -1)[..., 0]
    # [3] sum over the targets that count
    return jnp.where(counts_BT, normaliser_BT - picked_BT, 0.0).sum(), counts_BT.sum()


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
