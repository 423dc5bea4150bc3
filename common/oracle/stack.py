"""The blocks of a model, one after the other: how they are run, chosen by name."""

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


STACKS = {"loop": loop}
