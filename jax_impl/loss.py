"""Cross-entropy over next tokens, and perplexity."""

import functools
import math

import jax
import jax.numpy as jnp

from common.backend import IGNORED
from common.preference import Pairs

from .layers import matmul

jax.tree_util.register_dataclass(Pairs, data_fields=["labels", "reference"], meta_fields=["preference"])

CHUNK = 256  # positions whose logits exist at once


def token_loss(logits_BTV, targets_BT):
    """(sum of -log p(target) in nats, number of targets that count); a target of -100 does not count."""
    # [1] log of the normaliser
    normaliser_BT = jax.nn.logsumexp(logits_BTV, -1)
    # [2] the target's logit
    counts_BT = targets_BT != IGNORED
    picked_BT = jnp.take_along_axis(logits_BTV, jnp.where(counts_BT, targets_BT, 0)[..., None], -1)[..., 0]
    # [3] sum over the targets that count
    return jnp.where(counts_BT, normaliser_BT - picked_BT, 0.0).sum(), counts_BT.sum()


def row_log_probs(logits_BTV, targets_BT):
    """(sum of log p(target) in nats, number of targets that count) of every row, [B] each."""
    # [1] log p of every target
    counts_BT = targets_BT != IGNORED
    log_probs_BTV = jax.nn.log_softmax(logits_BTV, -1)
    picked_BT = jnp.take_along_axis(log_probs_BTV, jnp.where(counts_BT, targets_BT, 0)[..., None], -1)[..., 0]
    # [2] sum over the targets that count
    return jnp.where(counts_BT, picked_BT, 0.0).sum(-1), counts_BT.sum(-1)


def plain_loss(model, hidden_BTE, targets_BT):
    """`token_loss` of the logits of hidden states, all of them at once."""
    # [1] logits, then their loss
    return token_loss(model.head(hidden_BTE), targets_BT)


def chunked_loss(model, hidden_BTE, targets_BT):
    """The same for CHUNK positions at a time: logits [B, T, V] never exist. Gradients are made on the way."""
    # [1] rows of hidden states and of targets
    hidden_NE, targets_N = hidden_BTE.reshape(-1, hidden_BTE.shape[-1]), targets_BT.reshape(-1)
    # [2] the sum over all chunks
    total = _chunks(hidden_NE, model.head_weight, targets_N, jnp.dtype(model.reduce))
    return total, (targets_N != IGNORED).sum()


LOSSES = {"plain": plain_loss, "chunked": chunked_loss}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunks(hidden_NE, weight_VE, targets_N, reduce):
    """Sum of token losses of hidden states [N, E] and head weights [V, E]."""
    losses = _each(lambda total, *rows: (total + _loss(rows[0], weight_VE, rows[1], reduce), None))
    return losses(jnp.zeros((), jnp.promote_types(hidden_NE.dtype, reduce)), hidden_NE, targets_N)[0]


def _forward(hidden_NE, weight_VE, targets_N, reduce):
    """The sum, and its gradients."""

    def add(sums, hidden_CE, targets_C):
        loss, (grad_CE, grad_VE) = jax.value_and_grad(_loss, (0, 1))(hidden_CE, weight_VE, targets_C, reduce)
        return (sums[0] + loss, sums[1] + grad_VE), grad_CE

    nothing = jnp.zeros((), jnp.promote_types(hidden_NE.dtype, reduce)), jnp.zeros_like(weight_VE)
    (total, grad_VE), grad_NE = _each(add)(nothing, hidden_NE, targets_N)
    return total, (grad_NE, grad_VE)


def _backward(reduce, grads, share):
    return *((share * grad).astype(grad.dtype) for grad in grads), None


_chunks.defvjp(_forward, _backward)


def _each(add):
    """`add(sums, hidden [C, E], targets [C])` over chunks of CHUNK rows, and over what is left of them."""

    def run(sums, hidden_NE, targets_N):
        whole = len(targets_N) // CHUNK * CHUNK
        found = []
        if whole:
            parts = hidden_NE[:whole].reshape(-1, CHUNK, hidden_NE.shape[-1]), targets_N[:whole].reshape(-1, CHUNK)
            sums, rows = jax.lax.scan(lambda sums, part: add(sums, *part), sums, parts)
            found.append(rows)
        if whole < len(targets_N) or not whole:
            sums, rows = add(sums, hidden_NE[whole:], targets_N[whole:])
            found.append(rows)
        if found[0] is None:
            return sums, None
        return sums, jnp.concatenate([rows.reshape(-1, hidden_NE.shape[-1]) for rows in found])

    return run


def _loss(hidden_CE, weight_VE, targets_C, reduce):
    return token_loss(matmul("ce,ve->cv", hidden_CE, weight_VE.astype(hidden_CE.dtype), reduce), targets_C)[0]


def batch_loss(model, hidden_BTE, targets_BT):
    """(sum of losses, how much it is summed over) of a batch: of tokens, in the model's way, or of pairs."""
    # [1] by what stands in the place of targets
    if isinstance(targets_BT, Pairs):
        return preference_loss(model, hidden_BTE, targets_BT)
    return model.loss(model, hidden_BTE, targets_BT)


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


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
