"""Weights in 4 bits (NF4), block by block: Dettmers et al. 2023 (QLoRA), section 3. All arithmetic is in float32."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from common.errors import UserError
from common.nf4 import BLOCK, CLOSE, DYNAMIC, GROUP, NF4, TINY, midpoints, names, stored

from .layers import Linear


class Quantised(NamedTuple):
    """A matrix in 4 bits: `packed` [ceil(size / 2)] uint8, two codes a byte, the first in the high half; `absmax` [N]
    float32, one for each block of 64. With "nf4_double" `absmax` are codes [N] uint8 themselves, of which 256 share a
    `scale` [ceil(N / 256)] float32; `offset` [1] float32 is their mean, which was taken away before."""

    packed: object
    absmax: object
    scale: object = None
    offset: object = None


def quantise(weight, base="nf4", name="The matrix"):
    """A matrix of any shape, read as float32 row after row, in 4 bits. The last block may be shorter.

    To be run once and eagerly: compilers fuse the mean's product with the difference behind it, which rounds once less.
    Raises UserError where a weight is NaN or infinite.
    """
    # [1] blocks of 64, and the largest absolute value of each
    weight = jnp.asarray(weight).astype(jnp.float32)
    if not jnp.isfinite(weight).all():
        raise UserError(f"{name} holds NaN or infinity; 4 bits have no code for these.")
    x_NB = blocks(weight, BLOCK)
    absmax_N = largest(x_NB, TINY)
    # [2] the nearest of 16 numbers for each weight, two in a byte
    packed = pack(nearest(x_NB, absmax_N, NF4).ravel()[: weight.size])
    if base == "nf4":
        return Quantised(packed, absmax_N)
    # [3] double: the same again for what absmax differ by from their mean, in 8 bits and blocks of 256
    offset_1 = total(absmax_N) * jnp.float32(1 / absmax_N.size)
    y_GB = blocks(absmax_N - offset_1, GROUP)
    scale_G = largest(y_GB, jnp.maximum(offset_1 * CLOSE, TINY))
    code_N = nearest(y_GB, scale_G, DYNAMIC).ravel()[: absmax_N.size]
    return Quantised(packed, code_N.astype(jnp.uint8), scale_G, offset_1)


def dequantise(quantised, shape):
    """The matrix [shape] that the 4 bits stand for, float32."""
    # [1] absmax; from 8 bits as a sum times the scale, in this order, which no compiler can fuse
    absmax_N, size = quantised.absmax, math.prod(shape)
    if quantised.scale is not None:
        scale_G1 = jnp.where(quantised.scale == 0, 1.0, quantised.scale)[:, None]
        value_GB = blocks(jnp.asarray(DYNAMIC)[absmax_N], GROUP)
        absmax_N = ((value_GB + quantised.offset / scale_G1) * scale_G1).ravel()[: absmax_N.size]
    # [2] the number of every code, times absmax of its block
    value_NB = blocks(jnp.asarray(NF4)[unpack(quantised.packed)[:size]], BLOCK)
    return (value_NB * absmax_N[:, None]).ravel()[:size].reshape(shape)


def blocks(x, size):
    """x row after row in blocks [N, size], the last one filled up with zeros."""
    # [1] fill up, cut
    flat = x.ravel()
    return jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)


def largest(x_NB, least):
    """The largest absolute value of every block [N]; zero where it is below `least`."""
    # [1] maximum
    found_N = jnp.abs(x_NB).max(-1)
    return jnp.where(found_N < least, 0.0, found_N)


def nearest(x_NB, scale_N, values):
    """For each x / scale the number of the nearest of these values, which ascend; between two it is the lower one.

    Nothing is divided: x is held against midpoints times scale. A scale of zero stands for a block of zeros.
    """
    # [1] midpoints between neighbours, and a scale that is not zero
    middle, scale_N1 = jnp.asarray(midpoints(values)), jnp.where(scale_N == 0, 1.0, scale_N)[:, None]
    # [2] binary search: one bit of the code after another, the highest first
    code_NB, step = jnp.zeros(x_NB.shape, jnp.int32), len(values) // 2
    while step:
        code_NB = jnp.where(x_NB > middle[code_NB + (step - 1)] * scale_N1, code_NB + step, code_NB)
        step //= 2
    return code_NB


def pack(code):
    """Codes from 0 to 15, two in a byte: the first in the high half, the last byte filled up with 0."""
    # [1] pairs
    high, low = blocks(code.astype(jnp.uint8), 2).T
    return high << 4 | low


def unpack(packed):
    """The codes of bytes, int32, the one that fills up included."""
    # [1] both halves, one after the other
    packed = packed.astype(jnp.int32)
    return jnp.stack([packed >> 4, packed & 15], -1).ravel()


def total(x):
    """The sum [1] of a vector, halves added to each other again and again: the order, and so the bits, of everyone."""
    # [1] fill up to a power of two, halve
    x = blocks(x, 1 << (x.size - 1).bit_length()).ravel()
    while x.size > 1:
        x = x[: x.size // 2] + x[x.size // 2 :]
    return x


class Bits(nnx.Variable):
    """What stands for a matrix in 4 bits: no parameter."""


class QuantisedLinear(Linear):
    """y = x W^T + b with W in 4 bits, which is dequantised for every product. It is no parameter, b is. In a layout
    `place` says where W lies."""

    place = None

    def __init__(self, linear, base):
        self.shape, self.kind, self.base = linear.weight.shape, linear.weight.dtype, base
        self.bias, self.product, self.reduce = linear.bias, linear.product, linear.reduce
        for name, (shape, kind) in stored(math.prod(self.shape), base).items():
            setattr(self, name, Bits(jnp.zeros(shape, kind)))

    def fill(self, quantised):
        """Put bits into their places."""
        # [1] one after the other
        for name in stored(math.prod(self.shape), self.base):
            setattr(self, name, Bits(getattr(quantised, name)))

    @property
    def bits(self):
        """What stands for W."""
        # [1] one after the other
        return Quantised(*(getattr(self, name)[...] for name in stored(math.prod(self.shape), self.base)))

    @property
    def weight(self):
        """W [out, in] in the precision of parameters."""
        # [1] W out of its bits
        weight = dequantise(self.bits, self.shape).astype(self.kind)
        return weight if self.place is None else jax.lax.with_sharding_constraint(weight, self.place)

    def __call__(self, x):
        # [1] y = x W^T + b; of W only the bits are kept for the way back, where it is dequantised again
        bias = None if self.bias is None else self.bias[...]
        product = jax.checkpoint(lambda x, bias: self.product(x, self.weight, bias, self.reduce).astype(x.dtype))
        y = product(x, bias)
        return y if self.change is None else self.change(self, x, y)


def rebase(model, config, execution):
    """Give linear maps inside layers places for 4 bits, if the execution's base is kept so. Returns the model."""
    if execution.base == "plain":
        return model
    # [1] one after the other, under the same paths
    for name in names(config):
        *above, own = name.removesuffix(".weight").split(".")
        holder = model
        for part in above:
            holder = holder[int(part)] if part.isdigit() else getattr(holder, part)
        setattr(holder, own, QuantisedLinear(getattr(holder, own), execution.base))
    return model
