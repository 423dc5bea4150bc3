"""How a certificate is put into words: one place for the table and the page, both made from its JSON alone."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from common.parity.summary import worst_of
from reports.parity import matrix

Found = Mapping[str, Any]
Entry = Mapping[str, Any]
TIERS = ("exact", "float64", "float32", "tf32", "bfloat16")


def sci(value: Any) -> str:
    """An error or a bound: two digits and an exponent; whole numbers of the exact tier as they are."""
    value = float(value)
    if not math.isfinite(value):
        return {math.inf: "∞"}.get(value, str(value))
    return "0" if value == 0 else f"{value:.1e}"


def amount(value: Any, tier: str) -> str:
    """An error in its tier: counts are whole, the others relative."""
    value = float(value)
    return f"{value:.0f}" if tier == "exact" and math.isfinite(value) and value == int(value) else sci(value)


def count(value: float) -> str:
    """A large number with its thousands apart."""
    return f"{value:,.0f}"


def percent(used: Any) -> str:
    """The share of a bound that is used, in two digits."""
    used = 100 * float(used)
    if not math.isfinite(used) or used >= 1e4:
        return "over" if used > 0 else "—"
    if used == 0:
        return "0 %"
    return f"{used:.0f} %" if used >= 9.95 else f"{used:.1f} %" if used >= 0.095 else f"{used:.1g} %"


def place(entry: Entry, who: str = "") -> str:
    """Where an error stands: case, quantity, tier and implementation."""
    return " ".join(part for part in (entry["case"], entry["what"], entry["tier"], titled(who)) if part)


def titled(who: str) -> str:
    """ "torch/jax" as it is read: torch–jax."""
    return who.replace("/", "–")


def names(found: Found) -> list[str]:
    """The implementations, as people call them."""
    return [own["title"] for own in found["head"]["backends"].values()]


def listed(words: Iterable[str]) -> str:
    """ "a, b and c" """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def headline(found: Found) -> str:
    """The one sentence a person should take away."""
    if not found["passed"]:
        failed = [claim["name"] for claim in found["claims"] if claim["passed"] is False]
        if failed:
            return f"{listed(failed)} {'does' if len(failed) == 1 else 'do'} not hold."
        return "A rule is too loose to prove anything." if loose(found) else "Nothing was compared."
    if not found["head"]["complete"]:
        return "All that was tried holds."
    both = names(found)
    who = (
        f"{listed(both)} compute the same models." if len(both) > 1 else f"{both[0]} computes what the oracle computes."
    )
    return who


def tried(found: Found) -> str:
    """What was left out, or that nothing was."""
    head = found["head"]
    if head["complete"]:
        return "Everything was tried: all cases, all tiers, all claims."
    number = f"{len(head['cases'])} case{'' if len(head['cases']) == 1 else 's'}"
    length = ", the long parts left out (--quick)" if head["quick"] else ""
    if head.get("shortened") and not head["quick"]:
        length = ", training shortened for what does not compile"
    return (
        f"Not everything was tried: {number}, tiers {', '.join(head['tiers'])},"
        f" claims {', '.join(head['claims'])}{length}. Whether a rule is too loose is judged on complete runs only."
    )


def loose(found: Found) -> list[str]:
    """The rules that were judged too loose."""
    return [name for name, rule in found["rules"].items() if rule["judged"] and rule["loose"]]


def verdict(passed: bool | None) -> str:
    return {True: "holds", False: "FAILS", None: "not tried"}[passed]


def comparisons(found: Found) -> int:
    """How many errors were measured."""
    return sum(claim["comparisons"] for claim in found["claims"])


def failures(found: Found) -> list[Entry]:
    return [row for row in found["rows"] if not row["passed"]]


def error_of(entry: Entry) -> tuple[str, str, str]:
    """(who, error, bound) of an entry's worst error, in words."""
    who, error, bound = worst_of(dict(entry))
    return titled(who), amount(error, entry["tier"]), amount(bound, entry["tier"])


def order(tier: str) -> int:
    """Tiers in the order in which they grow coarser."""
    return TIERS.index(tier) if tier in TIERS else len(TIERS)


def killed(found: Found) -> str | None:
    """ "92 of 92 planted bugs noticed: C2 60, C4 12, …"; None if none was planted."""
    bugs = matrix.bugs(found)
    if not bugs:
        return None
    by = matrix.by_claim(found)
    told = ", ".join(f"{claim} {number}" for claim, number in sorted(by.items()))
    return f"{sum(by.values())} of {len(bugs)} planted bugs noticed, first by: {told}."


def processor(head: Mapping[str, Any]) -> str:
    """The name of what computed: of the GPU that was asked for, where the driver lists it, else of the processor."""
    kind, _, index = head["device"].partition(":")
    gpus = head["machine"].get("gpus", []) if kind == "cuda" else []
    number = int(index or 0)
    return gpus[number]["name"] if number < len(gpus) else head["machine"]["cpu"]
