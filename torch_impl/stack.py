"""The blocks of a model, one after the other: how they are run, chosen by name."""

import functools

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from common.keyed import keyed
from common.taps import Taps

from .layers import layer_key


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


def checkpointed(layers, x_BTE, positions_BT, caches, dropout_key, taps):
    """The loop, which keeps what linear layers give for the backward pass, and computes all else of a block again.

    Source: Korthikanti et al. 2022, selective activation recomputation.
    """
    if torch.is_grad_enabled():
        layers = [functools.partial(_again, layer) for layer in layers]
    return loop(layers, x_BTE, positions_BT, caches, dropout_key, taps)


STACKS = {"loop": loop, "checkpointed": checkpointed}

DOTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)  # products without batch dimensions: linear layers'
LIMIT = 1000  # precisions, shapes and configs


def _again(layer, x_BTE, positions_BT, cache, key, taps, given):
    """A block that is called again on the way back: what it draws has addresses, and what it shows and hands on to
    other layers is returned, so that the second call writes nowhere."""
    first = positions_BT, cache, key

    def block(x_BTE, handed):
        own, inner = dict(handed), Taps(taps.wanted, prefix=taps.prefix)
        with keyed(first[-1]):
            x_BTE, after = layer(x_BTE, *first, inner, own)
        return x_BTE, after, own, inner.found

    contexts = functools.partial(create_selective_checkpoint_contexts, _kept)
    how = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
    x_BTE, cache, own, found = checkpoint(block, x_BTE, dict(given), **how)
    given.update(own)
    taps.found.update(found)
    return x_BTE, cache


def _kept(context, operation, *args, **kwargs):
    """What of a block's forward pass is kept."""
    return CheckpointPolicy.MUST_SAVE if operation in DOTS else CheckpointPolicy.PREFER_RECOMPUTE


def compile_in_place(module, **options):
    """Compile it by `torch.compile`. Past LIMIT kinds of inputs a call raises, where PyTorch would turn to eager."""
    # [1] one limit for all models of a process, which share the code that is compiled
    config = torch._dynamo.config
    config.recompile_limit, config.accumulated_recompile_limit, config.fail_on_recompile_limit_hit = LIMIT, LIMIT, True
    module.compile(**options)
