"""Where a planted bug is looked for: the claims' own comparisons, each under a name, the cheap ones first.

A search is named by a claim and one of its cases ("C4:gpt"), by a claim alone for what belongs to no case ("C1"), by C7
and an edge ("C7:k > V") or its files ("C7:vectors"), or by a case ("gpt": the case's stored vectors, without an oracle
at work). Three more look at a part of what is long: "course:gpt" at the first of C2's hundred steps, "resume:gpt" at
C5's change of hands, "base:gpt_lora" at what C2 tries of a base in 4 bits.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Protocol

from common.backend import Backend
from common.cases import CASES
from common.errors import unknown
from common.parity.rows import Row
from common.parity.trial import TIERS

PARTS = ("course", "resume", "base")
FIRST_STEPS = 4
ORDER = ("C1", "C7", "C4", "C2", "C0", "C3", "C5")  # quickest first
MODULES = {
    "C0": "conversion",
    "C1": "bits",
    "C2": "semantics",
    "C3": "rounding",
    "C4": "decisions",
    "C5": "trajectories",
    "C7": "edges",
}


class Modules(Protocol):
    """Where modules of `common` are taken from: a world with a bug, or the honest one."""

    def module(self, name: str) -> ModuleType: ...


class Honest:
    """The world without a bug."""

    def module(self, name: str) -> ModuleType:
        return import_module(name)


@dataclass(frozen=True)
class Setting:
    """Whom a search looks at: the subjects of a session, how they execute, in which tiers they can, and whether the
    oracle is suspected.
    """

    world: Modules
    subjects: Mapping[str, Backend]
    modes: Mapping[str, str]
    accused: bool = False
    tiers: tuple[str, ...] = TIERS

    def parity(self, module: str) -> ModuleType:
        return self.world.module(f"common.parity.{module}")

    def session(self):
        """A quick session of all cases."""
        return self.parity("trial").Session(dict(self.subjects), self.tiers, modes=dict(self.modes), quick=True)

    def trial(self, case: str):
        """The trial of one case."""
        return self.parity("trial").Trial(self.session(), self.world.module("common.cases").CASES[case])


def searches() -> list[str]:
    """All searches, in the order in which they are tried."""
    cases = sorted(CASES, key=lambda name: (bool(not CASES[name].path), CASES[name].config.embed_dim))
    claims = [claim if case is None else f"{claim}:{case}" for claim in ORDER for case in (None, *cases)]
    return [*cases, *claims]


def check(name: str) -> None:
    """Refuse the name of a search that there is not."""
    kind, colon, detail = name.partition(":")
    edges = ("vectors", *import_module("common.parity.adversarial").EDGES)
    if not colon and kind not in (*CASES, *MODULES):
        raise unknown("case or claim", kind, (*CASES, *MODULES))
    if colon and kind not in (*MODULES, *PARTS):
        raise unknown("claim", kind, (*MODULES, *PARTS))
    if colon and detail not in (edges if kind == "C7" else CASES):
        raise unknown("edge" if kind == "C7" else "case", detail, edges if kind == "C7" else CASES)


def search(name: str, setting: Setting) -> Iterator[Row]:
    """The rows of a search; exhibits are left out."""
    kind, _, detail = name.partition(":")
    if name in CASES:
        found = _stored(setting, name)
    elif kind == "course":
        found = _course(setting, detail)
    elif kind == "resume":
        found = _resumed(setting, detail)
    elif kind == "base":
        found = setting.parity("four_bits").rows(setting.trial(detail))
    elif kind == "C7":
        found = _edges(setting, detail) if detail not in CASES else iter(())
    elif detail:
        found = setting.parity(MODULES[kind]).for_case(setting.trial(detail))
    else:
        found = setting.parity(MODULES[kind]).once(setting.session())
    yield from (item for item in found if hasattr(item, "passed"))


def _stored(setting: Setting, case: str) -> Iterator[Row]:
    """What the subjects compute against the stored vectors, or against an accused oracle."""
    trial = setting.trial(case)
    judge = trial.truth.build() if setting.accused else None  # one of its own: it is trained
    return setting.parity("observed").for_case(trial, judge)


def _edges(setting: Setting, edge: str) -> Iterator[Row]:
    """One edge in all its tiers, or all of them."""
    edges, session = setting.parity("edges"), setting.session()
    if not edge:
        yield from edges.once(session)
        return
    if edge == "vectors":
        faults = setting.parity("edge_vectors").stale(setting.world.module("common.vectors").FOLDER)
        yield setting.parity("rows").exact("C7", "", edge, {"numpy": len(faults)}, note="; ".join(faults[:3]))
        return
    chosen = setting.parity("adversarial").EDGES[edge]
    for tier in chosen.tiers:
        yield from edges.tried(session, chosen, tier)


def _course(setting: Setting, case: str) -> Iterator[Row]:
    """The losses of the first steps of C2's course."""
    return setting.parity("observed").first_steps(setting.trial(case), FIRST_STEPS)


def _resumed(setting: Setting, case: str) -> Iterator[Row]:
    """A run that is handed on once, from an implementation to itself, as C5 hands it from one to another."""
    observed = setting.parity("observed")
    for tier in observed.HANDED_ON:
        yield from observed.resumed(setting.trial(case), FIRST_STEPS, tier)


def ordered(first: tuple[str, ...]) -> Iterator[str]:
    """The hints of a mutant, then everything else."""
    return itertools.chain(first, (name for name in searches() if name not in first))
