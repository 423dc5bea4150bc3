"""C6 with a handful of bugs, in parts. Other processes import it by this name."""

from common.parity import power
from common.parity.planted import Mutant, Place
from common.parity.power import NAME, SENTENCE, TITLE, declared, for_case
from common.parity.rows import Exhibit

__all__ = ["NAME", "SENTENCE", "TITLE", "declared", "declared_once", "for_case", "once", "parts"]

EDITS = {
    "diagonal": Place("masks.py", "(key <= query)", "(key < query)"),
    "future": Place("masks.py", "(key <= query)", "(key >= query)"),
    "stale": Place("masks.py", "no such line", ""),
}
PARTS = {"early": ("diagonal",), "stale": ("stale",), "late": ("future",)}


def parts(session):
    return list(PARTS)


def once(session, part):
    for name in PARTS[part]:
        mutant = Mutant(name, "masks", "Other keys are seen.", {"torch": EDITS[name]}, ("attention",))
        entry = power.Court(session).tried(mutant, "torch")
        yield power.verdict(mutant, "torch", entry)
        yield Exhibit("mutants", [entry])


def declared_once(session, part=""):
    names = PARTS[part] if part else EDITS
    return {(f"mutant/{name}/torch", "exact") for name in names}
