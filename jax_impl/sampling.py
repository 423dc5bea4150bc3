"""From logits to the next token."""

import jax
import jax.numpy as jnp

from common.rng import SAMPLING

from . import rng


def filter_logits(logits_BV, temperature, top_k, top_p):
    """Temperature, then top-k, then top-p; what may not be drawn becomes -inf."""
    # [1] divide by the temperature
    logits_BV = logits_BV / temperature
    # [2] top-k: below the k-th largest nothing is drawn
    if top_k is not None:
        kth_B1 = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
    # [3] top-p: the fewest most likely tokens whose probabilities reach p
    if top_p is not None:
        sorted_BV = jnp.sort(logits_BV, -1, descending=True)
        probs_BV = jax.nn.softmax(sorted_BV, -1)
        inside_BV = probs_BV.cumsum(-1) - probs_BV < top_p
        least_B1 = jnp.where(inside_BV, sorted_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return logits_BV


def sample(logits_BV, positions_B, sampling, seed, address=rng.address):
    """The next token of every row, [B]. Row b draws its noise at address (seed, SAMPLING, position, b)."""
    # [1] of ids that are tokens: greedy takes the largest logit, the lowest id among equals
    logits_BV = logits_BV[:, : sampling.tokens]
    if sampling.temperature == 0:
        return logits_BV.argmax(-1).astype(jnp.int32)
    # [2] keep what may be drawn
    logits_BV = filter_logits(logits_BV, sampling.temperature, sampling.top_k, sampling.top_p)
    # [3] add Gumbel noise and take the largest: a draw from the softmax
    at = jax.vmap(lambda p, row: address(seed, SAMPLING, p, row))
    keys = at(positions_B, jnp.arange(len(positions_B), dtype=jnp.int32))
    noise_BV = jax.vmap(lambda key: rng.gumbel(key, logits_BV.shape[1:], logits_BV.dtype))(keys)
    return (logits_BV + noise_BV).argmax(-1).astype(jnp.int32)
