"""What an adversarial vector is, and how its run is written down so that anybody can repeat it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import numpy as np

from common import params
from common.backend import Model
from common.config import ModelConfig
from common.errors import UserError
from common.preference import Pairs

FLAGS = {
    "ScoreShift": "attention scores far from zero, where a finite mask or a missing shift of the softmax shows",
    "FullyMasked": "a query that sees no key, or one only",
    "Tie": "equal numbers, between which a rule must choose",
    "Boundary": "the first, last or first impossible value of a length, position, id or slot",
    "LongPosition": "positions far from zero",
    "Ignored": "labels that do not count",
    "Padded": "rows of unequal length, filled up with padding",
    "Overflow": "numbers whose square, cube or exponential is too large",
    "Subnormal": "numbers below the smallest normal one",
    "NonFinite": "NaN and infinity",
    "Long": "more terms, layers or tokens than an implementation may have been tried with",
    "Close": "numbers that nearly cancel, so that what is rounded before decides",
    "Degenerate": "the smallest models, batches and variances",
    "Policy": "behaviour that mathematics does not settle: the project chose it",
}
RESULTS = ("valid", "policy", "raises")
Weights = Mapping[str, np.ndarray]
Build = Callable[[ModelConfig, Weights], Model]
Outcome = dict[str, Any]  # arrays, whole numbers (tokens), and sentences with which something was refused


@dataclass(frozen=True)
class Edge:
    """An input at which implementations tend to differ. `run(build)` does something with models that it builds.

    `result` is "valid" (mathematics settles the values), "policy" (`why` states what was chosen) or "raises" (it is
    refused, with a sentence). `tiers` has "float32" or "bfloat16" where what such numbers cannot hold is the point.
    `roundings` says by how many unit roundoffs an output that is no whole number may be off in bfloat16, relative RMS.
    `slow` ones are left out of quick sessions: JAX compiles every filter and every size anew.
    """

    name: str
    flags: tuple[str, ...]
    why: str
    run: Callable[[Build], Outcome]
    result: str = "valid"
    tiers: tuple[str, ...] = ("float64",)
    slow: bool = False
    roundings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        unknown = set(self.flags) - set(FLAGS)
        if (
            unknown
            or not self.flags
            or self.result not in RESULTS
            or ("Policy" in self.flags) != (self.result == "policy")
        ):
            raise ValueError(f"edge {self.name!r}: flags {self.flags}, result {self.result!r}")


def refused(action: Callable[[], Any]) -> str:
    """The sentence with which an action is refused; a text that says so if it is not."""
    try:
        action()
    except UserError as error:
        return str(error)
    return "not refused"


def flat(config: ModelConfig, arrays: Weights, suffix: str = "", skip: tuple[str, ...] = ()) -> np.ndarray:
    """The arrays of all parameters as one vector, in the order of the parameter table."""
    names = [name for name in params.table(config) if name not in skip]
    return np.concatenate([np.asarray(arrays[f"{name}{suffix}"], np.float64).ravel() for name in names])


@dataclass
class Record:
    """Everything that an edge did with the models that it built: configs, weights, and calls with plain arguments."""

    models: list[tuple[ModelConfig, Weights]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)

    def around(self, build: Build) -> Build:
        """The same builder, whose models write down what is asked of them."""

        def recording(config: ModelConfig, weights: Weights) -> Any:
            self.models.append((config, {name: np.asarray(value) for name, value in weights.items()}))
            self.calls.append({"call": "build", "model": len(self.models) - 1})
            return _Recorded(build(config, weights), len(self.models) - 1, self)

        return recording


class _Recorded:
    """A model whose calls are recorded; caches go by number."""

    def __init__(self, model: Model, number: int, record: Record):
        self._model, self._number, self._record = model, number, record

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = [self._plain(arg) for arg in args] + [{key: self._plain(v)} for key, v in kwargs.items()]
            self._record.calls.append({"call": name, "model": self._number, "arguments": arguments})
            out = value(*args, **kwargs)
            if name == "new_cache":
                self._record.caches.append(out)
            return out

        return call

    def _plain(self, value: Any) -> Any:
        """An argument as JSON can hold it."""
        for number, cache in enumerate(self._record.caches):
            if value is cache:
                return {"cache": number}
        if isinstance(value, np.ndarray):
            return value.tolist() if value.size else {"empty": list(value.shape)}
        if isinstance(value, Pairs):
            return {name: self._plain(getattr(value, name)) for name in ("labels", "reference", "preference")}
        if is_dataclass(value):
            return value.to_dict()
        return list(value) if isinstance(value, tuple) else value
