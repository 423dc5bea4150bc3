"""Linear maps, embeddings, layer normalisation, GELU, dropout."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from common.cores import vendor

from . import rng
from .precision import at_least, dtype


class Linear(nn.Module):
    """y = x W^T + b, with W [out, in]; `change` adds what adapters do (`lora.py`), where there are some."""

    change, adapters = None, ()

    def __init__(self, in_dim, out_dim, bias, execution):
        super().__init__()
        kind = dtype(execution.precision.param)
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, dtype=kind))
        self.bias = nn.Parameter(torch.empty(out_dim, dtype=kind)) if bias else None
        self.product = PRODUCTS[execution.products]

    def forward(self, x):
        # [1] y = x W^T + b
        y = self.product(x, self.weight, self.bias)
        return y if self.change is None else self.change(self, x, y)


def plain_product(x, weight, bias):
    """x W^T + b, with W [out, in] in the type of x."""
    # [1] one matrix product
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def wide_product(x, weight, bias):
    """The same multiplied in at least 32 bits: where a CPU has no instructions for 16, `F.linear` is 6 times slower."""
    # [1] one matrix product of the same numbers
    wide = torch.promote_types(x.dtype, torch.float32)
    y = F.linear(x.to(wide), weight.to(x.dtype).to(wide), None if bias is None else bias.to(x.dtype).to(wide))
    return y.to(x.dtype)


def library_streams(kind, device):
    """Whether all threads read W when `F.linear` multiplies a single row: MKL's do on Intel's processors, in 32 bits at
    28 GB/s on two cores whose best rate is 28, where the reduction below reaches 23. On others a single one does."""
    mkl = torch.backends.mkl.is_available() and vendor() == "GenuineIntel"
    return mkl and kind == torch.float32 and torch.device(device).type == "cpu"


def streamed_product(x, weight, bias, several=plain_product):
    """The same for a single row: a reduction over W, which, compiled, all threads read, for where `F.linear` uses one
    thread. More rows are multiplied by `several`."""
    if x.numel() != x.shape[-1]:
        return several(x, weight, bias)
    # [1] one pass over W
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (weight.to(x.dtype).to(wide) * x.reshape(1, -1).to(wide)).sum(-1)
    return (y if bias is None else y + bias.to(wide)).to(x.dtype).view(*x.shape[:-1], -1)


PRODUCTS = {"plain": plain_product, "wide": wide_product, "tf32": plain_product}  # the last: see `multiplying`


class Embedding(nn.Module):
    """Row i of W [count, E] stands for id i."""

    def __init__(self, count, dim, precision):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim, dtype=dtype(precision.param)))
        self.compute = dtype(precision.compute)

    def forward(self, ids):
        # [1] pick the rows
        return F.embedding(ids, self.weight).to(self.compute)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; the variance is the biased one.

    Source: Ba et al. 2016, equation 4.
    """

    def __init__(self, dim, eps, precision):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype(precision.param)))
        self.bias = nn.Parameter(torch.empty(dim, dtype=dtype(precision.param)))
        self.eps, self.reduce = eps, dtype(precision.reduce)

    def forward(self, x):
        # [1] centre
        wide = at_least(x, self.reduce)
        centred = wide - wide.mean(-1, keepdim=True)
        # [2] divide by the standard deviation, scale and shift
        variance = centred.square().mean(-1, keepdim=True)
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(x.dtype)


class FusedLayerNorm(LayerNorm):
    """The same by PyTorch's own kernel, which keeps what is centred, mean and deviation alone for the backward pass.

    Its variance loses digits where the mean is large; of what is centred it loses none.
    """

    def forward(self, x):
        # [1] centre
        centred = at_least(x, self.reduce)
        centred = centred - centred.mean(-1, keepdim=True)
        # [2] divide by the standard deviation, scale and shift
        return F.layer_norm(centred, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean of x^2 + eps) * weight over the last axis. Source: Zhang and Sennrich 2019, equation 4."""

    def __init__(self, dim, eps, precision):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype(precision.param)))
        self.eps, self.reduce = eps, dtype(precision.reduce)

    def forward(self, x):
        # [1] divide by the root of the mean square, scale
        wide = at_least(x, self.reduce)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class FusedRMSNorm(RMSNorm):
    """The same by PyTorch's own kernel."""

    def forward(self, x):
        # [1] divide by the root of the mean square, scale
        return F.rms_norm(at_least(x, self.reduce), self.weight.shape, self.weight, self.eps).to(x.dtype)


NORMS = {
    "layer_norm": {"plain": LayerNorm, "fused": FusedLayerNorm},
    "rms_norm": {"plain": RMSNorm, "fused": FusedRMSNorm},
}


def matmul(dims, a, b, reduce):
    """einsum that sums in the precision of reductions, and stays in it (a product in 16 bits rounds its sums)."""
    return torch.einsum(dims, at_least(a, reduce), at_least(b, reduce))


def gelu_tanh(x):
    """GELU in its tanh form. Source: Hendrycks and Gimpel 2016, section 2."""
    return F.gelu(x, approximate="tanh")


def silu(x):
    """x sigmoid(x). Source: Elfwing et al. 2017."""
    return F.silu(x)


def gelu(x):
    """Exact GELU, x times the normal distribution function. Source: Hendrycks and Gimpel 2016, equation 1."""
    return F.gelu(x, approximate="none")


def quick_gelu(x):
    """GELU as x sigmoid(1.702 x). Source: Hendrycks and Gimpel 2016, section 2."""
    wide = at_least(x, torch.float32)  # rounded once, as in PyTorch's own activations
    return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)


def formula_gelu_tanh(x):
    """GELU in its tanh form, written out: every step of the formula keeps what it gives for the way back."""
    wide = at_least(x, torch.float32)  # rounded once, as in PyTorch's own activations
    slope = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (0.5 * wide * (1 + torch.tanh(slope))).to(x.dtype)


def formula_gelu(x):
    """Exact GELU, written out."""
    wide = at_least(x, torch.float32)
    return (0.5 * wide * (1 + torch.erf(wide / math.sqrt(2)))).to(x.dtype)


ACTIVATIONS = {"gelu_tanh": gelu_tanh, "gelu": gelu, "silu": silu, "quick_gelu": quick_gelu}
GELUS = {
    "plain": ACTIVATIONS,
    "formula": {**ACTIVATIONS, "gelu_tanh": formula_gelu_tanh, "gelu": formula_gelu},
}
ELEMENTWISE = {
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "rsqrt": torch.rsqrt,
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
    keep = rng.bernoulli(rng.fold_in(key, site), 1 - rate, x.shape, x.device)
    scale = torch.tensor(1 / (1 - rate), dtype=torch.float32)
    return torch.where(keep, x * scale, 0.0)


def averaged(x_BTE, positions_BT, reduce):
    """[B, T, E]: at every position the mean over those of its row that are no padding (positions None: all)."""
    # [1] sum of what counts / how much counts
    wide_BTE = at_least(x_BTE, reduce)
    if positions_BT is None:
        return wide_BTE.mean(1, keepdim=True).expand_as(x_BTE).to(x_BTE.dtype)
    counts_BT1 = (positions_BT >= 0)[..., None]
    total_B1E = torch.where(counts_BT1, wide_BTE, 0.0).sum(1, keepdim=True)
    return (total_B1E / counts_BT1.sum(1, keepdim=True).clamp(min=1)).expand_as(x_BTE).to(x_BTE.dtype)
