"""Cross-entropy over next tokens, and perplexity."""

import functools
import math

import jax
import jax.numpy as jnp

from common.backend import IGNORED
from common.preference import Pairs

from .layers import matmul
from .preference import preference_loss

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


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
