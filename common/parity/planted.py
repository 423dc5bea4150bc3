"""Planted bugs: an implementation with one line altered, loaded beside the honest one; and the list of such mutants.

A place is where a bug is planted: in a wing ("torch", "jax", any installed backend), in the oracle ("numpy": then it is
the judge who errs), or in "common", which all implementations share, so that only stored vectors and known answers
remain as witnesses. A mutant is data (`mutants/*.toml`); files that are added to that folder are found.
"""

import functools
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from common import backend as door
from common.backend import Backend
from common.config import MODES
from common.errors import UserError, unknown
from common.parity import suspects
from common.parity.alias import Alias, Edit, aliased, source
from common.points import entry_points

FOLDER = Path(__file__).with_name("mutants")
ORACLE, COMMON = "numpy", "common"
JUDGES = ("common.backend", "common.vectors", "common.quantised", "common.parity")  # what must see an oracle that errs
SHARED = ("common.errors",)  # exceptions keep their identity
FIELDS = ("id", "what", "first", "file", "find", "replace", "equivalent", "mode")


@dataclass(frozen=True)
class Place:
    """One edit of a mutant: `file` is relative to the package of the place. `first` overrides the mutant's."""

    file: str
    find: str
    replace: str
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mutant:
    """A bug in one sentence, and the line of it in every place. `first` names what is likely to notice it: claims and
    cases, as "C4:gpt", "C4" or "gpt". `equivalent` proves that it changes nothing; such a mutant must survive. `mode`
    names the entry of `common.config.MODES` in which the accused runs, for code that no other mode reaches.
    """

    id: str
    component: str
    what: str
    places: Mapping[str, Place]
    first: tuple[str, ...] = ()
    equivalent: str = ""
    mode: str = ""


@dataclass(frozen=True)
class World:
    """What an edit has changed: ask it for backends and modules."""

    alias: Alias
    packages: Mapping[str, str] = field(default_factory=dict)

    def backend(self, name: str) -> Backend:
        """The backend of that name: the copy with the bug, if it is part of this world."""
        package, _, attribute = _entry(name)
        if not self.alias.covers(package):
            return door.load(name)
        return getattr(self.alias.module(package), attribute)

    def module(self, name: str) -> ModuleType:
        """A module of `common` as this world sees it."""
        return self.alias.module(name)


def package_of(place: str) -> str:
    """The package in which the files of a place lie."""
    return COMMON if place == COMMON else _entry(place)[0].rpartition(".")[0] or _entry(place)[0]


def path_of(place: str, file: str) -> str:
    """A file of a place, relative to the project's root."""
    return f"{package_of(place).replace('.', '/')}/{file}"


def module_of(place: str, file: str) -> str:
    """The module in a file of a place."""
    parts = file.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join([package_of(place), *parts])


@contextmanager
def world(place: str, edit: Place) -> Iterator[World]:
    """Everything as it would be with this edit, for as long as the context lasts."""
    package = package_of(place)
    prefixes = {ORACLE: (package, *JUDGES), COMMON: (COMMON, *_wings())}.get(place, (package,))
    with aliased(prefixes, SHARED, Edit(module_of(place, edit.file), edit.find, edit.replace)) as alias:
        made = World(alias)
        if alias.covers(door.__name__):  # the copy of the door must lead into this world
            alias.module(door.__name__).load = made.backend
        yield made


@contextmanager
def planted(mutant: Mutant, place: str) -> Iterator[World]:
    """The world of a mutant in one of its places."""
    if place not in mutant.places:
        raise unknown(f"place of mutant {mutant.id!r}", place, mutant.places)
    with _named(f"mutant {mutant.id!r} in {place}"), world(place, mutant.places[place]) as made:
        yield made


@contextmanager
def backend(mutant: Mutant, place: str) -> Iterator[Backend]:
    """The backend of a wing with a mutant in it (or the oracle, for "numpy")."""
    with planted(mutant, place) as made:
        yield loaded(made, place)


@contextmanager
def edited(name: str, file: str, find: str, replace: str) -> Iterator[Backend]:
    """A backend with an edit of one's own: `edited("torch", "layers.py", "x * scale", "x")`."""
    with world(name, Place(file, find, replace)) as made:
        yield loaded(made, name)


def loaded(made: World, name: str) -> Backend:
    """The backend of that name; an edit that is no Python is a mistake in the mutant, not a bug that was noticed."""
    try:
        return made.backend(name)
    except (SyntaxError, NameError, AttributeError, ImportError, TypeError) as error:
        raise UserError(f"The edited {name} cannot be loaded: {type(error).__name__}: {error}.") from error


def load_mutants(folder: Path = FOLDER) -> dict[str, Mutant]:
    """All mutants of a folder by id, equivalent ones included."""
    found: dict[str, Mutant] = {}
    known = (COMMON, *door.names())
    for path in sorted(folder.glob("*.toml")):
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path.name} is no TOML: {error}.") from error
        for entry in table.get("mutant", []):
            mutant = _read(entry, table.get("component", path.stem), path.name, known)
            if mutant.id in found:
                raise UserError(f"{path.name} has a second mutant {mutant.id!r}; ids must differ.")
            found[mutant.id] = mutant
    return found


def check(mutant: Mutant) -> list[str]:
    """What is stale in a mutant, a sentence for every place."""
    faults = []
    for place, edit in mutant.places.items():
        module = module_of(place, edit.file)
        try:
            Edit(module, edit.find, edit.replace).apply(source(module))
            for name in edit.first or mutant.first:
                suspects.check(name)
        except UserError as error:
            faults.append(f"{mutant.id} in {place}: {error}")
    return faults


def _read(entry: Mapping[str, Any], component: str, where: str, known: tuple[str, ...]) -> Mutant:
    """A mutant from its table. `file`, `find` and `replace` of the mutant itself are the default of all its places,
    whose names must be known.
    """
    name = entry.get("id", "?")
    places = {key: value for key, value in entry.items() if key not in FIELDS}
    for place in places:
        if place not in known:
            raise unknown(f"place or field of mutant {name!r} in {where}", place, (*known, *FIELDS))
    default = {key: entry[key] for key in ("file", "find", "replace") if key in entry}
    try:
        edits = {
            place: Place(**{**default, **own, "first": tuple(own.get("first", ()))}) for place, own in places.items()
        }
        about = {"equivalent": entry.get("equivalent", ""), "first": tuple(entry.get("first", ()))}
        about["mode"] = _mode(entry.get("mode", ""), name)
        return Mutant(entry["id"], component, entry["what"], edits, **about)
    except (KeyError, TypeError) as error:
        raise UserError(f"Mutant {name!r} in {where} lacks or has too much: {error}.") from error


def _mode(mode: str, name: str) -> str:
    if mode and mode not in MODES:
        raise unknown(f"mode of mutant {name!r}", mode, MODES)
    return mode


@functools.cache
def _entry(name: str) -> tuple[str, str, str]:
    """(module, ":", attribute) of a backend's entry point."""
    for point in entry_points(group=door.GROUP):
        if point.name == name:
            return point.value.partition(":")
    raise unknown("backend", name, door.names())


@functools.cache
def _wings() -> tuple[str, ...]:
    """The packages of all backends that do not lie in `common`."""
    return tuple(name for name in map(package_of, door.names()) if not name.startswith(f"{COMMON}."))


@contextmanager
def _named(who: str) -> Iterator[None]:
    """Say which mutant is stale."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')} ({who}).") from error
