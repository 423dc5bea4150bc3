"""A wing whose models are loaded by one of the ways of `common/weights/loading.py`: `loading:torch all at once`."""

import functools
from pathlib import Path

from common import backend as door
from common.weights import loading


class Loaded:
    """See `common.backend.Backend`; everything but building is the wing's."""

    def __init__(self, wing, how):
        self.inner, self.how = door.load(wing), how
        self.name, self.title = f"{wing} {how}", f"{self.inner.title}, {how}"

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def build(self, config, weights, execution):
        return loading.load(self.inner, config, Path(weights.path), execution, self.how)


@functools.cache
def __getattr__(name):
    """A wing and how it loads: it is imported by the process that wants it."""
    wing, _, how = name.partition(" ")
    if wing not in door.names() or how not in loading.WAYS:
        raise AttributeError(name)
    return Loaded(wing, how)
