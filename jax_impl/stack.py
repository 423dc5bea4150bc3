"""The blocks of a model, one after the other: how they are run, chosen by name."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.errors import UserError
from common.taps import Taps

from .layers import layer_key


def loop(layers, x_BTE, positions_BT, caches, dropout_key, taps):
    """Call every block in turn; block i draws its dropout with the key of layer i + 1. Returns ([B, T, E], caches)."""
    filled = []
    for index, layer in enumerate(layers):
        # [1] the block's own cache and key
        cache = None if caches is None else caches[index]
        key = layer_key(dropout_key, index + 1)
        # [2] x = block(x)
        x_BTE, cache = layer(x_BTE, positions_BT, cache, key, taps.under(f"layers.{index}"))
        filled.append(cache)
    return x_BTE, None if caches is None else filled


def scan(layers, x_BTE, positions_BT, caches, dropout_key, taps, wrap=lambda block: block):
    """The same by `jax.lax.scan`: `layers` is one block whose parameters are `fold`ed, and is compiled once."""
    (folded,) = layers
    graph, states = nnx.split(folded)
    count = len(jax.tree.leaves(states)[0])

    # [1] the block's own cache and key
    def stacked(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    keys = None if dropout_key is None else stacked([layer_key(dropout_key, i + 1) for i in range(count)])

    def block(x_BTE, own):
        state, cache, key = own
        inner = Taps(("*",) if taps.wanted else ())
        x_BTE, cache = nnx.merge(graph, state)(x_BTE, positions_BT, cache, key, inner)
        return x_BTE, (cache, inner.found)

    # [2] x = block(x)
    block = wrap(block)
    every = states, None if caches is None else stacked(caches), keys
    x_BTE, (filled, found) = jax.lax.scan(block, x_BTE, every)
    for index in range(count):
        for name, values in found.items():
            taps.under(f"layers.{index}")(name, values[index])
    return x_BTE, filled and [jax.tree.map(lambda leaf, i=i: leaf[i], filled) for i in range(count)]


def checkpointed(layers, x_BTE, positions_BT, caches, dropout_key, taps):
    """The scan, which keeps what linear layers give for the backward pass, and computes all else of a block again.

    Source: Korthikanti et al. 2022, selective activation recomputation.
    """
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    wrap = functools.partial(jax.checkpoint, policy=kept, prevent_cse=False)
    return scan(layers, x_BTE, positions_BT, caches, dropout_key, taps, wrap)


STACKS = {"loop": loop, "scan": scan, "checkpointed": checkpointed}


def apart(arrays):
    """(name, array) of NumPy's arrays by name, as a loop takes them: every layer's own by itself."""
    yield from arrays.items()


def fold(arrays):
    """(name, array) as a scan takes them: those of all layers in one, [layer, …], under the name of layer 0.

    Arrays that are made when they are asked for (`LazyWeights`) are stacked for one such name at a time.
    """
    layers = {}
    for name in arrays:
        found = LAYER.fullmatch(name)
        if found:
            layers.setdefault(f"{found[1]}0{found[3]}", {})[int(found[2])] = name
        else:
            yield name, arrays[name]
    for name, own in layers.items():
        parts = [arrays[own[index]] for index in sorted(own)]
        if len({part.shape for part in parts}) > 1 or len(parts) < max(map(len, layers.values())):
            raise UserError("The blocks of this model differ from each other: use layers='loop'.")
        yield name, np.stack(parts)


def unfold(arrays):
    """The inverse of `fold`."""
    own = {}
    for name, array in arrays.items():
        found = LAYER.fullmatch(name)
        own |= {f"{found[1]}{i}{found[3]}": array[i] for i in range(len(array))} if found else {name: array}
    return own


FOLDS = {"loop": (apart, dict), "scan": (fold, unfold), "checkpointed": (fold, unfold)}
LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
