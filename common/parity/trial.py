"""What the claims are tried on: the implementations, the oracle, and for every case its models and true values."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import backend as door
from common import params, vectors
from common.backend import Backend, Model
from common.cases import CASES, Case
from common.config import Execution, ModelConfig, mode
from common.errors import UserError, unknown

TIERS = ("exact", "float64", "float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class Session:
    """One run of claims: the implementations under test by name, and what they are tried with.

    `quick` leaves out what takes long (it never changes a bound). `modes` names, by implementation, a mode of
    `common.config`.
    """

    subjects: Mapping[str, Backend]
    tiers: tuple[str, ...] = TIERS
    cases: tuple[str, ...] = tuple(CASES)
    device: str = "cpu"
    modes: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    folder: Path | None = None

    def wants(self, tier: str) -> bool:
        return tier in self.tiers

    def execution(self, name: str, tier: str) -> Execution:
        chosen = mode(self.modes.get(name, "default"), name)
        return Execution(dtype=tier, device=self.device, **chosen)


@dataclass(frozen=True, eq=False)
class Trial:
    """One case of a session. Models that are only read are built once."""

    session: Session
    case: Case

    @property
    def names(self) -> list[str]:
        return list(self.session.subjects)

    @property
    def truth(self) -> "Truth":
        return truth(self.case.name)

    def build(
        self,
        name: str,
        tier: str = "float64",
        weights: Mapping[str, np.ndarray] | None = None,
        config: ModelConfig | None = None,
    ) -> Model:
        """A model of one's own, with the case's weights and config unless told otherwise."""
        chosen = self.case.weights() if weights is None else weights
        execution = self.session.execution(name, tier)
        return self.session.subjects[name].build(config or self.case.config, chosen, execution)

    @functools.cache  # noqa: B019 (a trial lives as long as its models)
    def model(self, name: str, tier: str = "float64") -> Model:
        """The shared model of this case: not to be trained."""
        return self.build(name, tier)

    def each(self, tier: str = "float64") -> dict[str, Model]:
        """The shared models of all implementations."""
        return {name: self.model(name, tier) for name in self.names}


class Truth:
    """What the oracle says about a case, computed when it is asked for and kept."""

    def __init__(self, case: Case):
        self.case = case
        self._made: dict[str, Any] = {}

    def build(self, weights: Mapping[str, np.ndarray] | None = None, config: ModelConfig | None = None) -> Model:
        """An oracle model of one's own."""
        chosen = self.case.weights() if weights is None else weights
        return door.load("numpy").build(config or self.case.config, chosen, Execution(dtype="float64"))

    @functools.cached_property
    def model(self) -> Model:
        return self.build()

    @functools.cached_property
    def built(self) -> dict[str, np.ndarray]:
        """What the files of the case's vectors should hold, computed anew."""
        return vectors.build(self.case)

    @functools.cached_property
    def expected(self) -> dict[str, np.ndarray]:
        """The expected values among them: "output" or "logits", "loss", "grad/…", "tokens/0", …"""
        return {n.removeprefix("expected/"): v for n, v in self.built.items() if n.startswith("expected/")}

    @functools.cached_property
    def forward(self) -> door.Forward:
        """Logits and all taps, in order, of a model case."""
        ids, _ = self.case.tokens()
        return self.model.forward(ids, taps=("*",))

    def once(self, what: str, make: Callable[[], Any]) -> Any:
        """The value of that name, made when it is first asked for (by whichever session)."""
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    def dead(self, name: str) -> bool:
        """Whether the gradient of this parameter is zero in theory."""
        found = self._table.get(name)
        return found is not None and found.dead

    def idle(self, name: str) -> bool:
        """Whether outputs do not depend on this parameter."""
        return self.dead(name) and not self._table[name].chooses

    @functools.cached_property
    def _table(self) -> dict[str, params.Parameter]:
        return params.table(self.case.config)


@functools.cache
def truth(case: str) -> Truth:
    """The truth about a case, shared by all sessions of this process."""
    return Truth(CASES[case])


def subjects(names: tuple[str, ...]) -> dict[str, Backend]:
    """The backends under test by name; the oracle is the judge and cannot be one of them."""
    if "numpy" in names:
        raise UserError("The numpy backend is the oracle, which judges the others: leave it out.")
    if not names:
        raise UserError("No backend is named; there must be at least one, as in --backends torch,jax.")
    return {name: door.load(name) for name in names}


def check_choice(what: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen names, all of them known, or a sentence with near matches."""
    for name in chosen:
        if name not in known:
            raise unknown(what, name, known)
    return chosen or known
