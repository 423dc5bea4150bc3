"""Linear maps, embeddings, layer normalisation, GELU, dropout."""

import contextlib
import math
import threading

import numpy as np

from common import rng

from .module import Module, Slot


class Linear(Module):
    """y = x W^T + b, with W [out, in]; `change` adds what adapters do (`lora.py`), where there are some."""

    change = None

    def __init__(self, in_dim, out_dim, bias):
        self.weight = Slot(out_dim, in_dim)
        self.bias = Slot(out_dim) if bias else None

    def __call__(self, x):
        # [1] y = x W^T + b
        y = plain_product(x, self.weight, self.bias)
        return y if self.change is None else self.change(self, x, y)


def plain_product(x, weight, bias):
    """x W^T + b, with W [out, in]."""
    # [1] one matrix product
    y = x @ weight.T
    return y if bias is None else y + bias


PRODUCTS = {"plain": plain_product}


class Embedding(Module):
    """Row i of W [count, E] stands for id i."""

    def __init__(self, count, dim):
        self.weight = Slot(count, dim)

    def __call__(self, ids):
        # [1] pick the rows
        return self.weight[ids]


class LayerNorm(Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; the variance is the biased one.

    Source: Ba et al. 2016, equation 4.
    """

    def __init__(self, dim, eps):
        self.weight, self.bias, self.eps = Slot(dim), Slot(dim), eps

    def __call__(self, x):
        # [1] centre
        centred = x - x.mean(-1, keepdims=True)
        # [2] divide by the standard deviation, scale and shift
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + self.eps) * self.weight + self.bias


class RMSNorm(Module):
    """x / sqrt(mean of x^2 + eps) * weight over the last axis. Source: Zhang and Sennrich 2019, equation 4."""

    def __init__(self, dim, eps):
        self.weight, self.eps = Slot(dim), eps

    def __call__(self, x):
        # [1] divide by the root of the mean square, scale
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weight


NORMS = {"layer_norm": {"plain": LayerNorm}, "rms_norm": {"plain": RMSNorm}}


def gelu_tanh(x):
    """GELU in its tanh form. Source: Hendrycks and Gimpel 2016, section 2."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    e = np.exp(np.where(x.real < 0, x, -x))
    return np.where(x.real < 0, e, 1.0) / (1 + e)


def silu(x):
    """x sigmoid(x). Source: Elfwing et al. 2017."""
    return x * sigmoid(x)


def gelu(x):
    """Exact GELU, x times the normal distribution function. Source: Hendrycks and Gimpel 2016, equation 1."""
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def quick_gelu(x):
    """GELU as x sigmoid(1.702 x). Source: Hendrycks and Gimpel 2016, section 2."""
    return x * sigmoid(1.702 * x)


ACTIVATIONS = {"gelu_tanh": gelu_tanh, "gelu": gelu, "silu": silu, "quick_gelu": quick_gelu}
ELEMENTWISE = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": lambda x: _erf(x),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    **ACTIVATIONS,
}


def layer_key(key, layer):
    """The key of all dropout masks of a layer (0: the embedding), or None without dropout."""
    # [1] one level of address per layer, so that all blocks are alike
    return None if key is None else rng.fold_in(key, layer)


class Drawn(threading.local):
    """The key of what is being computed, for what lies too deep in it to be handed one."""

    key = None


DRAWN = Drawn()


@contextlib.contextmanager
def keyed(key):
    """Adapters of linear maps draw their dropout with this key, or draw none (None)."""
    # [1] as long as it lasts
    before, DRAWN.key = DRAWN.key, key
    try:
        yield
    finally:
        DRAWN.key = before


def dropout(x, rate, key, site):
    """Zero each element with probability `rate` and scale the rest; the mask is drawn at address `site` of `key`."""
    # [1] without a key (evaluation) or a rate, nothing happens
    if key is None or rate == 0:
        return x
    # [2] keep with probability 1 - rate, multiply by the float32 number 1 / (1 - rate)
    keep = rng.bernoulli(rng.fold_in(key, site), 1 - rate, x.shape)
    return np.where(keep, x * float(np.float32(1 / (1 - rate))), 0.0)


def averaged(x_BTE, positions_BT):
    """[B, T, E]: at every position the mean over those of its row that are no padding."""
    # [1] sum of what counts / how much counts
    counts_BT1 = (positions_BT >= 0)[..., None]
    total_B1E = np.where(counts_BT1, x_BTE, 0.0).sum(1, keepdims=True)
    return np.broadcast_to(total_B1E / np.maximum(counts_BT1.sum(1, keepdims=True), 1), x_BTE.shape)


def _erf(x):
    """The error function, also one complex step away from the real line (NumPy has none)."""
    real = np.vectorize(math.erf, otypes=[float])(x.real)
    if not np.iscomplexobj(x):
        return real
    return real + 1j * x.imag * 2 / math.sqrt(math.pi) * np.exp(-x.real * x.real)
