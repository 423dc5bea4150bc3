"""The blocks of a model, one after the other: how they are run, chosen by name."""

import functools
import itertools
import re
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.errors import UserError
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


def scan(layers, x_BTE, positions_BT, caches, dropout_key, taps, wrap=lambda blocks: blocks, around=None):
    """The same by `jax.lax.scan`: compiled once. `layers` are `fold`ed: the blocks of one period, whose parameters are
    those of all whole periods, and behind them the blocks of a period that ends too early.

    `wrap` goes around the blocks of a turn; `around` goes before it, and is told the layers of the first turn.
    """
    period = sum(map(_folded, layers))
    graphs, states = zip(*map(nnx.split, layers), strict=True)
    count = len(jax.tree.leaves(states)[0])
    index = [[repeat * period + place for repeat in range(count)] for place in range(period)]

    # [1] the block's own cache and key
    def stacked(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def cache_of(i):
        return None if caches is None else caches[i]

    def key_of(i):
        return None if dropout_key is None else layer_key(dropout_key, i + 1)

    own_caches, keys = ([stacked([of(i) for i in own]) for own in index] for of in (cache_of, key_of))

    def run(graphs, index):
        def blocks(x_BTE, every):
            filled, given = [], {}
            for own, graph, state, cache, key in zip(index, graphs, *every, strict=True):
                inner = Taps(("*",) if taps.wanted else ())
                with keyed(key):
                    x_BTE, cache = nnx.merge(graph, state)(x_BTE, positions_BT, cache, key, inner, given)
                filled.append((cache, _asked(taps, own, inner.found)))
            return x_BTE, filled

        return wrap(blocks if around is None else around(blocks, [own[0] for own in index]))

    # [2] x = block(x)
    after = [None] * (period * count)
    x_BTE, filled = jax.lax.scan(run(graphs[:period], index), x_BTE, (states[:period], own_caches, keys))
    for own, (cache, found) in zip(index, filled, strict=True):
        for repeat, i in enumerate(own):
            after[i] = jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], cache)
            for name, values in found.items():
                taps.under(f"layers.{i}")(name, values[repeat])
    # [3] the blocks behind the last whole period
    rest = range(period * count, period * count + len(layers) - period)
    if rest:
        every = states[period:], [cache_of(i) for i in rest], [key_of(i) for i in rest]
        x_BTE, filled = run(graphs[period:], [[i] for i in rest])(x_BTE, every)
        for i, (cache, found) in zip(rest, filled, strict=True):
            after.append(cache)
            for name, value in found.items():
                taps.under(f"layers.{i}")(name, value)
    return x_BTE, None if caches is None else after


def checkpointed(layers, x_BTE, positions_BT, caches, dropout_key, taps, around=None):
    """The scan, which keeps what linear layers give for the backward pass, and computes all else of a block again.

    Source: Korthikanti et al. 2022, selective activation recomputation.
    """
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    wrap = functools.partial(jax.checkpoint, policy=kept, prevent_cse=False)
    return scan(layers, x_BTE, positions_BT, caches, dropout_key, taps, wrap, around)


STACKS = {"loop": loop, "scan": scan, "checkpointed": checkpointed}


def _folded(layer):
    """Whether a block's parameters are those of several layers."""
    return layer.input_layernorm.weight[...].ndim > 1


def _asked(taps, layers, found):
    """Of what a block shows, by name, what is asked for of any of these layers: a scan would carry all else along."""
    names = {name: [f"{taps.prefix}layers.{i}.{name}" for i in layers] for name in found}
    wanted = {n for n, full in names.items() if any(fnmatchcase(name, p) for name in full for p in taps.wanted)}
    return {name: value for name, value in found.items() if name in wanted}


def apart(arrays, period, count):
    """(name, array) of NumPy's arrays by name, as a loop takes them: every layer's own by itself."""
    yield from arrays.items()


def together(arrays, period, count):
    """The inverse of `apart`."""
    return dict(arrays)


def fold(arrays, period, count):
    """(name, array) as a scan over `count` periods takes them: those of its layers i, i + period, … in one,
    [repeat, …], named by layer i. Layers behind the scan follow, as they are.

    Arrays that are made when they are asked for (`LazyWeights`) are stacked for one such name at a time.
    """
    layers = {}
    for name in arrays:
        folded, repeat = place(name, period, count)
        if repeat is None:
            yield folded, arrays[name]
        else:
            layers.setdefault(folded, {})[repeat] = name
    for name, own in layers.items():
        parts = [arrays[own[repeat]] for repeat in sorted(own)]
        if len({part.shape for part in parts}) > 1 or len(parts) != count:
            raise UserError("The blocks of this model differ from each other: use layers='loop'.")
        yield name, np.stack(parts)


def unfold(arrays, period, count):
    """The inverse of `fold`."""
    own = {}
    for name, array in arrays.items():
        match = LAYER.fullmatch(name)
        if match is None:
            own[name] = array
        elif (layer := int(match[2])) < period:
            own |= {f"{match[1]}{layer + period * repeat}{match[3]}": array[repeat] for repeat in range(count)}
        else:
            own[f"{match[1]}{layer + (count - 1) * period}{match[3]}"] = array
    return own


def place(name, period, count):
    """(name, repeat) under which `fold` keeps what a model has under a name; repeat None: it is alone."""
    match = LAYER.fullmatch(name)
    if match is None:
        return name, None
    layer = int(match[2])
    if layer < count * period:
        return f"{match[1]}{layer % period}{match[3]}", layer // period
    return f"{match[1]}{layer - (count - 1) * period}{match[3]}", None


def repeats(config, trained):
    """Over how many periods of layers a scan can go: all whole ones, or as many from the first one on as are trained
    alike (`trained[name]`). What is frozen is then frozen in a whole scan, through which no gradient has to flow."""
    own = {}
    for name, match in ((name, LAYER.fullmatch(name)) for name in trained):
        if match is not None:
            own.setdefault(int(match[2]), {})[match[3]] = trained[name]
    whole = range(config.num_layers // config.period * config.period)
    alike = itertools.takewhile(lambda layer: own[layer] == own[layer % config.period], whole)
    return sum(1 for _ in alike) // config.period


FOLDS = {"loop": (apart, together), "scan": (fold, unfold), "checkpointed": (fold, unfold)}
LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
