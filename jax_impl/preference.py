"""Losses of preferences between two responses; see `common/preference.py`."""

import contextlib

import jax
import jax.numpy as jnp

from common.inputs import IGNORED
from common.preference import Pairs

with contextlib.suppress(ValueError):  # another copy of this package, with a bug planted in it, has said so already
    jax.tree_util.register_dataclass(Pairs, data_fields=["labels", "reference"], meta_fields=["preference"])


def row_log_probs(logits_BTV, targets_BT):
    """(sum of log p(target) in nats, number of targets that count) of every row, [B] each."""
    # [1] log p of every target
    counts_BT = targets_BT != IGNORED
    log_probs_BTV = jax.nn.log_softmax(logits_BTV, -1)
    picked_BT = jnp.take_along_axis(log_probs_BTV, jnp.where(counts_BT, targets_BT, 0)[..., None], -1)[..., 0]
    # [2] sum over the targets that count
    return jnp.where(counts_BT, picked_BT, 0.0).sum(-1), counts_BT.sum(-1)


def preference_loss(model, hidden_BTE, pairs):
    """(sum of the losses of pairs of responses, their number); see `common/preference.py`. All logits exist at once."""
    # [1] log-probabilities of responses, a row each
    preference = pairs.preference
    sums_B, counts_B = row_log_probs(model.head(hidden_BTE), pairs.labels)
    if preference.reduction == "mean":
        sums_B = sums_B / jnp.maximum(counts_B, 1).astype(sums_B.dtype)
    # [2] what is better about the chosen one than about the rejected, and how much of it the reference finds too
    policy_P2, reference_P2 = sums_B.reshape(-1, 2), pairs.reference.astype(sums_B.dtype).reshape(-1, 2)
    # [3] the loss of every pair, summed
    losses_P = PREFERENCES[preference.loss](policy_P2, reference_P2, preference)
    return losses_P.sum(), len(losses_P)


def _gain(policy_P2, reference_P2):
    """By how much more the model prefers the chosen response than the reference does, [P]."""
    ahead_P2 = policy_P2 - reference_P2
    return ahead_P2[:, 0] - ahead_P2[:, 1]


def dpo(policy_P2, reference_P2, settings):
    """Direct preference optimisation. Source: Rafailov et al. 2023, equation 7."""
    # [1] -log sigmoid(beta d)
    return -jax.nn.log_sigmoid(settings.beta * _gain(policy_P2, reference_P2))


def cdpo(policy_P2, reference_P2, settings):
    """DPO of labels that are wrong with probability `smoothing`. Source: Mitchell 2023."""
    # [1] both ways round, by their probabilities
    gain_P = settings.beta * _gain(policy_P2, reference_P2)
    return -(1 - settings.smoothing) * jax.nn.log_sigmoid(gain_P) - settings.smoothing * jax.nn.log_sigmoid(-gain_P)


def ipo(policy_P2, reference_P2, settings):
    """Identity preference optimisation. Source: Azar et al. 2023, equation 17."""
    # [1] (d - 1 / (2 beta))^2
    off_P = _gain(policy_P2, reference_P2) - 1 / (2 * settings.beta)
    return off_P * off_P


def hinge(policy_P2, reference_P2, settings):
    """Sequence likelihood calibration. Source: Zhao et al. 2023, with a reference as in DPO."""
    # [1] max(0, 1 - beta d)
    short_P = 1 - settings.beta * _gain(policy_P2, reference_P2)
    return jnp.where(short_P > 0, short_P, 0.0)


def simpo(policy_P2, reference_P2, settings):
    """Simple preference optimisation, without a reference. Source: Meng et al. 2024, equation 6."""
    # [1] -log sigmoid(beta (l_chosen - l_rejected) - gamma)
    return -jax.nn.log_sigmoid(settings.beta * (policy_P2[:, 0] - policy_P2[:, 1]) - settings.gamma)


def orpo(policy_P2, reference_P2, settings):
    """Odds ratio preference optimisation, without a reference. Source: Hong et al. 2024, equation 6."""
    # [1] log odds, log p - log(1 - p)
    odds_P2 = policy_P2 - jnp.log(-jnp.expm1(policy_P2))
    # [2] likelihood of the chosen one, and of the ratio of odds
    return -policy_P2[:, 0] - settings.beta * jax.nn.log_sigmoid(odds_P2[:, 0] - odds_P2[:, 1])


PREFERENCES = {"dpo": dpo, "cdpo": cdpo, "ipo": ipo, "hinge": hinge, "simpo": simpo, "orpo": orpo}
