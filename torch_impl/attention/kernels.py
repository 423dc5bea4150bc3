"""Softmax attention from queries, keys, values and a mask."""

import math

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    sees_B1T1 = mask_B1TS.any(-1, keepdim=True)
    scores_BHTS = taps("scores", torch.where(mask_B1TS, scores_BHTS, torch.where(sees_B1T1, -torch.inf, 0.0)))
    # [3] weights = softmax over the keys
    weights_BHTS = taps("weights", torch.softmax(scores_BHTS, -1).to(q_BHTD.dtype))
    # [4] dropout on the weights
    weights_BHTS = dropout(weights_BHTS, rate, key, 0)
    # [5] context = weights v, zero where nothing was visible
    return torch.where(sees_B1T1, weights_BHTS @ v_BHSD, 0.0)


def fused_attention(q_BHTD, k_BHSD, v_BHSD, mask_B1TS, reduce, rate=0.0, key=None, taps=NO_TAPS):
    """The same function by PyTorch's `scaled_dot_product_attention`, which never holds all scores at once.

    Without a mask a query sees the keys up to itself: kernels leave the others out. Only those of `_allowed` may run,
    for PyTorch would turn to one that holds all scores; what they cannot compute is refused.
    """
    # [1-4] n/a: inside the kernel, which can neither show its scores nor draw the shared dropout mask
    without_dropout("Fused", rate, key)
    # [5] context = weights v, zero where nothing was visible
    allowed = _allowed(q_BHTD.device.type, q_BHTD.dtype, mask_B1TS is not None)
    try:
        with sdpa_kernel(allowed):
            if mask_B1TS is None:
                return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True)
            context_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_B1TS)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("No available kernel", "No viable backend")):
            raise
        what = f"{q_BHTD.dtype} on {q_BHTD.device.type} with heads of {q_BHTD.shape[-1]}"
        names = ", ".join(backend.name for backend in allowed)
        raise UserError(f"PyTorch has no fused attention for {what} ({names}): use attention='plain'.") from error
    if q_BHTD.device.type == "cpu":  # whose kernel gives zeros by itself
        return context_BHTD
    return torch.where(mask_B1TS.any(-1, keepdim=True), context_BHTD, 0.0)


def _allowed(device, kind, masked):
    """The kernels that may compute it. On a GPU flash attention takes 16 bits and no mask, cuDNN's takes 16 bits."""
    if device == "cpu":
        return [SDPBackend.FLASH_ATTENTION]
    if kind not in (torch.bfloat16, torch.float16):
        return [SDPBackend.EFFICIENT_ATTENTION]
    other = SDPBackend.EFFICIENT_ATTENTION if masked else SDPBackend.FLASH_ATTENTION
    return [other, SDPBackend.CUDNN_ATTENTION]


KERNELS = {
    "plain": plain_attention,
    "loop": loop_attention,
    "blockwise": blockwise_attention,
    "fused": fused_attention,
    "masked": fused_attention,
}
