"""The work of a certificate, cut: a claim on a case is a piece, and so is a part of what belongs to no case.

Pieces of one case are one parcel, so that models built for one claim serve the next. A claim whose `once` is long names
its `parts`, and takes the name of one in `once` and `declared_once`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from common.cases import case as case_of
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session, Trial


@dataclass(frozen=True)
class Piece:
    """A claim, by its place in the list of claims, on a case; without one, a part of what belongs to none ("": all)."""

    claim: int
    case: str = ""
    part: str = ""


@dataclass(frozen=True)
class Parcel:
    """Pieces that one process tries, one after the other; `size` is about how much work each of them is."""

    pieces: tuple[Piece, ...]
    size: int = 1


@dataclass
class Outcome:
    """What came of a piece, in order, and what was to come. `lost` if the process that tried it is no more."""

    rows: list[Row] = field(default_factory=list)
    exhibits: list[Exhibit] = field(default_factory=list)
    declared: set[tuple[str, str]] = field(default_factory=set)
    finished: bool = False
    lost: bool = False


def parcels(session: Session, claims: Sequence[ModuleType], once: bool = True, fine: bool = False) -> list[Parcel]:
    """All work in the order of its results: case by case, then what belongs to no case. `fine` cuts every case into its
    claims, for more processes than cases: what several claims of a case need is made in each then."""
    numbers = range(len(claims))
    pieces = [[Piece(number, case) for number in numbers] for case in session.cases if claims]
    found = [Parcel(own) for of_case in pieces for own in (zip(of_case) if fine else [tuple(of_case)])]
    for number in numbers if once else ():
        if not in_parts(claims[number]):
            found.append(Parcel((Piece(number),)))
            continue
        for part in claims[number].parts(session):
            size = max(1, len(claims[number].declared_once(session, part)))
            found.append(Parcel((Piece(number, part=part),), size))
    return found


def in_parts(claim: ModuleType) -> bool:
    """Whether a claim's `once` is tried in parts."""
    return hasattr(claim, "parts")


def title(claim: ModuleType, piece: Piece) -> str:
    """A piece in words."""
    return f"{claim.NAME} {piece.case or piece.part or claim.TITLE}"


def tried(session: Session, claims: Sequence[ModuleType], parcel: Parcel) -> Iterator[tuple[Piece, Outcome]]:
    """Every piece twice: when it begins, with an outcome that fills from then on, and when it is finished."""
    case = parcel.pieces[0].case
    trial = Trial(session, case_of(case)) if case else None
    for piece in parcel.pieces:
        outcome = Outcome()
        yield piece, outcome
        _try(piece, claims[piece.claim], session if trial is None else trial, outcome)
        outcome.finished = True
        yield piece, outcome


def _try(piece: Piece, claim: ModuleType, on: Session | Trial, outcome: Outcome) -> None:
    """Collect what a claim yields; a comparison that was declared and did not come, or came twice, is a failure."""
    named = (on, piece.part) if piece.part else (on,)
    yields, declares = (claim.for_case, claim.declared) if piece.case else (claim.once, claim.declared_once)
    items, outcome.declared = yields(*named), declares(*named)
    try:
        for item in items:
            if isinstance(item, Exhibit):
                outcome.exhibits.append(item)
            else:
                outcome.rows.append(item)
    except Exception as error:
        left = len(outcome.declared) - len(outcome.rows)
        outcome.rows.append(
            event(claim, piece, "raised", f"{type(error).__name__}, {left} comparisons not made: {error}")
        )
        return
    keys = [(row.what, row.tier) for row in outcome.rows]
    for what, tier in sorted(outcome.declared - set(keys)):
        outcome.rows.append(fault(claim, piece.case, what, "missing: this was to be compared and was not", tier))
    undeclared = sorted(set(keys) - outcome.declared)
    if undeclared or len(set(keys)) < len(keys):
        note = f"rows that were not declared, or came twice: {undeclared[:3]}"
        outcome.rows.append(event(claim, piece, "declared", note))


def event(claim: ModuleType, piece: Piece, what: str, note: str) -> Row:
    """A failed row that says what happened to a piece."""
    return fault(claim, piece.case, f"{what}/{piece.part}" if piece.part else what, note)


def fault(claim: ModuleType, case: str, what: str, note: str, tier: str = "exact") -> Row:
    """A failed row without a comparison."""
    return Row(claim.NAME, case, what, tier, "exact", {"run": 1.0}, note=" ".join(note.split())[:400])
