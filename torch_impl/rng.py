"""The shared random numbers of `common.rng` as tensors. Keys are made on the host; words are drawn on the device."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from common import rng as host
from common.rng import PARITY, ROTATIONS, TINY

key, address, split = host.key, host.address, host.split

CHUNK = 1 << 16  # counters per pass: the two words stay in the cache of one core


class Native(NamedTuple):
    """A key whose numbers are drawn by PyTorch's own generator, seeded with its words."""

    words: np.ndarray

    def generator(self, device):
        first, second = (int(word) for word in self.words)
        return torch.Generator(device).manual_seed(first << 31 ^ second)


class Part(NamedTuple):
    """A key whose numbers are those that rows from `first` on have in a larger batch."""

    words: np.ndarray
    first: int


def native_address(seed, *parts):
    """The key at an address, for PyTorch's own generator."""
    return Native(address(seed, *parts))


GENERATORS = {"shared": address, "native": native_address}


@torch.compiler.disable  # traced, its chain of shifts would grow exponentially
def fold_in(key, data):
    """A new key of the same kind, a function of `key` and a whole number in [0, 2^32)."""
    return fold_in_of(key, data)


@functools.singledispatch
def fold_in_of(key, data):
    """`fold_in` by the kind of key."""
    return host.fold_in(key, data)


@fold_in_of.register(Native)
@fold_in_of.register(Part)
def _(key, data):
    return key._replace(words=host.fold_in(key.words, data))


@torch.compiler.disable
def bits(key, shape, device="cpu", first=0):
    """Random 32-bit words as int32 (the same bits as uint32 elsewhere), without those of the `first` rows."""
    count = math.prod(shape)
    out = torch.empty(count, dtype=torch.int32, device=device)
    step, before = CHUNK if out.device.type == "cpu" else max(count, 1), first * math.prod(shape[1:])
    for start in range(0, count, step):
        _fill(key, before + start, out[start : start + step])
    return out.view(shape)


@functools.singledispatch
def uniform(key, shape, device="cpu"):
    """float32 in [0, 1)."""
    return _unit(bits(key, shape, device))


@uniform.register
def _(key: Part, shape, device="cpu"):
    return _unit(bits(key.words, shape, device, key.first))


@uniform.register
def _(key: Native, shape, device="cpu"):
    return torch.rand(shape, generator=key.generator(device), device=device)


@functools.singledispatch
def bernoulli(key, probability, shape, device="cpu"):
    """True with that probability (rounded to float32)."""
    return uniform(key, shape, device) < torch.tensor(probability, dtype=torch.float32)


@bernoulli.register
@torch.compiler.disable
def _(key: Native, probability, shape, device="cpu"):
    return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(probability, generator=key.generator(device))


def gumbel(key, shape, dtype, device="cpu"):
    """Gumbel noise from the shared uniforms: `argmax(logits + noise)` draws from `softmax(logits)`."""
    lifted = uniform(key, shape, device).clamp_(min=TINY).to(dtype)
    return -torch.log(-torch.log(lifted))


def _unit(words):
    """Words to float32 in [0, 1), in place."""
    mantissa = words.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).bitwise_or_(0x3F800000)
    return mantissa.view(torch.float32).sub_(1.0)


def _int32(word):
    """The int32 with the bits of a uint32 (tensors of uint32 know no arithmetic)."""
    word = int(word) & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _fill(key, start, out):
    """Threefry at counters start, start + 1, …: int32 arithmetic wraps as uint32 does; shifts are made logical."""
    first, second = int(key[0]), int(key[1])
    schedule = (first, second, first ^ second ^ PARITY)
    y = torch.arange(start, start + out.numel(), dtype=torch.int64, device=out.device)
    x = (y >> 32).to(torch.int32).add_(_int32(first))
    y = y.to(torch.int32).add_(_int32(second))
    spill = torch.empty_like(y)
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            x.add_(y)
            torch.bitwise_right_shift(y, 32 - turn, out=spill)
            spill.bitwise_and_((1 << turn) - 1)
            y.bitwise_left_shift_(turn).bitwise_or_(spill).bitwise_xor_(x)
        x.add_(_int32(schedule[(group + 1) % 3]))
        y.add_(_int32(schedule[(group + 2) % 3] + group + 1))
    torch.bitwise_xor(x, y, out=out)
