"""Try all claims on all cases: every declared comparison yields a row; what is missing or raises is a failed row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from common.cases import case as case_of
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session, Trial

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
        """Keep an exhibit; what several cases yield under one name is joined: lists in turn, tables by their keys."""
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
) -> Findings:
    """Rows and exhibits of these claims for the session's cases and tiers; `once` includes what belongs to no case. An
    interruption leaves a failed row for everything that was not reached."""
    found = Findings()
    trials = [Trial(session, case_of(name)) for name in session.cases]
    # case by case, so that models built for one claim serve the next
    pieces: list[tuple[ModuleType, Trial | None]] = [(claim, trial) for trial in trials for claim in claims]
    pieces += [(claim, None) for claim in claims if once]
    for done, (claim, trial) in enumerate(pieces):
        try:
            report(f"{claim.NAME} {claim.TITLE if trial is None else trial.case.name}", done / len(pieces))
            if trial is None:
                _take(found, claim, "", claim.once(session), claim.declared_once(session))
            else:
                _take(found, claim, trial.case.name, claim.for_case(trial), claim.declared(trial))
        except KeyboardInterrupt:
            found.interrupted = True
            for number, (own, left) in enumerate(pieces[done:]):
                told = "not tried" if number else "not finished"
                case = "" if left is None else left.case.name
                found.rows.append(_fault(own, case, "interrupted", f"{told}: the run was interrupted"))
            break
    found.rows.sort(key=lambda row: row.claim)
    return found


def _take(found: Findings, claim: ModuleType, case: str, rows: Iterator[Row | Exhibit], declared: set) -> None:
    """Collect what a claim yields; a comparison that was declared and did not come, or came twice, is a failure."""
    came = []
    try:
        for item in rows:
            if isinstance(item, Exhibit):
                found.show(item)
            else:
                came.append(item)
    except KeyboardInterrupt:
        found.rows += came
        raise
    except Exception as error:
        note = f"{type(error).__name__}, {len(declared) - len(came)} comparisons not made: {error}"
        found.rows += [*came, _fault(claim, case, "raised", note)]
        return
    keys = [(row.what, row.tier) for row in came]
    for what, tier in sorted(declared - set(keys)):
        came.append(_fault(claim, case, what, "missing: this was to be compared and was not", tier))
    undeclared = sorted(set(keys) - declared)
    if undeclared or len(set(keys)) < len(keys):
        came.append(_fault(claim, case, "declared", f"rows that were not declared, or came twice: {undeclared[:3]}"))
    found.rows += came


def _fault(claim: ModuleType, case: str, what: str, note: str, tier: str = "exact") -> Row:
    return Row(claim.NAME, case, what, tier, "exact", {"run": 1.0}, note=" ".join(note.split())[:400])
