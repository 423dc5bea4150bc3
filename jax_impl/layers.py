"""Linear maps, embeddings, layer normalisation, GELU, dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from . import rng
from .precision import at_least, dtype


class Linear(nnx.Module):
    """y = x W^T + b, with W [out, in]; `change` adds what adapters do (`lora.py`), where there are some."""

    change, adapters = None, ()

    def __init__(self, in_dim, out_dim, bias, execution):
        kind = dtype(execution.precision.param)
        self.weight = nnx.Param(jnp.zeros((out_dim, in_dim), kind))
        self.bias = nnx.Param(jnp.zeros(out_dim, kind)) if bias else None
        self.product, self.reduce = PRODUCTS[execution.decode], dtype(execution.precision.reduce)

    def __call__(self, x):
        # [1] y = x W^T + b
        bias = None if self.bias is None else self.bias[...]
        y = self.product(x, self.weight[...], bias, self.reduce).astype(x.dtype)
        return y if self.change is None else self.change(self, x, y)


def plain_product(x, weight, bias, reduce):
    """x W^T + b, with W [out, in] in the type of x; handed on in the precision of reductions."""
    # [1] one matrix product
    y = matmul("...i,oi->...o", x, weight.astype(x.dtype), reduce)
    return y if bias is None else y + bias


def streamed_product(x, weight, bias, reduce):
    """The same; a single row in 16 bits gets a second one: for one alone XLA's CPU widens all of W first."""
    if x.size != x.shape[-1] or x.dtype.itemsize > 2:
        return plain_product(x, weight, bias, reduce)
    # [1] one pass over W
    pair = jnp.concatenate([x.reshape(1, -1), jnp.zeros((1, x.shape[-1]), x.dtype)])
    return plain_product(pair, weight, bias, reduce)[:1].reshape(*x.shape[:-1], -1)


PRODUCTS = {"plain": plain_product, "streamed": streamed_product}


class Embedding(nnx.Module):
    """Row i of W [count, E] stands for id i."""

    def __init__(self, count, dim, precision):
        self.weight = nnx.Param(jnp.zeros((count, dim), dtype(precision.param)))
        self.compute = dtype(precision.compute)

    def __call__(self, ids):
        # [1] pick the rows
        return self.weight[...][ids].astype(self.compute)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; the variance is the biased one.

    Source: Ba et al. 2016, equation 4.
    """

    def __init__(self, dim, eps, precision):
        self.weight = nnx.Param(jnp.zeros(dim, dtype(precision.param)))
        self.bias = nnx.Param(jnp.zeros(dim, dtype(precision.param)))
        self.eps, self.reduce = eps, dtype(precision.reduce)

    def __call__(self, x):
        # [1] centre
        wide = at_least(x, self.reduce)
        centred = wide - wide.mean(-1, keepdims=True)
        # [2] divide by the standard deviation, scale and shift
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * self.weight[...] + self.bias[...]).astype(x.dtype)


class FusedLayerNorm(LayerNorm):
    """The same by `nnx.LayerNorm`, with our parameters in the place of its own.

    Its variance loses digits where the mean is large; of what is centred it loses none. Told to centre for it
    (`use_fast_variance=False`), it makes a step of `nano` 1.4 times as long (jax 0.10.2, one thread).
    """

    def __call__(self, x):
        # [1] centre
        centred = at_least(x, self.reduce)
        centred = centred - centred.mean(-1, keepdims=True)
        # [2] divide by the standard deviation, scale and shift
        own = nnx.LayerNorm(x.shape[-1], epsilon=self.eps, use_scale=False, use_bias=False, rngs=None)
        own.scale, own.bias = self.weight, self.bias
        return own(centred).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean of x^2 + eps) * weight over the last axis. Source: Zhang and Sennrich 2019, equation 4."""

    def __init__(self, dim, eps, precision):
        self.weight = nnx.Param(jnp.zeros(dim, dtype(precision.param)))
        self.eps, self.reduce = eps, dtype(precision.reduce)

    def __call__(self, x):
        # [1] divide by the root of the mean square, scale
        wide = at_least(x, self.reduce)
        scaled = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return (scaled * self.weight[...]).astype(x.dtype)


class FusedRMSNorm(RMSNorm):
    """The same by `nnx.RMSNorm`, with our parameter in the place of its own."""

    def __call__(self, x):
        # [1] divide by the root of the mean square, scale
        own = nnx.RMSNorm(x.shape[-1], epsilon=self.eps, use_scale=False, rngs=None)
        own.scale = self.weight
        return own(at_least(x, self.reduce)).astype(x.dtype)


NORMS = {
    "layer_norm": {"plain": LayerNorm, "fused": FusedLayerNorm},
    "rms_norm": {"plain": RMSNorm, "fused": FusedRMSNorm},
}


def matmul(dims, a, b, reduce):
    """einsum that sums in the precision of reductions, and stays in it (16-bit sums are slow and inexact)."""
    return jnp.einsum(dims, a, b, preferred_element_type=jnp.promote_types(a.dtype, reduce))


def gelu_tanh(x):
    """GELU in its tanh form. Source: Hendrycks and Gimpel 2016, section 2.

    Written out, and x factored out: `jax.nn.gelu` behind a product is known to XLA, which on a GPU has cuBLAS compute
    it, 1e-10 off in float64 and 1e-6 in float32 (jax 0.11.2 on an H100).
    """
    slope = math.sqrt(2 / math.pi) * (1 + 0.044715 * x * x)
    return 0.5 * x * (1 + jnp.tanh(slope * x))


def silu(x):
    """x sigmoid(x). Source: Elfwing et al. 2017."""
    return jax.nn.silu(at_least(x, jnp.float32)).astype(x.dtype)  # in 16 bits the sigmoid would be rounded, too


def gelu(x):
    """Exact GELU, x times the normal distribution function. Source: Hendrycks and Gimpel 2016, equation 1."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x):
    """GELU as x sigmoid(1.702 x). Source: Hendrycks and Gimpel 2016, section 2."""
    wide = at_least(x, jnp.float32)  # rounded once, as in PyTorch's own activations
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


def own_gelu_tanh(x):
    """GELU in its tanh form by JAX's own function; see `gelu_tanh`."""
    return jax.nn.gelu(at_least(x, jnp.float32), approximate=True).astype(x.dtype)


ACTIVATIONS = {"gelu_tanh": gelu_tanh, "gelu": gelu, "silu": silu, "quick_gelu": quick_gelu}
GELUS = {"plain": ACTIVATIONS, "own": {**ACTIVATIONS, "gelu_tanh": own_gelu_tanh}}
ELEMENTWISE = {
    "exp": jnp.exp,
    "log": jnp.log,
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
    "rsqrt": jax.lax.rsqrt,
    **ACTIVATIONS,
}


def layer_key(key, layer):
    """The key of all dropout masks of a layer (0: the embedding), or None without dropout."""
    # [1] one level of address per layer, so that all blocks are alike
    return None if key is None else rng.fold_in(key, layer)


def dropout(x, rate, key, site):
    """Zero each element with probability `rate` and scale the rest; the mask is drawn at address `site` of `key`."""
    # [1] without a key (evaluation) or a rate, nothing happens
    if key is None or rate == 0:
        return x
    # [2] keep with probability 1 - rate, multiply by the float32 number 1 / (1 - rate)
    keep = rng.bernoulli(rng.fold_in(key, site), 1 - rate, x.shape)
    scale = float(np.float32(1 / (1 - rate)))
    return jnp.where(keep, (at_least(x, jnp.float32) * scale).astype(x.dtype), 0.0)


def averaged(x_BTE, positions_BT, reduce):
    """[B, T, E]: at every position the mean over those of its row that are no padding (positions None: all)."""
    # [1] sum of what counts / how much counts
    wide_BTE = at_least(x_BTE, reduce)
    if positions_BT is None:
        return jnp.broadcast_to(wide_BTE.mean(1, keepdims=True), x_BTE.shape).astype(x_BTE.dtype)
    counts_BT1 = (positions_BT >= 0)[..., None]
    total_B1E = jnp.where(counts_BT1, wide_BTE, 0.0).sum(1, keepdims=True)
    mean_B1E = total_B1E / jnp.maximum(counts_BT1.sum(1, keepdims=True), 1).astype(wide_BTE.dtype)
    return jnp.broadcast_to(mean_B1E, x_BTE.shape).astype(x_BTE.dtype)
