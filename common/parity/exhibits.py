"""What must hold between the rows of a certificate and the exhibits that stand beside them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Mismatch = tuple[str, str, Any, Any]  # place, field, written, what follows
DIGITS = 1e-3  # curves are kept in four digits


def check(found: Mapping[str, Any]) -> Iterator[Mismatch]:
    """Where rows and exhibits contradict each other."""
    yield from _curves(found)
    yield from _mutants(found)


def _mutants(found: Mapping[str, Any]) -> Iterator[Mismatch]:
    """A planted bug is noticed if its error is above its bound; and one that survived must have failed claim C6."""
    for entry in found["exhibits"].get("mutants", []):
        place = f"mutant {entry['id']} in {entry['place']}"
        noticed = bool(entry["claim"]) and not float(entry["error"]) <= float(entry["bound"])
        if noticed != entry["killed"]:
            yield place, "killed", entry["killed"], noticed
        verdict = next((claim["passed"] for claim in found["claims"] if claim["name"] == "C6"), None)
        if noticed == bool(entry["equivalent"]) and verdict:
            yield "claim C6", "passed", verdict, f"false, by {place},"


def _curves(found: Mapping[str, Any]) -> Iterator[Mismatch]:
    """The rows of trajectories and of the switch are judged by the last step of their curves."""
    for row in found["rows"]:
        if row["rule"] != "trajectory":
            continue
        place = f"row {row['claim']} {row['case']} {row['what']} {row['tier']}"
        exhibit = "switch" if row["what"] == "switch" else "trajectories"
        curves = found["exhibits"].get(exhibit, {}).get(row["case"], {})
        wanted = {"control": ("inputs", row["inputs"]["control"])}
        wanted |= {name: ("errors", value) for name, value in row["errors"].items()}
        for name, (part, value) in wanted.items():
            curve = curves.get(name, curves.get(f"{name}/float64"))
            if not curve:
                yield place, f"{part} {name}", value, f"a curve in the exhibit {exhibit!r}"
            elif not _near(value, curve[-1]):
                yield place, f"{part} {name}", value, f"{curve[-1]}, the end of its curve,"


def _near(value: Any, end: Any) -> bool:
    value, end = float(value), float(end)
    return math.isclose(value, end, rel_tol=DIGITS) or (not math.isfinite(value) and not math.isfinite(end))
