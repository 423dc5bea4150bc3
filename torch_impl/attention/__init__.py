"""Attention variants, one file each, chosen by name."""

from importlib import import_module

from common.config import COMPILED_KERNELS

from .framework import FrameworkAttention, FrameworkAttentionWithWeights
from .kernels import KERNELS
from .multi_head import MultiHeadAttention

IMPLEMENTATIONS = {
    **dict.fromkeys(KERNELS, MultiHeadAttention),
    "module": FrameworkAttention,
    "module_weights": FrameworkAttentionWithWeights,
}


def attention(config, layer, execution):
    """The attention of a layer, as the config's pattern has it. Of multi-head attention there are several
    IMPLEMENTATIONS.
    """
    # [1] the class of its kind
    entry = config.attention_of(layer)
    module = _module(entry)
    module = _implementation(execution.attention) if module is MultiHeadAttention else module
    return module(config, entry, execution)


def empty_cache(config, batch, capacity, execution):
    """One empty cache with room for `capacity` tokens for every layer, each of the form that its attention wants."""
    # [1] as the class of its kind makes it
    entries = map(config.attention_of, range(config.num_layers))
    return [_module(entry).empty_cache(config, entry, batch, capacity, execution) for entry in entries]


def _module(entry):
    """The class of a kind, in the file of its name."""
    return getattr(import_module(f"{__name__}.{entry.kind}"), entry.module)


def _implementation(name):
    """The class that computes multi-head attention so; what compiles is imported where it is asked for."""
    if name in COMPILED_KERNELS:
        return import_module(f"{__name__}.compiled").CompiledAttention
    return IMPLEMENTATIONS[name]
