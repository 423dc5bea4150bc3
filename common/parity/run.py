"""Try all claims on all cases: every declared comparison yields a row; what is missing or raises is a failed row."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from types import ModuleType
from typing import Any

from common.parity import pieces, workers
from common.parity.pieces import Outcome, Parcel, Piece
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session

Report = Callable[[str, float], None]  # what is being done, and the share of the whole that is done


@dataclass
class Findings:
    """All rows, in order, and what else there is to look at (by claim and name)."""

    rows: list[Row] = field(default_factory=list)
    exhibits: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def show(self, exhibit: Exhibit) -> None:
        """Keep an exhibit; what several pieces yield under one name is joined: lists in turn, tables by their keys."""
        before = self.exhibits.get(exhibit.name)
        if before is None:
            self.exhibits[exhibit.name] = exhibit.data
        else:
            self.exhibits[exhibit.name] = before | exhibit.data if isinstance(before, dict) else before + exhibit.data

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row.passed]


def run(
    session: Session,
    claims: Sequence[ModuleType],
    report: Report = lambda what, share: None,
    once: bool = True,
    processes: int = 1,
) -> Findings:
    """Rows and exhibits of these claims for the session's cases and tiers; `once` includes what belongs to no case. An
    interruption leaves a failed row for everything that was not reached.

    With several processes, claims and backends are loaded in each by their names; what is found is the same.
    """
    parcels = pieces.parcels(session, claims, once, fine=processes > len(session.cases))
    whole = {n: claim.declared_once(session) for n, claim in enumerate(claims) if once and pieces.in_parts(claim)}
    total = sum(parcel.size * len(parcel.pieces) for parcel in parcels)
    sizes = {piece: parcel.size for parcel in parcels for piece in parcel.pieces}
    outcomes: dict[Piece, Outcome] = {}
    interrupted = False
    try:
        with closing(_tried(session, claims, parcels, processes)) as events:
            for piece, outcome in events:
                outcomes[piece] = outcome
                now = [pieces.title(claims[own.claim], own) for own, came in outcomes.items() if not came.finished]
                if now:
                    report(", ".join(now), sum(sizes[own] for own, came in outcomes.items() if came.finished) / total)
    except KeyboardInterrupt:
        interrupted = True
    found = _joined(claims, parcels, outcomes)
    found.interrupted = interrupted
    for number, declared in whole.items():
        found.rows += _cut_badly(claims[number], declared, [outcomes.get(piece) for piece in _parts(parcels, number)])
    found.rows.sort(key=lambda row: row.claim)
    return found


def _tried(
    session: Session, claims: Sequence[ModuleType], parcels: Sequence[Parcel], processes: int
) -> Iterator[tuple[Piece, Outcome]]:
    """Every piece when it begins and when it is finished, tried here or by other processes."""
    if min(processes, len(parcels)) > 1:
        yield from workers.tried(session, claims, parcels, processes)
        return
    for parcel in parcels:
        yield from pieces.tried(session, claims, parcel)


def _joined(claims: Sequence[ModuleType], parcels: Sequence[Parcel], outcomes: Mapping[Piece, Outcome]) -> Findings:
    """What came, in the order of the parcels, whoever was first; a row for each claim and case that is not finished."""
    found = Findings()
    in_order = (piece for parcel in parcels for piece in parcel.pieces)
    for (number, case), own in groupby(in_order, key=lambda piece: (piece.claim, piece.case)):
        came = [outcomes.get(piece) for piece in own]
        for outcome in filter(None, came):
            found.rows += outcome.rows
            for exhibit in outcome.exhibits:
                found.show(exhibit)
        if not all(outcome and outcome.finished for outcome in came):
            told = "not finished" if any(came) else "not tried"
            found.rows.append(pieces.fault(claims[number], case, "interrupted", f"{told}: the run was interrupted"))
    return found


def _parts(parcels: Sequence[Parcel], claim: int) -> list[Piece]:
    return [piece for parcel in parcels for piece in parcel.pieces if piece.claim == claim and not piece.case]


def _cut_badly(claim: ModuleType, declared: set[tuple[str, str]], came: Sequence[Outcome | None]) -> Iterator[Row]:
    """What a claim declares and none of its parts does, and what came from several of them."""
    if not all(outcome and outcome.finished and not outcome.lost for outcome in came):
        return
    for what, tier in sorted(declared.difference(*(outcome.declared for outcome in came))):
        yield pieces.fault(claim, "", what, "missing: this was to be compared and is in no part", tier)
    keys = Counter((row.what, row.tier) for outcome in came for row in outcome.rows)
    twice = sorted(key for key, times in keys.items() if times > 1)
    if twice:
        yield pieces.fault(claim, "", "declared", f"rows that came from several parts: {twice[:3]}")
