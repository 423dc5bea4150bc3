"""Softmax attention from queries, keys, values and a mask."""

import math

import jax
import jax.numpy as jnp

from common.backend import without_dropout
from common.errors import UserError
from common.taps import NO_TAPS

from ..layers import dropout, matmul
from .blockwise import blockwise_attention
from .loop import loop_attention


def plain_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """softmax(q k^T / sqrt(D)) v over the visible keys; a query that sees no key gets zeros. Returns [B, H, T, D].

    Source: Vaswani et al. 2017, equation 1.
    """
    # [1] scores = q k^T / sqrt(D)
    scores_BHTS = matmul("bhtd,bhsd->bhts", q_BHTD, k_BHSD, reduce) / math.sqrt(q_BHTD.shape[-1])
    # [2] hidden keys get -inf; a row without any visible key gets zeros, so that nothing becomes NaN
    sees_B1T1 = mask_B1TS.any(-1, keepdims=True)
    scores_BHTS = taps("scores", jnp.where(mask_B1TS, scores_BHTS, jnp.where(sees_B1T1, -jnp.inf, 0.0)))
    # [3] weights = softmax over the keys
    weights_BHTS = taps("weights", jax.nn.softmax(scores_BHTS, -1).astype(q_BHTD.dtype))
    # [4] dropout on the weights
    weights_BHTS = dropout(weights_BHTS, rate, key, 0)
    # [5] context = weights v, zero where nothing was visible
    return jnp.where(sees_B1T1, matmul("bhts,bhsd->bhtd", weights_BHTS, v_BHSD, reduce).astype(q_BHTD.dtype), 0.0)


def fused_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """The same function by `jax.nn.dot_product_attention`: cuDNN on a GPU in 16 bits, XLA elsewhere.

    Without a mask a query sees the keys up to itself: cuDNN leaves the others out. What it cannot compute is refused;
    since its way back takes even lengths alone, an odd one gets one more that nobody sees.
    """
    # [1-4] n/a: inside the kernel, which can neither show its scores nor draw the shared dropout mask
    without_dropout("Fused", rate, key)
    if q_BHTD.dtype == jnp.float64:
        raise UserError("JAX's fused attention reduces in float32: use attention='plain' for float64.")
    # [5] context = weights v, zero where nothing was visible
    kernel, length = _kernel(q_BHTD.dtype), q_BHTD.shape[2]
    swapped = [jnp.swapaxes(x, 1, 2) for x in (q_BHTD, k_BHSD, v_BHSD)]
    if kernel == "cudnn":
        swapped = [_even(x, 1) for x in swapped]
        mask_B1TS = None if mask_B1TS is None else _even(_even(mask_B1TS, 2), 3)
    try:
        if mask_B1TS is None:
            context_BTHD = jax.nn.dot_product_attention(*swapped, is_causal=True, implementation=kernel)
            return jnp.swapaxes(context_BTHD, 1, 2)[:, :, :length]
        context_BTHD = jax.nn.dot_product_attention(*swapped, mask=mask_B1TS, implementation=kernel)
    except RuntimeError as error:
        # not what is derived from them: memory that runs out is the device's error, no refusal of cuDNN's
        if kernel != "cudnn" or type(error) not in (RuntimeError, NotImplementedError):
            raise
        raise UserError(f"cuDNN's attention cannot compute this: {error} Use attention='plain'.") from error
    return jnp.where(mask_B1TS.any(-1, keepdims=True), jnp.swapaxes(context_BTHD, 1, 2), 0.0)[:, :, :length]


def _even(x, axis):
    """The same, one longer along that axis if its length is odd: zeros, or False."""
    return jnp.pad(x, [(0, x.shape[at] % 2 if at == axis else 0) for at in range(x.ndim)])


def _kernel(kind):
    """cuDNN's takes 16 bits. The device is that of the model's scope."""
    device = jax.config.jax_default_device
    on_gpu = (jax.default_backend() if device is None else device.platform) == "gpu"
    return "cudnn" if on_gpu and kind in (jnp.bfloat16, jnp.float16) else "xla"


KERNELS = {
    "plain": plain_attention,
    "loop": loop_attention,
    "blockwise": blockwise_attention,
    "fused": fused_attention,
    "masked": fused_attention,
}
