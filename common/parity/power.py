"""C6: the claims would notice a bug. Every mutant is planted where it can be, and some comparison must then fail.

A bug counts as noticed by a row that fails with it and passes without it. Of an oracle that errs, every wing must be
farther than the bound; in code that all implementations share, only vectors and known answers can notice anything.
"""

import functools
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common import backend as door
from common import config
from common.backend import Backend
from common.cases import CASES
from common.config import Execution
from common.errors import UserError
from common.parity import fields, planted, suspects
from common.parity import rows as table
from common.parity.planted import COMMON, ORACLE, Mutant, World
from common.parity.rows import Exhibit, Row
from common.parity.suspects import Honest, Setting
from common.parity.trial import TIERS, Session, Trial

NAME = "C6"
TITLE = "power"
SENTENCE = (
    "One-line bugs, planted in every component of PyTorch, JAX, the oracle and their common ground, are noticed by the"
    " other claims, all of them; and every field of every config is read."
)
RAISED = "raised"
FIELDS = "fields"
TOGETHER = 20  # mutants that are tried one after the other by one process


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """Nothing: mutants are tried on all cases."""
    yield from ()


def declared(trial: Trial) -> set[tuple[str, str]]:
    """Nothing."""
    return set()


def parts(session: Session) -> list[str]:
    """The names of what can be tried apart: mutants, neighbours together, and the fields."""
    return [*_dockets(session), FIELDS]


def once(session: Session, part: str) -> Iterator[Row | Exhibit]:
    """A row for every mutant in every place and the list of what noticed it, or a row for every field."""
    if part == FIELDS:
        yield from fields.rows(session)
        return
    court, entries = _court(session), []
    for mutant, place in _dockets(session)[part]:
        entry = court.tried(mutant, place)
        entries.append(entry)
        yield verdict(mutant, place, entry)
    yield Exhibit("mutants", entries)


def declared_once(session: Session, part: str = "") -> set[tuple[str, str]]:
    """A row for every mutant and place, and for every field; or those of a part."""
    if part == FIELDS:
        return fields.declared(session)
    pairs = _dockets(session)[part] if part else chosen(session)
    rows = {(what(mutant, place), "exact") for mutant, place in pairs}
    return rows if part else rows | fields.declared(session)


@functools.lru_cache(maxsize=1)  # reading all mutants takes seconds
def _dockets(session: Session) -> dict[str, list[tuple[Mutant, str]]]:
    """What this session plants, in order, by the names of parts: at most TOGETHER of one component each."""
    found = {}
    for component, own in itertools.groupby(chosen(session), key=lambda pair: pair[0].component):
        pairs = list(own)
        for start in range(0, len(pairs), TOGETHER):
            found[f"mutants {len(found) + 1} ({component})"] = pairs[start : start + TOGETHER]
    return found


@functools.lru_cache(maxsize=1)  # what honest implementations give serves all parts
def _court(session: Session) -> "Court":
    return Court(session)


def what(mutant: Mutant, place: str) -> str:
    """The name of a row."""
    return f"mutant/{mutant.id}/{place}"


def chosen(session: Session) -> Iterator[tuple[Mutant, str]]:
    """What this session plants: everything, or nothing if it leaves out cases or tiers that mutants need. A quick one
    plants everything in its first wing, and of every component one mutant in the others (compilers take their time).
    """
    if not set(TIERS) <= set(session.tiers) or not set(CASES) <= set(session.cases):
        return
    first, *_ = session.subjects
    seen = set()
    for mutant in planted.load_mutants().values():
        for place in mutant.places:
            if place not in (ORACLE, COMMON, *session.subjects):
                continue
            if session.quick and place != first and (place, mutant.component) in seen:
                continue
            seen.add((place, mutant.component))
            yield mutant, place


def verdict(mutant: Mutant, place: str, entry: Mapping[str, Any]) -> Row:
    """The row of a mutant in one place: 0 if what happened is what should happen, 1 otherwise."""
    wrong = entry["killed"] if mutant.equivalent else not entry["killed"]
    by = " ".join(str(entry[part]) for part in ("claim", "case", "row", "tier") if entry[part])
    note = f"noticed by {by}" if entry["killed"] else "noticed by nothing"
    return table.exact(NAME, "", what(mutant, place), {place: bool(wrong)}, note=note)


@dataclass
class Court:
    """Tries mutants one after the other; what the honest implementations give is computed once."""

    session: Session
    modes: dict[str, str] = field(default_factory=dict)
    honest: dict[tuple, "Honestly"] = field(default_factory=dict)

    def __post_init__(self):
        self.modes = {name: "eager" for name in self.session.subjects if _runs_eagerly(name)}

    def tried(self, mutant: Mutant, place: str) -> dict[str, Any]:
        """Plant, search, and say what noticed it first; the matrix's entry."""
        start = time.perf_counter()
        edit = mutant.places[place]
        hints = edit.first or mutant.first
        for name in hints:
            suspects.check(name)
        names = hints if mutant.equivalent else suspects.ordered(hints)
        with planted.planted(mutant, place) as world:
            modes, tiers = self._way(place, mutant.mode)
            setting = Setting(world, self._subjects(place, world), modes, place == ORACLE, tiers)
            row = next(filter(None, (self._noticed(name, setting, place) for name in names)), None)
        found = (
            _worst(row) if row is not None else dict.fromkeys(("claim", "case", "row", "tier", "error", "bound"), "")
        )
        return {
            "id": mutant.id,
            "component": mutant.component,
            "what": mutant.what,
            "place": place,
            "equivalent": mutant.equivalent,
            "killed": row is not None,
            **found,
            "file": planted.path_of(place, edit.file),
            "find": edit.find,
            "replace": edit.replace,
            "seconds": round(time.perf_counter() - start, 2),
        }

    def _way(self, place: str, mode: str) -> tuple[dict[str, str], tuple[str, ...]]:
        """How the subjects run, and the tiers in which the accused can run that way: it refuses the others."""
        if not mode:
            return self.modes, TIERS
        if (place, mode) not in self.honest:
            self.honest[place, mode] = tuple(
                t for t in TIERS if t == "exact" or _runs(place, t, config.mode(mode, place))
            )
        return {**self.modes, place: mode}, self.honest[place, mode]

    def _subjects(self, place: str, world: World) -> dict[str, Backend]:
        """Whom the searches look at: the mutant; honest wings if the oracle is accused; one wing on shared ground."""
        if place == ORACLE:
            planted.loaded(world, place)
            return dict(self.session.subjects)
        name = next(iter(self.session.subjects)) if place == COMMON else place
        return {name: planted.loaded(world, name)}

    def _noticed(self, name: str, setting: Setting, place: str) -> Row | None:
        """The first row of a search that fails with the bug and passes without it."""
        honest = self._honestly(name, setting)
        for row in _until_it_raises(name, setting):
            guilty = row.what == RAISED or (_fails_everywhere(row, setting) if setting.accused else not row.passed)
            if guilty and honest.passes(row):
                return row
        return None

    def _honestly(self, name: str, setting: Setting) -> "Honestly":
        key = (name, *setting.subjects, setting.accused, *sorted(setting.modes.items()))
        if key not in self.honest:
            subjects = {wing: door.load(wing) for wing in setting.subjects}
            honest = Setting(Honest(), subjects, setting.modes, setting.accused, setting.tiers)
            self.honest[key] = Honestly(suspects.search(name, honest))
        return self.honest[key]


class Honestly:
    """The rows of a search among honest implementations, made as far as they are asked for."""

    def __init__(self, made: Iterator[Row]):
        self.made, self.known = made, {}

    def passes(self, row: Row) -> bool:
        """Whether the row of that name passes; "raised" passes if as many rows come without an exception."""
        wanted = row.key[1:] if row.what != RAISED else None
        while wanted not in self.known:
            if wanted is None and len(self.known) > row.size:
                return True
            try:
                found = next(self.made)
            except StopIteration:
                return wanted is None
            except Exception:
                return False
            self.known[found.key[1:]] = found.passed
        return self.known[wanted]


def _until_it_raises(name: str, setting: Setting) -> Iterator[Row]:
    """The rows of a search; an exception ends them as a row that fails, whose size is how many came before."""
    came = 0
    try:
        for row in suspects.search(name, setting):
            yield row
            came += 1
    except Exception as error:
        kind, _, case = name.partition(":")
        claim = "C2" if name in CASES else kind
        note = f"{type(error).__name__}: {error}"
        yield Row(
            claim, case or (name if name in CASES else ""), RAISED, "exact", "exact", {"run": 1.0}, size=came, note=note
        )


def _fails_everywhere(row: Row, setting: Setting) -> bool:
    """Whether every wing is farther from the oracle than its bound."""
    bounds = row.bounds
    return all(not row.errors.get(name, 0.0) <= bounds.get(name, math.inf) for name in setting.subjects)


def _worst(row: Row) -> dict[str, Any]:
    """The row's own account, with the error that is farthest above its bound."""
    bounds = row.bounds
    name = max(row.errors, key=lambda name: table.share(row.errors[name], bounds[name]))
    error = row.errors[name]
    own = {"claim": row.claim, "case": row.case, "row": row.what, "tier": row.tier}
    return own | {"error": error if math.isfinite(error) else str(error), "bound": bounds[name]}


def _runs_eagerly(name: str) -> bool:
    """Whether an implementation can run operation by operation, which spares compiling every mutant."""
    return _runs(name, "float64", {"compile": False})


def _runs(name: str, tier: str, options: Mapping[str, Any]) -> bool:
    """Whether an implementation can compute a model in this tier and way."""
    case = next(case for case in CASES.values() if not case.path)
    try:
        model = door.load(name).build(case.config, case.weights(), Execution(dtype=tier, **options))
        model.forward(case.tokens()[0])
    except UserError:
        return False
    return True
