"""Implementations with a planted fault: models that are built, trained or read otherwise than they should be."""

from collections.abc import Callable, Mapping
from typing import Any

from common import backend as door
from common.cases import case as case_of
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session, Trial


class Altered:
    """A backend like `name` whose `build` goes through `change(build, config, weights, execution)`."""

    def __init__(self, name: str, change: Callable[..., Any]):
        self.honest, self.change = door.load(name), change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.honest, name)

    def build(self, config, weights, execution):
        return self.change(self.honest.build, config, weights, execution)


class AlteredModel:
    """A model with some methods replaced: `methods[name](honest method, *arguments)`."""

    def __init__(self, model: Any, methods: Mapping[str, Callable[..., Any]]):
        self.honest, self.methods = model, methods

    def __getattr__(self, name: str) -> Any:
        honest = getattr(self.honest, name)
        if name not in self.methods:
            return honest
        return lambda *args, **kwargs: self.methods[name](honest, *args, **kwargs)


def with_config(**changes: Any) -> Callable[..., Any]:
    """Models of another config."""
    return lambda build, config, weights, execution: build(config.with_(**changes), weights, execution)


def with_methods(**methods: Callable[..., Any]) -> Callable[..., Any]:
    """Models with other methods."""
    return lambda build, config, weights, execution: AlteredModel(build(config, weights, execution), methods)


def session(
    change: Callable[..., Any] | None = None, wings: tuple[str, str] = ("torch", "jax"), **about: Any
) -> Session:
    """A quick session over two implementations, the second of them altered. Two of the same kind compile once."""
    first, second = wings
    other = door.load(second) if change is None else Altered(second, change)
    label = "altered" if first == second else second
    return Session({first: door.load(first), label: other}, quick=True, **about)


def rows(claim: Any, session: Session, case: str) -> dict[tuple[str, str], Row]:
    """What a claim says about a case, by (what, tier); exactly what it declared."""
    trial = Trial(session, case_of(case))
    found = {(r.what, r.tier): r for r in claim.for_case(trial) if not isinstance(r, Exhibit)}
    assert set(found) == claim.declared(trial)
    return found


def failed(found: Mapping[tuple[str, str], Row]) -> set[tuple[str, str]]:
    """The keys of the rows that did not pass."""
    return {key for key, row in found.items() if not row.passed}
