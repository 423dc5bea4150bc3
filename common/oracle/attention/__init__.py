"""Attention variants, one file each, chosen by name."""

from .multi_head import MultiHeadAttention

IMPLEMENTATIONS = {"plain": MultiHeadAttention}
