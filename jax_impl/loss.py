"""Cross-entropy over next tokens, and perplexity."""

import functools
import math

import jax
import jax.numpy as jnp

from common.backend import IGNORED
from common.preference import Pairs

from .layers import matmul
from .lora import widened
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
    # [1] what is multiplied by which matrix: hidden states by the head, and what its adapters add
    head = model.lm_head if model.score is None else model.score
    pairs = [(hidden_BTE, model.head_weight)] if head is None else widened(head, hidden_BTE)
    # [2] rows of these inputs, and of targets
    rows, targets_N = tuple(x_BTI.reshape(-1, x_BTI.shape[-1]) for x_BTI, _ in pairs), targets_BT.reshape(-1)
    # [3] the sum over all chunks
    total = _chunks(rows, tuple(weight_VI for _, weight_VI in pairs), targets_N, jnp.dtype(model.reduce))
    return total, (targets_N != IGNORED).sum()


LOSSES = {"plain": plain_loss, "chunked": chunked_loss}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunks(inputs, weights, targets_N, reduce):
    """Sum of token losses of logits that are a sum of products: of inputs [N, I] and matrices [V, I]."""
    losses = _each(lambda total, parts, targets_C: (total + _loss(parts, weights, targets_C, reduce), None))
    return losses(jnp.zeros((), jnp.promote_types(inputs[0].dtype, reduce)), inputs, targets_N)[0]


def _forward(inputs, weights, targets_N, reduce):
    """The sum, and its gradients; XLA leaves out what nobody asks for, as of a head that is frozen."""

    def add(sums, parts, targets_C):
        loss, (own, more) = jax.value_and_grad(_loss, (0, 1))(parts, weights, targets_C, reduce)
        return (sums[0] + loss, jax.tree.map(jnp.add, sums[1], more)), own

    zero = jnp.zeros((), jnp.promote_types(inputs[0].dtype, reduce))
    (total, of_weights), of_inputs = _each(add)((zero, jax.tree.map(jnp.zeros_like, weights)), inputs, targets_N)
    return total, (of_inputs, of_weights)


def _backward(reduce, grads, share):
    return *jax.tree.map(lambda grad: (share * grad).astype(grad.dtype), grads), None


_chunks.defvjp(_forward, _backward)


def _each(add):
    """`add(sums, inputs [C, I], targets [C])` over chunks of CHUNK rows, and over what is left of them."""

    def run(sums, inputs, targets_N):
        whole = len(targets_N) // CHUNK * CHUNK
        found, rows = [], (inputs, targets_N)
        if whole:
            parts = jax.tree.map(lambda one: one[:whole].reshape(-1, CHUNK, *one.shape[1:]), rows)
            sums, own = jax.lax.scan(lambda sums, part: add(sums, *part), sums, parts)
            found.append(jax.tree.map(lambda one: one.reshape(whole, -1), own))
        if whole < len(targets_N) or not whole:
            sums, own = add(sums, *jax.tree.map(lambda one: one[whole:], rows))
            found.append(own)
        return sums, jax.tree.map(lambda *own: jnp.concatenate(own), *found)

    return run


def _loss(parts, weights, targets_C, reduce):
    products = (
        matmul("ci,vi->cv", x_CI, weight_VI.astype(x_CI.dtype), reduce)
        for x_CI, weight_VI in zip(parts, weights, strict=True)
    )
    return token_loss(functools.reduce(jnp.add, products), targets_C)[0]


def batch_loss(model, hidden_BTE, targets_BT):
    """(sum of losses, how much it is summed over) of a batch: of tokens, in the model's way, or of pairs."""
    # [1] by what stands in the place of targets
    if isinstance(targets_BT, Pairs):
        return preference_loss(model, hidden_BTE, targets_BT)
    return model.loss(model, hidden_BTE, targets_BT)


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
