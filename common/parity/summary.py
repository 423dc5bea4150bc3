"""What follows from the rows of a certificate: shares, sums, digests, verdicts. Written once, recomputed by `verify`.

Entries are rows as plain data (`Row.to_dict` and what `entry` adds). Digests and sums make it noticeable that a number
was changed afterwards; they are no signature: who rewrites all of them is found out only by running the claims again.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.parity import thresholds
from common.parity.rows import Row

Entry = dict[str, Any]
SCHEMA = "parallax-certificate/1"
DIGITS = 16  # of a row's SHA-256: enough to notice any change, short enough for a line
MARK = 4  # digits for each number, to say which one was changed


def plain(value: Any) -> Any:
    """The value as JSON can hold it: lists, text keys, Python's numbers; what is not finite becomes text."""
    if isinstance(value, Mapping):
        return {str(name): plain(own) for name, own in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(own) for own in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def digest(value: Any) -> str:
    """SHA-256 of plain data in canonical form: JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def entry(row: Row) -> Entry:
    """A row as it stands in the certificate: with the share of its bound that is used, and its own digest."""
    own = plain(row.to_dict() | {"used": row.used})
    return own | {"digest": row_digest(own)}


def row_digest(own: Entry) -> str:
    """The digest of an entry without the one that it carries, and a short mark for every number in it."""
    whole = digest({name: value for name, value in own.items() if name != "digest"})[:DIGITS]
    return "-".join([whole, *(digest(value)[:MARK] for _, _, value in numbers(own))])


def numbers(own: Entry) -> list[tuple[str, str, Any]]:
    """What was measured, in order: ("errors" or "inputs", name, value)."""
    return [(part, name, value) for part in ("errors", "inputs") for name, value in own[part].items()]


def changed(own: Entry) -> list[tuple[str, str, Any]]:
    """The numbers of an entry that its digest does not know, as far as their marks tell."""
    _, *marks = str(own.get("digest")).split("-")
    there = numbers(own)
    if len(marks) != len(there):
        return []
    return [number for number, mark in zip(there, marks, strict=True) if digest(number[2])[:MARK] != mark]


def worst_of(own: Entry) -> tuple[str, float, float]:
    """(who, error, bound) of the error that uses the largest share of its bound; NaN and what has no bound go first."""

    def share(name: str) -> float:
        error, bound = float(own["errors"][name]), float(own["bounds"][name])
        if math.isnan(error):
            return math.inf
        return error / bound if bound > 0 else (0.0 if error <= 0 else math.inf)

    who = max(own["errors"], key=lambda name: (share(name), float(own["errors"][name])), default="")
    return (who, float(own["errors"][who]), float(own["bounds"][who])) if who else ("", math.inf, 0.0)


def summarise(entries: Sequence[Entry], everything: bool) -> dict[str, Any]:
    """The summary of one claim's entries: how many, the worst, the sum of all errors, the digest, the verdict.

    A claim without entries fails where everything was to be tried; where something was left out its verdict is None.
    """
    failed = sum(not own["passed"] for own in entries)
    out = {"comparisons": sum(len(own["errors"]) for own in entries), "rows": len(entries), "failed": failed}
    if entries:
        worst = max(entries, key=lambda own: (float(own["used"]), worst_of(own)[1]))
        who, error, bound = worst_of(worst)
        named = {name: worst[name] for name in ("case", "what", "tier", "where", "rule", "used")}
        out["worst"] = plain(named | {"who": who, "error": error, "bound": bound})
    else:
        out["worst"] = None
    errors = [float(value) for own in entries for value in own["errors"].values()]
    out["sum_of_errors"] = math.fsum(value for value in errors if math.isfinite(value))
    out["digest"] = digest([own["digest"] for own in entries])
    return out | {"passed": failed == 0 if entries else (False if everything else None)}


def headroom(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """For every rule that judged something: rows, rows with an error that is not zero, the largest share used of those.

    A rule is loose if that share is below 1 / HEADROOM: a bound so far from every error would also let bugs pass.
    """
    out: dict[str, dict[str, Any]] = {}
    for own in entries:
        rule = out.setdefault(own["rule"], {"rows": 0, "nonzero": 0, "largest_share": 0.0})
        rule["rows"] += 1
        if any(float(value) != 0 for value in own["errors"].values()):
            rule["nonzero"] += 1
            rule["largest_share"] = max(float(rule["largest_share"]), float(own["used"]))
    for rule in out.values():
        rule["loose"] = rule["nonzero"] > 0 and float(rule["largest_share"]) * thresholds.HEADROOM < 1
    return plain(dict(sorted(out.items())))


def passed(claims: Sequence[Mapping[str, Any]], rules: Mapping[str, Mapping[str, Any]]) -> bool:
    """Something was compared, no claim fails, and no rule that was judged is loose."""
    loose = any(rule["loose"] and rule["judged"] for rule in rules.values())
    return any(claim["rows"] for claim in claims) and not loose and all(c["passed"] is not False for c in claims)
