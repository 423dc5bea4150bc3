"""How numbers and findings are put into words: one place for the table and the page, both made from the JSON alone."""

import unicodedata
from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]
TASKS = {"forward": "Forward", "train": "Training step", "decode": "Decoding"}


def sci(value: float | None) -> str:
    """An error or a bound: two digits and an exponent."""
    if value is None:
        return "not a number"
    return "0" if value == 0 else f"{value:.1e}"


def loss(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


def seconds(value: float | None) -> str:
    """A duration in the unit that fits."""
    if value is None:
        return "not a number"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns" if value > 0 else "0 s"


def size(value: float | None) -> str:
    return "—" if value is None else f"{value / 2**20:,.0f} MiB"


def count(value: float) -> str:
    """A large number with its thousands apart."""
    return f"{value:,.0f}"


def rate(value: float | None) -> str:
    """FLOP/s as GFLOP/s."""
    return "—" if value is None else f"{value / 1e9:,.1f} GFLOP/s"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def title(found: Found, wing: str) -> str:
    """The wing's own name for people."""
    return found["wings"][wing]["title"]


def times(found: Found, row: Found) -> str:
    """The paired ratio, told for the wing that took less time: "JAX 1.93 × (1.90 to 1.96)"."""
    first, second = found["settings"]["wings"]
    ratio, low, high = row["ratio"], row["low"], row["high"]
    if ratio >= 1:
        return f"{title(found, second)} {ratio:.2f} × ({low:.2f} to {high:.2f})"
    return f"{title(found, first)} {1 / ratio:.2f} × ({1 / high:.2f} to {1 / low:.2f})"


def floor(row: Found) -> str:
    """What this machine calls a difference where there is none."""
    return f"{percent(row['floor'])}{', noisy' if row['noisy'] else ''}"


def verdict(found: Found, row: Found) -> str:
    """Who is faster at a task, if anybody is."""
    if not row["enough"]:
        return "too few samples to tell"
    return "no difference seen" if row["faster"] is None else f"{title(found, row['faster'])} faster"


def pair(found: Found) -> str:
    """Both wings' names in one."""
    return " – ".join(title(found, wing) for wing in found["settings"]["wings"])


def used(row: Found) -> float:
    """The share of its bound that an agreement row uses; above 1 it has failed."""
    errors = row["errors"]
    return max(float("inf") if None in (errors[k], b) else errors[k] / b for k, b in row["bounds"].items())


def bound(row: Found, wings: list[str]) -> str:
    """The bound, or both where each wing has its own."""
    bounds = [row["bounds"][name] for name in (*wings, "pair") if name in row["bounds"]]
    if row["dtype"] == "float64":
        return sci(bounds[0])
    return " / ".join(sci(value) for value in bounds[:2])


def condensed(found: Found) -> list[Found]:
    """Of every (precision, quantity) the row that comes closest to its bound, whichever the weights."""
    best: dict[tuple[str, str], Found] = {}
    for row in found["agreement"]["rows"]:
        key = row["dtype"], row["what"]
        if key not in best or used(row) > used(best[key]):
            best[key] = row
    order = ("float64", "float32", "bfloat16")
    return sorted(best.values(), key=lambda row: order.index(row["dtype"]))


def headline(found: Found) -> str:
    """The one sentence a person should take away."""
    if found["passed"]["all"]:
        return "Both wings compute the same thing."
    if not found["passed"]["agreement"] or not found["passed"]["generation"]:
        return "The wings do not agree."
    if not found["passed"]["training"]:
        return "Training did not stay finite."
    return "The FLOP counts do not agree."


def findings(found: Found) -> list[tuple[str, str, bool]]:
    """(subject, sentence, whether all is well) for agreement, training, text, speed, memory."""
    return [
        ("Agreement", _agreement(found), found["passed"]["agreement"]),
        ("Training", _training(found), found["passed"]["training"]),
        ("Text", _text(found), found["passed"]["generation"]),
        ("Speed", _speed(found), found["speed"] is not None),
        ("Memory", _memory(found), True),
    ]


def _agreement(found: Found) -> str:
    failed = [row for row in found["agreement"]["rows"] if not row["passed"]]
    if failed:
        told = [f"{row['what']} in {row['dtype']} ({row['weights']})" for row in failed[:3]]
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        return f"FAILED: {'; '.join(told)}{more}."
    exact = [row for row in found["agreement"]["rows"] if row["dtype"] == "float64"]
    worst = max(value for row in exact for value in row["errors"].values())
    lower = sorted({row["dtype"] for row in found["agreement"]["rows"]} - {"float64"}, reverse=True)
    return (
        f"float64: wings and oracle within {sci(worst)} (bound {sci(found['agreement']['bound_float64'])});"
        f" {', '.join(lower)}: as accurate as each other, against the oracle."
    )


def _training(found: Found) -> str:
    training = found["training"]
    if not training["finite"]:
        return "FAILED: a loss is not a number."
    wing = found["settings"]["wings"][0]
    begin, end = training["curves"][wing]["loss"][0], training["final_loss"][wing]
    steps = training["config"]["steps"]
    return (
        f"{steps} steps, loss {begin:.2f} to {end:.2f}; the curves differ by {sci(training['max_difference'])} at most."
    )


def _text(found: Found) -> str:
    same = found["generation"]["same"]
    parts = [f"{kind} {equal_tokens(row)}" for kind, row in same.items()]
    lead = "With the same" if found["generation"]["passed"] else "FAILED: with the same"
    return f"{lead} weights, equal tokens: {', '.join(parts)}."


def equal_tokens(row: Found) -> str:
    """ "64 of 64", or where the texts part and whether that is a tie that rounding explains."""
    told = f"{row['equal']} of {row['count']}"
    if row["first_difference"] is None:
        return told
    tie = row.get("tie")
    if tie is None:
        return f"{told} (then they part)"
    kind = "a tie" if tie["certified"] else "no tie"
    return f"{told}, then {kind}: margin {sci(tie['margin'])}, rounding explains {sci(tie['allowed'])}"


def _speed(found: Found) -> str:
    if found["speed"] is None:
        return "Not measured, because a check above failed."
    parts = []
    for task, row in found["speed"].items():
        told = f"{times(found, row).partition(' (')[0]} as fast" if row["faster"] else verdict(found, row)
        parts.append(f"{TASKS[task] if not parts else TASKS[task].lower()}: {told}")
    return "; ".join(parts) + "."


def _memory(found: Found) -> str:
    told = [f"{title(found, w)} {size(found['memory']['train'][w]['steady']['bytes'])}" for w in found["wings"]]
    return f"Peak while training: {', '.join(told)}."


def visible(text: str) -> str:
    """The text with control characters shown by their pictures; line breaks and tabs stay."""

    def shown(char: str) -> str:
        if char in "\n\t" or unicodedata.category(char) != "Cc":
            return char
        return chr(0x2400 + ord(char)) if ord(char) < 32 else "␡" if ord(char) == 127 else "�"

    return "".join(map(shown, text))
