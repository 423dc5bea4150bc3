"""Softmax attention with one head after the other."""

import math

import jax
import jax.numpy as jnp

from common.taps import NO_TAPS

from ..layers import dropout, matmul


def loop_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """The same, one head after the other, as heads are first met: H small products in place of one large one.

    Source: Raschka, *Build a Large Language Model (From Scratch)*, section 3.6.1.
    """
    # [1] scores = q k^T / sqrt(D)
    products = [
        matmul("btd,bsd->bts", q, k, reduce)
        for q, k in zip(jnp.unstack(q_BHTD, axis=1), jnp.unstack(k_BHSD, axis=1), strict=True)
    ]
    scores_BHTS = jnp.stack(products, 1) / math.sqrt(q_BHTD.shape[-1])
    # [2] hidden keys get -inf; a row without any visible key gets zeros, so that nothing becomes NaN
    sees_B1T1 = mask_B1TS.any(-1, keepdims=True)
    scores_BHTS = taps("scores", jnp.where(mask_B1TS, scores_BHTS, jnp.where(sees_B1T1, -jnp.inf, 0.0)))
    # [3] weights = softmax over the keys
    weights = [jax.nn.softmax(scores, -1) for scores in jnp.unstack(scores_BHTS, axis=1)]
    weights_BHTS = taps("weights", jnp.stack(weights, 1).astype(q_BHTD.dtype))
    # [4] dropout on the weights
    weights_BHTS = dropout(weights_BHTS, rate, key, 0)
    # [5] context = weights v, zero where nothing was visible
    contexts = [
        matmul("bts,bsd->btd", weights, v, reduce)
        for weights, v in zip(jnp.unstack(weights_BHTS, axis=1), jnp.unstack(v_BHSD, axis=1), strict=True)
    ]
    return jnp.where(sees_B1T1, jnp.stack(contexts, 1).astype(q_BHTD.dtype), 0.0)
