"""The blocks of a model, one after the other: how they are run, chosen by name."""

import torch

from .layers import keyed, layer_key


def loop(layers, x_BTE, positions_BT, caches, dropout_key, taps):
    """Call every block in turn; block i draws its dropout with the key of layer i + 1. Returns ([B, T, E], caches).

    Layers that share keys and values hand them on in `given`.
    """
    filled, given = [], {}
    for index, layer in enumerate(layers):
        # [1] the block's own cache and key
        cache = None if caches is None else caches[index]
        key = layer_key(dropout_key, index + 1)
        # [2] x = block(x)
        with keyed(key):
            x_BTE, cache = layer(x_BTE, positions_BT, cache, key, taps.under(f"layers.{index}"), given)
        filled.append(cache)
    return x_BTE, None if caches is None else filled


LIMIT = 1000  # precisions, shapes and configs

STACKS = {"loop": loop}


def compile_in_place(module, **options):
    """Compile it by `torch.compile`. Past LIMIT kinds of inputs a call raises, where PyTorch would turn to eager."""
    # [1] one limit for all models of a process, which share the code that is compiled
    config = torch._dynamo.config
    config.recompile_limit, config.accumulated_recompile_limit, config.fail_on_recompile_limit_hit = LIMIT, LIMIT, True
    module.compile(**options)
