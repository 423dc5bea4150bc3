"""The rows of a certificate, gathered as the page shows them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from reports.parity import wording as say
from reports.parity.wording import Entry, Found

CLOSEST = 12  # rows of a claim that are listed, nearest to their bound first
FAINT = -6.0  # decades below the bound at which a heat cell has no colour left


def rows_of(found: Found, claim: str) -> list[Entry]:
    return [row for row in found["rows"] if row["claim"] == claim]


def by_rule(found: Found, claim: str) -> list[dict[str, Any]]:
    """The rules of a claim with their derivation; under each a line for every tier, with the row nearest its bound."""
    groups: dict[str, dict[str, list[Entry]]] = {}
    for row in rows_of(found, claim):
        groups.setdefault(row["rule"], {}).setdefault(row["tier"], []).append(row)
    out = []
    for rule, tiers in groups.items():
        lines = [_line(tier, tiers[tier]) for tier in sorted(tiers, key=say.order)]
        out.append({"rule": rule, "why": found["rules"][rule]["why"], "lines": lines})
    return out


def _line(tier: str, rows: list[Entry]) -> dict[str, Any]:
    worst = closest(rows, 1)[0]
    who, error, bound = say.error_of(worst)
    return {
        "tier": tier,
        "number": sum(len(row["errors"]) for row in rows),
        "error": error,
        "bound": bound,
        "used": say.percent(worst["used"]),
        "place": "" if error == "0" else say.place({**worst, "tier": ""}, who),
        "passed": all(row["passed"] for row in rows),
    }


def closest(rows: Iterable[Entry], limit: int = CLOSEST) -> list[Entry]:
    """The rows that use the largest share of their bound; of equal ones those with the larger error."""
    return sorted(rows, key=lambda row: (-float(row["used"]), -max(map(float, row["errors"].values()), default=0.0)))[
        :limit
    ]


def heat(found: Found, claim: str) -> dict[str, Any] | None:
    """Cases down, tiers across; every cell the largest share of a bound used, and how many errors are in it."""
    rows = rows_of(found, claim)
    tiers = sorted({row["tier"] for row in rows}, key=say.order)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    if not rows or len(cases) * len(tiers) < 2:
        return None
    lines = []
    for case in cases:
        cells = []
        for tier in tiers:
            own = [row for row in rows if (row["case"], row["tier"]) == (case, tier)]
            cells.append(_cell(own) if own else None)
        lines.append({"case": case or "(no case of its own)", "cells": cells})
    return {"tiers": tiers, "lines": lines}


def _cell(rows: list[Entry]) -> dict[str, Any]:
    used = max(float(row["used"]) for row in rows)
    passed = all(row["passed"] for row in rows)
    return {
        "used": say.percent(used),
        "number": sum(len(row["errors"]) for row in rows),
        "shade": _shade(used),
        "passed": passed,
    }


def _shade(used: float) -> int:
    """0 to 60 (percent of colour) on a logarithmic scale of the share used."""
    return 0 if used <= 0 else round(60 * min(1.0, max(0.0, 1 - math.log10(used) / FAINT)))


def table_of(data: Any) -> tuple[list[str], list[list[str]]] | None:
    """Any list of entries, or entries by name, as a table: column names and cells; None if it is nothing like that."""
    if isinstance(data, Mapping):
        data = [{"": name, **own} for name, own in data.items() if isinstance(own, Mapping)]
    if not isinstance(data, list) or not data or not all(isinstance(entry, Mapping) for entry in data):
        return None
    data = [flat(entry) for entry in data]
    columns = list(dict.fromkeys(name for entry in data for name in entry))
    return columns, [[cell(entry.get(name, "")) for name in columns] for entry in data]


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry whose parts are entries, with names joined."""
    out = {}
    for name, own in entry.items():
        out |= {f"{name} {key}": value for key, value in own.items()} if isinstance(own, Mapping) else {name: own}
    return out


def cell(value: Any) -> str:
    """A value of an exhibit as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e6:
            return f"{value:.0f}"
        return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else say.sci(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(own)}" for name, own in value.items())
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    return str(value)


def machine(told: Mapping[str, Any]) -> dict[str, str]:
    """What is known of the machine, in words; empty parts are left out."""
    memory = told.get("memory_bytes")
    commit = told.get("commit") or {}
    out = {
        "Processor": told.get("cpu"),
        "Cores": f"{told['cores']}, {told['usable_cores']} usable" if told.get("usable_cores") else None,
        "Instructions": ", ".join(told.get("instructions", [])),
        "GPU": "; ".join(", ".join(gpu.values()) for gpu in told.get("gpus", [])),
        "Memory": f"{memory / 2**20:,.0f} MiB" if memory else None,
        "System": told.get("system"),
        "Python": told.get("python"),
        "Packages": ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items()),
        "Environment": " ".join(f"{name}={value}" for name, value in told.get("environment", {}).items()),
        "Commit": commit.get("id", "") + (" (with changes)" if commit.get("changed") else ""),
    }
    return {name: value for name, value in out.items() if value}
