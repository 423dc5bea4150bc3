"""The certificate: all rows with their errors and bounds, what follows from them, and how they came about."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from common import files, vectors
from common.cases import CASES, case
from common.parity import thresholds, trajectories
from common.parity.claims import MODULES
from common.parity.run import Findings
from common.parity.summary import SCHEMA, digest, entry, headroom, passed, plain, summarise
from common.parity.trial import TIERS, Session
from common.parity.verify import VECTORS

LINES = {"exhibits": 3}  # down to which level every element has a line of its own; elsewhere to the second


def check_vectors(cases: Sequence[str], folder: Path = VECTORS) -> dict[str, str]:
    """SHA-256 of the vector files of these cases, by file name; empty outside a checkout.

    Every file must be readable and made for the case as it is now, otherwise UserError.
    """
    out = {}
    for name in cases if folder.is_dir() else ():
        paths = [folder / f"{name}.{ending}" for ending in ("json", "safetensors")]
        if any(path.exists() for path in paths):
            vectors.read(case(name), folder)
            out |= {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return out


def complete(session: Session, claims: Sequence[ModuleType]) -> bool:
    """Whether nothing was left out: all cases, tiers and claims, at full length."""
    everything = {claim.NAME for claim in claims} >= set(MODULES) and set(session.cases) >= set(CASES)
    return everything and set(session.tiers) >= set(TIERS) and not trajectories.shortened(session)


def head(session: Session, claims: Sequence[ModuleType], machine: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What was tried, with which software, on which machine, under which thresholds, and by which command."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backends": {
            name: {"title": own.title, "versions": own.versions(), "threads": own.threads()}
            | {"mode": session.modes.get(name, "default"), "flags": _flags(own)}
            for name, own in session.subjects.items()
        },
        "device": session.device,
        "tiers": list(session.tiers),
        "cases": {name: case(name).what for name in session.cases},
        "claims": list(dict.fromkeys(claim.NAME for claim in claims)),
        "quick": session.quick,
        "shortened": trajectories.shortened(session),
        "complete": complete(session, claims),
        "thresholds": thresholds.digest(),
        "machine": dict(machine),
    }


def _flags(subject: Any) -> dict[str, Any]:
    """The framework's own switches of precision, where the backend tells them."""
    return dict(subject.flags()) if hasattr(subject, "flags") else {}


def make(
    findings: Findings,
    session: Session,
    claims: Sequence[ModuleType],
    machine: Mapping[str, Any] | None = None,
    hashes: Mapping[str, str] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The certificate as plain data."""
    rows = [entry(row) for row in findings.rows]
    told = plain(head(session, claims, machine or {}, command))
    exhibits = plain(findings.exhibits)
    rules = {
        name: {"why": thresholds.RULES[name].why, **own, "judged": told["complete"]}
        for name, own in headroom(rows).items()
    }
    summaries = []
    for name in told["claims"]:
        module = next(claim for claim in claims if name == claim.NAME)
        own = summarise([row for row in rows if row["claim"] == name], told["complete"])
        summaries.append({"name": name, "title": module.TITLE, "sentence": module.SENTENCE} | own)
    out = {"schema": SCHEMA, "passed": passed(summaries, rules), "head": told, "claims": summaries, "rules": rules}
    out |= {"vectors": dict(hashes or {}), "exhibits": exhibits}
    out["digests"] = {name: digest(out[name]) for name in ("head", "vectors")}
    out["digests"] |= {f"exhibits/{name}": digest(own) for name, own in exhibits.items()}
    return out | {"rows": rows}


def dumps(certificate: Mapping[str, Any]) -> str:
    """JSON with one row (claim, rule, mutant …) per line, so that two certificates can be compared line by line."""
    parts = [f"{json.dumps(name)}: {_lines(own, LINES.get(name, 2) - 1)}" for name, own in certificate.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(value: Any, levels: int) -> str:
    if not levels or not isinstance(value, (dict, list)) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, dict):
        inner = [f"{json.dumps(name, ensure_ascii=False)}: {_lines(own, levels - 1)}" for name, own in value.items()]
        return "{\n" + ",\n".join(inner) + "\n}"
    return "[\n" + ",\n".join(_lines(own, levels - 1) for own in value) + "\n]"


def write(certificate: Mapping[str, Any], path: Path) -> None:
    """Write it as a whole or not at all."""
    files.write_text(path, dumps(certificate))
