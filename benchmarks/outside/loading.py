"""A wing whose weights are all read before its model is made: the file is in memory twice for a moment.

The wings take tensors one at a time, as they come from the file; this is what reading a whole state dict first costs.
"""

import functools

import numpy as np

from common import backend as door


class AllAtOnce:
    """See `common.backend.Backend`; everything but building is the wing's."""

    def __init__(self, name):
        self.inner = door.load(name)
        self.name, self.title = f"{name} all at once", f"{self.inner.title}, all at once"

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def build(self, config, weights, execution):
        return self.inner.build(config, {name: np.array(weights[name]) for name in weights}, execution)


@functools.cache
def __getattr__(name):
    """`torch` and `jax`: a wing is imported by the process that wants it."""
    if name not in door.names():
        raise AttributeError(name)
    return AllAtOnce(name)
