"""The blocks of a model, one after the other: how they are run, chosen by name."""

import jax
import jax.numpy as jnp
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


def scan(layers, x_BTE, positions_BT, caches, dropout_key, taps):
    """The same by `jax.lax.scan` over stacked parameters: one block is compiled, whatever the depth."""
    graphs, states = zip(*(nnx.split(layer) for layer in layers), strict=True)
    if any(graph != graphs[0] for graph in graphs[1:]):
        raise UserError("The blocks of this model differ from each other: use layers='loop'.")

    # [1] the block's own cache and key
    def stacked(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    keys = None if dropout_key is None else stacked([layer_key(dropout_key, i + 1) for i in range(len(layers))])

    def block(x_BTE, own):
        state, cache, key = own
        inner = Taps(("*",) if taps.wanted else ())
        x_BTE, cache = nnx.merge(graphs[0], state)(x_BTE, positions_BT, cache, key, inner)
        return x_BTE, (cache, inner.found)

    # [2] x = block(x)
    every = stacked(states), None if caches is None else stacked(caches), keys
    x_BTE, (filled, found) = jax.lax.scan(block, x_BTE, every)
    for index in range(len(layers)):
        for name, values in found.items():
            taps.under(f"layers.{index}")(name, values[index])
    return x_BTE, filled and [jax.tree.map(lambda leaf, i=i: leaf[i], filled) for i in range(len(layers))]


STACKS = {"loop": loop, "scan": scan}
