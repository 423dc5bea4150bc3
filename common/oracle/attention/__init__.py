"""Attention variants, one file each, chosen by name."""

from importlib import import_module

from .multi_head import MultiHeadAttention

IMPLEMENTATIONS = {"plain": MultiHeadAttention}


def attention(config, layer):
    """The attention of a layer, as the config's pattern has it. Of multi-head attention there are several
    IMPLEMENTATIONS.
    """
    # [1] the class of its kind
    entry = config.attention_of(layer)
    module = _module(entry)
    module = IMPLEMENTATIONS["plain"] if module is MultiHeadAttention else module
    return module(config, entry)


def empty_cache(config, batch, capacity):
    """One empty cache with room for `capacity` tokens for every layer, each of the form that its attention wants."""
    # [1] as the class of its kind makes it
    entries = map(config.attention_of, range(config.num_layers))
    return [_module(entry).empty_cache(config, entry, batch, capacity) for entry in entries]


def _module(entry):
    """The class of a kind, in the file of its name."""
    return getattr(import_module(f"{__name__}.{entry.kind}"), entry.module)
