"""Attention variants, one file each, chosen by name."""

from .framework import FrameworkAttention, FrameworkAttentionWithWeights
from .kernels import KERNELS
from .multi_head import MultiHeadAttention

IMPLEMENTATIONS = {
    **dict.fromkeys(KERNELS, MultiHeadAttention),
    "module": FrameworkAttention,
    "module_weights": FrameworkAttentionWithWeights,
}
