"""C7: adversarial vectors (`common/parity/adversarial`): every implementation does at the edges what is written there.

The oracle says what comes of an edge, and the files `edges.json` and `edges.safetensors` keep it, so that a change of
behaviour is a change of a file. What is refused must be refused by all in the same words; tokens must be equal.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from common import vectors
from common.backend import Backend
from common.config import Execution
from common.parity import edge_vectors
from common.parity import rows as table
from common.parity.adversarial import EDGES, Edge
from common.parity.adversarial.edge import Outcome
from common.parity.rows import Exhibit, Row
from common.parity.thresholds import ROUNDOFF
from common.parity.trial import Session, Trial

NAME = "C7"
TITLE = "edges"
SENTENCE = (
    "At adversarial inputs (scores far from zero, rows of padding, ties, full caches, long sums, NaN) all"
    " implementations do the same, and what is written down."
)
NARROW = ("bfloat16",)  # tiers in which every edge states its own bounds
RULES = {"float64": "float64", "float32": "edge float32", "bfloat16": "edge bfloat16"}


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """Nothing: edges bring their own models."""
    yield from ()


def declared(trial: Trial) -> set[tuple[str, str]]:
    """Nothing."""
    return set()


def once(session: Session) -> Iterator[Row | Exhibit]:
    """A row for every output of every edge in each of its tiers, the files of the vectors, and the list of reasons."""
    for edge, tier in _chosen(session):
        yield from tried(session, edge, tier)
    if _has_vectors(session):
        faults = edge_vectors.stale(vectors.FOLDER)
        yield table.exact(NAME, "", "vectors", {"numpy": len(faults)}, size=len(EDGES), note="; ".join(faults[:3]))
    if list(_chosen(session)):
        shown = [{name: getattr(edge, name) for name in ("name", "flags", "result", "why")} for edge in EDGES.values()]
        yield Exhibit("edges", shown)


def declared_once(session: Session) -> set[tuple[str, str]]:
    """What `once` must yield: the outputs that the oracle has."""
    stored = {("vectors", "exact")} if _has_vectors(session) else set()
    return stored | {(_what(edge, out), tier) for edge, tier in _chosen(session) for out in truth(edge.name)}


def tried(session: Session, edge: Edge, tier: str) -> list[Row]:
    """The rows of one edge: each output of every implementation against the oracle's."""
    found = {name: outcome(edge, subject, session.execution(name, tier)) for name, subject in session.subjects.items()}
    faults = "; ".join(f"{name}: {got}" for name, got in found.items() if isinstance(got, str))
    return [_compared(edge, tier, out, want, found, faults) for out, want in truth(edge.name).items()]


@functools.cache
def truth(name: str) -> Outcome:
    """What the oracle makes of an edge."""
    return edge_vectors.recorded(EDGES[name])[0]


def outcome(edge: Edge, subject: Backend, execution: Execution) -> Outcome | str:
    """What an implementation makes of an edge, or the error that it ends with."""
    try:
        return edge.run(lambda config, weights: subject.build(config, weights, execution))
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _chosen(session: Session) -> Iterator[tuple[Edge, str]]:
    """The edges and tiers of this session."""
    for edge in EDGES.values():
        for tier in edge.tiers:
            if session.wants(tier) and not (session.quick and edge.slow):
                yield edge, tier


def _has_vectors(session: Session) -> bool:
    """Whether the files are at hand (an installation without the tests has none)."""
    return session.wants("exact") and (vectors.FOLDER / edge_vectors.RECIPE).exists()


def _what(edge: Edge, output: str) -> str:
    return f"{edge.name}/{output}"


def _compared(edge: Edge, tier: str, output: str, want: Any, found: Mapping[str, Outcome | str], faults: str) -> Row:
    """One output. Sentences and whole numbers are equal or not; other numbers obey the rule of the tier."""
    got = {name: np.nan if isinstance(own, str) else own.get(output, np.nan) for name, own in found.items()}
    if isinstance(want, str):
        wrong = {name: value != want for name, value in got.items()}
        others = [f"{name}: {got[name]!r} is not {want!r}" for name, is_wrong in wrong.items() if is_wrong]
        return Row(NAME, "", _what(edge, output), tier, "exact", _counts(wrong), note=faults or "; ".join(others))
    if np.asarray(want).dtype.kind in "iu":
        wrong = {name: differing(value, want) for name, value in got.items()}
        size = int(np.size(want))
        return Row(NAME, "", _what(edge, output), tier, "exact", _counts(wrong), size=size, note=faults)
    inputs = {"unit": ROUNDOFF[tier], "roundings": edge.roundings[output]} if tier in NARROW else None
    return table.arrays(NAME, "", _what(edge, output), tier, RULES[tier], got, want, inputs, note=faults)


def _counts(wrong: Mapping[str, int | bool]) -> dict[str, float]:
    return {name: float(count) for name, count in wrong.items()}


def differing(got: Any, want: Any) -> int:
    """How many whole numbers differ; all of them if the shapes do."""
    got, want = np.asarray(got), np.asarray(want)
    return int((got != want).sum()) if got.shape == want.shape else max(1, want.size)
