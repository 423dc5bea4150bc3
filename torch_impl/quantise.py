"""Weights in 4 bits (NF4), block by block: Dettmers et al. 2023 (QLoRA), section 3. All arithmetic is in float32."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.nf4 import BLOCK, CLOSE, DYNAMIC, GROUP, NF4, TINY, midpoints, names, stored

from .layers import Linear

_dynamic = torch.from_numpy(DYNAMIC)
_part = 2048  # blocks whose codes are found at once, for what is in between to stay small


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
    weight = weight.detach().to(torch.float32)
    if not weight.isfinite().all():
        raise UserError(f"{name} holds NaN or infinity; 4 bits have no code for these.")
    x_NB = blocks(weight, BLOCK)
    absmax_N = largest(x_NB, TINY)
    # [2] the nearest of 16 numbers for each weight, two in a byte
    parts = zip(x_NB.split(_part), absmax_N.split(_part), strict=True)
    code_NB = torch.cat([nearest(*part, NF4).to(torch.uint8) for part in parts])
    packed = pack(code_NB.ravel()[: weight.numel()])
    if base == "nf4":
        return Quantised(packed, absmax_N)
    # [3] double: the same again for what absmax differ by from their mean, in 8 bits and blocks of 256
    offset_1 = total(absmax_N) * torch.tensor(1 / absmax_N.numel(), dtype=torch.float32)
    y_GB = blocks(absmax_N - offset_1, GROUP)
    scale_G = largest(y_GB, (offset_1 * CLOSE).clamp(min=TINY))
    code_N = nearest(y_GB, scale_G, DYNAMIC).ravel()[: absmax_N.numel()]
    return Quantised(packed, code_N.to(torch.uint8), scale_G, offset_1)


def dequantise(quantised, shape):
    """The matrix [shape] that the 4 bits stand for, float32."""
    # [1] absmax; from 8 bits as a sum times the scale, in this order, which no compiler can fuse
    absmax_N, size = quantised.absmax, math.prod(shape)
    if quantised.scale is not None:
        scale_G1 = torch.where(quantised.scale == 0, 1.0, quantised.scale)[:, None]
        value_GB = blocks(_dynamic.to(absmax_N.device)[absmax_N.int()], GROUP)
        absmax_N = ((value_GB + quantised.offset / scale_G1) * scale_G1).ravel()[: absmax_N.numel()]
    # [2] the number of every code, times absmax of its block
    pairs = _pairs.to(absmax_N.device).index_select(0, quantised.packed.int())
    value_NB = blocks(pairs.view(torch.float32)[:size], BLOCK)
    return (value_NB * absmax_N[:, None]).ravel()[:size].reshape(shape)


def blocks(x, size):
    """x row after row in blocks [N, size], the last one filled up with zeros."""
    # [1] fill up, cut
    flat = x.ravel()
    return F.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def largest(x_NB, least):
    """The largest absolute value of every block [N]; zero where it is below `least`."""
    # [1] maximum
    found_N = x_NB.abs().amax(-1)
    return torch.where(found_N < least, 0.0, found_N)


def nearest(x_NB, scale_N, values):
    """For each x / scale the number of the nearest of these values, which ascend; between two it is the lower one.

    Nothing is divided: x is held against midpoints times scale. A scale of zero stands for a block of zeros.
    """
    # [1] midpoints between neighbours, and a scale that is not zero
    middle, scale_N1 = (
        torch.from_numpy(midpoints(values)).to(x_NB.device),
        torch.where(scale_N == 0, 1.0, scale_N)[:, None],
    )
    # [2] binary search: one bit of the code after another, the highest first
    code_NB, step = torch.zeros(x_NB.shape, dtype=torch.int32, device=x_NB.device), len(values) // 2
    while step:
        code_NB = torch.where(x_NB > middle[code_NB + (step - 1)] * scale_N1, code_NB + step, code_NB)
        step //= 2
    return code_NB


def pack(code):
    """Codes from 0 to 15, two in a byte: the first in the high half, the last byte filled up with 0."""
    # [1] pairs
    high, low = blocks(code.to(torch.uint8), 2).T
    return high << 4 | low


def unpack(packed):
    """The codes of bytes, int32, the one that fills up included."""
    # [1] both halves, one after the other
    packed = packed.int()
    return torch.stack([packed >> 4, packed & 15], -1).ravel()


# the two numbers of every byte as 64 bits, which are looked up as one
_pairs = torch.from_numpy(NF4)[unpack(torch.arange(256, dtype=torch.uint8))].view(torch.int64)


def total(x):
    """The sum [1] of a vector, halves added to each other again and again: the order, and so the bits, of everyone."""
    # [1] fill up to a power of two, halve
    x = blocks(x, 1 << (x.numel() - 1).bit_length()).ravel()
    while x.numel() > 1:
        x = x[: x.numel() // 2] + x[x.numel() // 2 :]
    return x


class QuantisedLinear(Linear):
    """y = x W^T + b with W in 4 bits, which is dequantised for every product. It is no parameter, b is. In a layout
    `gather` puts each of the bits' arrays together, and `place` hands on what of W is needed in this process."""

    gather, place = None, None

    def __init__(self, linear, base):
        nn.Module.__init__(self)  # no place for the matrix itself
        self.shape, self.kind, self.base = linear.weight.shape, linear.weight.dtype, base
        self.bias, self.product = linear.bias, linear.product
        for name, (shape, kind) in stored(math.prod(self.shape), base).items():
            empty = torch.empty(shape, dtype=getattr(torch, kind), device=linear.weight.device)
            self.register_buffer(name, empty)

    def fill(self, quantised):
        """Put bits into their places."""
        # [1] one after the other
        for name in stored(math.prod(self.shape), self.base):
            setattr(self, name, getattr(quantised, name))

    @property
    def bits(self):
        """What stands for W."""
        # [1] one after the other
        found = (getattr(self, name) for name in stored(math.prod(self.shape), self.base))
        return Quantised(*(found if self.gather is None else map(self.gather, found)))

    @property
    def weight(self):
        """W [out, in] in the precision of parameters."""
        # [1] W out of its bits
        weight = dequantise(self.bits, self.shape).to(self.kind)
        return weight if self.place is None else self.place(weight)

    def forward(self, x):
        # [1] y = x W^T + b; of W only the bits are kept for the way back, where it is dequantised again
        product = ForgetfulProduct.apply if torch.is_grad_enabled() else ForgetfulProduct.plain
        y = product(x, self.bias, self)
        return y if self.change is None else self.change(self, x, y)


class ForgetfulProduct(torch.autograd.Function):
    """The product of a `QuantisedLinear`; autograd would keep the dequantised matrices of all layers."""

    @staticmethod
    def plain(x, bias, linear):
        return linear.product(x, linear.weight, bias)

    @staticmethod
    def forward(ctx, x, bias, linear):
        ctx.linear = linear
        return linear.product(x, linear.weight, bias)

    @staticmethod
    def backward(ctx, grad):
        wants_x, wants_bias, _ = ctx.needs_input_grad
        grad_x = ctx.linear.product(grad, ctx.linear.weight.T, None) if wants_x else None
        grad_bias = grad.flatten(0, -2).sum(0).to(ctx.linear.bias.dtype) if wants_bias else None
        return grad_x, grad_bias, None


def rebase(model, config, execution):
    """Give linear maps inside layers places for 4 bits, if the execution's base is kept so. Returns the model."""
    if execution.base == "plain":
        return model
    # [1] one after the other, under the same paths
    for name in names(config):
        above, _, own = name.removesuffix(".weight").rpartition(".")
        holder = model.get_submodule(above)
        setattr(holder, own, QuantisedLinear(getattr(holder, own), execution.base))
    return model
