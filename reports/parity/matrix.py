"""The mutation matrix of a certificate: which planted bug was noticed by which comparison."""

import csv as tables
import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]


def of(found: Found) -> list[dict[str, Any]]:
    """The planted bugs, one entry for each bug and place; empty if none was tried.

    An entry says `id`, `component`, `what` (the bug in a sentence), `place` (the implementation), `equivalent` (why it
    changes nothing, or ""), `killed`, and of the row that noticed it `claim`, `case`, `row`, `tier`, `error`, `bound`.
    """
    return found["exhibits"].get("mutants", [])


def csv(found: Found) -> str:
    """The matrix as a table for other programs."""
    text, entries = io.StringIO(), of(found)
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    rows = tables.DictWriter(text, columns, lineterminator="\n")
    rows.writeheader()
    rows.writerows(entries)
    return text.getvalue()


def by_claim(found: Found) -> dict[str, int]:
    """How many bugs each claim noticed first."""
    return dict(Counter(entry["claim"] for entry in of(found) if entry["killed"]))


def bugs(found: Found) -> list[dict[str, Any]]:
    """The entries without equivalent ones, which change nothing and must survive."""
    return [entry for entry in of(found) if not entry.get("equivalent")]
