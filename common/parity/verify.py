"""Check a certificate from its own numbers: `python -m common.parity.verify FILE`, with NumPy and nothing else.

Every bound, share and verdict is recomputed by the rules of `thresholds.py`; what does not follow is named. This finds
every edit and every wrong verdict. It cannot find numbers that were made up with all their digests: for that the claims
must be run again (`parallax parity`).
"""

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.parity import evidence, thresholds
from common.parity.exhibits import check as check_exhibits
from common.parity.rows import Row
from common.parity.summary import SCHEMA, Entry, changed, digest, entry, headroom, passed, summarise

UNSAID = b'    "optimizer": "adamw",\n    "momentum": 0.95,\n'  # recipes had no such lines while all runs were AdamW's
VECTORS = Path(__file__).resolve().parents[2] / "tests" / "vectors"
LARGEST = 2**28  # bytes; a certificate has a few million
SAME = 1e-12  # relative: recomputed numbers may differ in the last digit where libraries do
PARTS = {"head": dict, "claims": list, "rules": dict, "vectors": dict, "exhibits": dict, "digests": dict, "rows": list}


@dataclass(frozen=True)
class Fault:
    """A number that does not follow from the others: where it stands, what is written there and what follows."""

    place: str
    field: str
    written: Any
    follows: Any

    def __str__(self) -> str:
        if not self.field:
            return f"{self.written}."
        return f"{self.place}: {self.field} is written as {_told(self.written)}, but {_told(self.follows)} follows."


def _told(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


def load(path: Path | str) -> dict[str, Any]:
    """The certificate in a file, or UserError: missing, too large, damaged, something else, another version."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST >> 20} MiB; no certificate is that large.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}; give a certificate.json.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no JSON text ({error}).") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        said = f"its schema is {schema!r}" if schema is not None else "it names no schema"
        raise UserError(f"{path} is no certificate of this version: {said}, not {SCHEMA!r}.")
    for name, kind in PARTS.items():
        if not isinstance(found.get(name), kind):
            raise UserError(f"{path} is damaged: its part {name!r} is missing or of the wrong form.")
    return found


def verify(path: Path | str, folder: Path = VECTORS) -> list[Fault]:
    """All numbers of a certificate that do not follow from the others, or from the vectors; none if all is well."""
    return faults(load(path), folder)


def faults(found: Mapping[str, Any], folder: Path = VECTORS) -> list[Fault]:
    """The same for a certificate that is loaded."""
    try:
        own = [*_head(found), *_rows(found), *_claims(found), *_rules(found), *_rest(found)]
        return own + list(_vectors(found, folder))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [Fault("the certificate", "form", f"damaged ({type(error).__name__}: {error})", "a readable one")]


def _head(found: Mapping[str, Any]) -> Iterator[Fault]:
    here, made = thresholds.digest(), found["head"]["thresholds"]
    if made != here and made not in thresholds.FORMER:
        yield Fault("head", "thresholds", f"{made} (the certificate was made with other thresholds)", here)
    for name in ("head", "vectors"):
        yield from _compare(name, {"digest": found["digests"].get(name)}, {"digest": digest(found[name])})


def _rows(found: Mapping[str, Any]) -> Iterator[Fault]:
    for number, written in enumerate(found["rows"]):
        try:
            follows = entry(Row.from_dict(written))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield Fault(f"row {number}", "form", f"damaged ({type(error).__name__}: {error})", "a readable row")
            continue
        place = "row " + " ".join(part for part in (written[n] for n in ("claim", "case", "what", "tier")) if part)
        edited = changed(written)
        for part, name, value in edited:
            yield Fault(place, f"{part} {name}", value, "by the row's digest another number")
        yield from _compare(place, written, follows, last=("digest",), found=bool(edited))
    keys = Counter(tuple(row.get(name) for name in ("claim", "case", "what", "tier")) for row in found["rows"])
    for key, times in keys.items():
        if times > 1:
            yield Fault(f"row {' '.join(map(str, key))}", "times", times, 1)
    named = {claim["name"] for claim in found["claims"]}
    for claim in sorted({str(row["claim"]) for row in found["rows"]} - named):
        yield Fault(f"rows of {claim}", "claim", claim, f"one of {', '.join(sorted(named))}")


def _claims(found: Mapping[str, Any]) -> Iterator[Fault]:
    for written in found["claims"]:
        own = [row for row in found["rows"] if row["claim"] == written["name"]]
        follows = summarise(own, found["head"]["complete"])
        yield from _compare(f"claim {written['name']}", written, follows, last=("digest", "sum_of_errors"))
    for name in found["head"]["claims"]:
        if name not in {claim["name"] for claim in found["claims"]}:
            yield Fault("claims", name, None, "its summary")


def _rules(found: Mapping[str, Any]) -> Iterator[Fault]:
    follows, former = headroom(found["rows"]), found["head"]["thresholds"] in thresholds.FORMER
    for name, own in follows.items():
        why = thresholds.RULES[name].why if name in thresholds.RULES else "no rule of that name"
        written = found["rules"].get(name, {})
        wanted = {"why": written.get("why") if former else why, **own, "judged": found["head"]["complete"]}
        yield from _compare(f"rule {name}", written, wanted)
    for name in sorted(set(found["rules"]) - set(follows)):
        yield Fault(f"rule {name}", "rows", found["rules"][name].get("rows"), 0)
    yield from _compare("the certificate", found, {"passed": passed(found["claims"], found["rules"])})


def _rest(found: Mapping[str, Any]) -> Iterator[Fault]:
    for name, own in found["exhibits"].items():
        written = found["digests"].get(f"exhibits/{name}")
        yield from _compare(f"exhibit {name}", {"digest": written}, {"digest": digest(own)})
    for name in found["digests"]:
        if name.startswith("exhibits/") and name.removeprefix("exhibits/") not in found["exhibits"]:
            yield Fault("exhibits", name.removeprefix("exhibits/"), None, "an exhibit, for it has a digest")
    for place, field, written, follows in check_exhibits(found):
        yield Fault(place, field, written, follows)


def _vectors(found: Mapping[str, Any], folder: Path) -> Iterator[Fault]:
    """Where the vectors lie here: that they are those of the certificate, and that its evidence fits them."""
    for name, written in found["vectors"].items():
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            here, before = (hashlib.sha256(text).hexdigest() for text in (data, data.replace(UNSAID, b"")))
            if written not in (here, before):
                yield Fault("vectors", name, f"{written} (the certificate was made with other vectors)", here)
    for sentence in evidence.recheck(witnessed(found, folder), folder):
        yield Fault(sentence, "", sentence, None)


def witnessed(found: Mapping[str, Any], folder: Path = VECTORS) -> list[Entry]:
    """The rows with evidence whose vectors are here, undamaged."""

    def here(case: str) -> bool:
        path = folder / f"{case}.safetensors"
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == found["vectors"].get(path.name)

    known = {case: here(case) for case in {row["case"] for row in found["rows"] if row.get("evidence")}}
    return [row for row in found["rows"] if row.get("evidence") and known[row["case"]]]


def _compare(
    place: str, written: Mapping[str, Any], follows: Mapping[str, Any], last: tuple = (), found: bool = False
) -> Iterator[Fault]:
    """What is written otherwise than it follows; the fields `last` only if nothing else was `found` that tells more."""
    different = [name for name in follows if not _same(written.get(name), follows[name])]
    telling = [name for name in different if name not in last] or ([] if found else different[:1])
    for name in telling:
        yield from _difference(place, name, written.get(name), follows[name])


def _difference(place: str, field: str, written: Any, follows: Any) -> Iterator[Fault]:
    if isinstance(written, dict) and isinstance(follows, dict):
        for name in sorted(set(written) | set(follows)):
            if not _same(written.get(name), follows.get(name)):
                yield from _difference(place, f"{field} {name}", written.get(name), follows.get(name))
    else:
        yield Fault(place, field, written, follows)


def _same(written: Any, follows: Any) -> bool:
    if isinstance(written, dict) and isinstance(follows, dict):
        return set(written) == set(follows) and all(_same(written[name], follows[name]) for name in follows)
    if isinstance(written, bool) or isinstance(follows, bool):
        return written is follows
    if isinstance(written, (int, float)) and isinstance(follows, (int, float)):
        return math.isclose(written, follows, rel_tol=SAME)
    return written == follows


def told(found: Mapping[str, Any], wrong: list[Fault], limit: int = 20) -> str:
    """The answer to a person: what is wrong, or how much follows and what it says."""
    if wrong:
        more = [f"… and {len(wrong) - limit} more."] if len(wrong) > limit else []
        lines = [f"This certificate does not follow from its numbers ({len(wrong)} of them do not)."]
        return "\n".join([*lines, *map(str, wrong[:limit]), *more])
    rows, count = len(found["rows"]), sum(len(row["errors"]) for row in found["rows"])
    words = {True: "holds", False: "FAILS", None: "was not tried"}
    verdicts = ", ".join(f"{own['name']} {words[own['passed']]}" for own in found["claims"])
    seen = len(witnessed(found))
    again = f" {seen} rows fit the vectors in {VECTORS.parent.name}/{VECTORS.name}." if seen else ""
    since = thresholds.FORMER.get(found["head"]["thresholds"])
    again += f" It was made by rules before today's ({since}), which judge its rows as those did." if since else ""
    ending = "The certificate passes." if found["passed"] else "The certificate says that the claims do NOT all hold."
    return f"All verdicts follow from the numbers: {count} errors in {rows} rows.{again} {verdicts}. {ending}"


def main(arguments: list[str]) -> int:
    """0: everything follows and every claim holds; 1: not so; 2: not a certificate."""
    if len(arguments) != 1:
        print("usage: python -m common.parity.verify certificate.json", file=sys.stderr)
        return 2
    try:
        found = load(arguments[0])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    wrong = faults(found)
    print(told(found, wrong))
    return int(bool(wrong) or not found["passed"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
