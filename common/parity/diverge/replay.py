"""A side's own error at every step: the oracle computes each named value from the values that the side had before.

`taps(name, value)` returns the value that goes on. `Forced` writes down what the oracle computed there and lets the
side's own value go on in its place, so no error is inherited from one name to the next.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from common import backend as door
from common import params
from common.config import Execution, ModelConfig
from common.parity.diverge.inputs import Subject

LARGEST = 400_000_000  # parameters: beyond, float64 copies of the weights take more than 3 GB


class Forced:
    """Taps for the oracle: `computed` gets its values, `values` (a side's) go on where they have the same shape."""

    def __init__(self, values: Mapping[str, np.ndarray], prefix: str = "", computed: dict[str, Any] | None = None):
        self.values, self.prefix, self.computed = values, prefix, {} if computed is None else computed

    def under(self, name: str) -> "Forced":
        """The same, one level down."""
        return Forced(self.values, f"{self.prefix}{name}.", self.computed)

    def wants(self, name: str) -> bool:
        """Everything is asked for."""
        return True

    def __call__(self, name: str, value: Any) -> Any:
        name = self.prefix + name
        self.computed[name] = value
        given = self.values.get(name)
        return value if given is None or given.shape != value.shape else given


def oracle(subject: Subject) -> Any:
    """The oracle with the subject's weights; None if it is too large to be asked."""
    if subject.size > LARGEST:
        return None
    return door.load("numpy").build(subject.config, subject.weights, Execution(dtype="float64"))


def replay(model: Any, subject: Subject, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the oracle makes at every name from the values of a side, float64. Without values: its own forward pass."""
    forced = Forced(values)
    positions = door.positions_of(subject.ids, subject.positions, 0, subject.config)
    with np.errstate(all="ignore"):  # a broken port's values may be anything
        model.net(subject.ids, positions, taps=forced)
    return forced.computed


def order(config: ModelConfig) -> list[str]:
    """All names of a model's values in the order in which they are made, from an oracle of the least width."""
    least = config.with_(vocab_size=2, context_length=1, embed_dim=2 * config.num_heads, ff_dim=1)
    model = door.load("numpy").build(least, params.randomise(least, 0), Execution(dtype="float64"))
    return list(model.forward(np.zeros((1, 1), np.int32), taps=("*",)).taps)
