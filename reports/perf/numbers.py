"""Numbers that know where they come from: each is an address in summary.json and a form in which people read it.

Sentences are tuples of words and numbers. `plain` is for terminals and files; `marked` is for the page, where every
number carries its address and raw value, so that anybody can hold the page against the summary.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]
TALLY = "tally"  # the form of a number that counts what lies at its addresses
NONE = "—"  # not measured, or not known


@dataclass(frozen=True)
class Number:
    """The value at `at` ("cells/0/pairs/2/ratio"), shown by FORMS[form]; `over` is the address of a divisor."""

    at: str
    form: str
    over: str = ""


Sentence = tuple[str | Number, ...]


def tally(addresses: Iterable[str]) -> Number:
    """How many there are: a number whose address is all of theirs."""
    return Number(" ".join(addresses), TALLY)


def look(found: Found, at: str) -> Any:
    """The value at an address; None where the summary has nothing there."""
    value: Any = found
    for step in at.split("/"):
        if value is None:
            return None
        value = value[int(step)] if isinstance(value, (list, tuple)) else value.get(step)
    return value


def value_of(found: Found, number: Number) -> Any:
    """The value of a number, divided by its divisor if it has one; of a tally, how many of its addresses are there."""
    if number.form == TALLY:
        return sum(look(found, at) is not None for at in number.at.split())
    value = look(found, number.at)
    over = look(found, number.over) if number.over else None
    return value / over if over and value is not None else value


def told(found: Found, number: Number) -> str:
    value = value_of(found, number)
    return NONE if value is None else FORMS[number.form](value)


def plain(found: Found, sentence: Sentence) -> str:
    """A sentence as text."""
    return "".join(part if isinstance(part, str) else told(found, part) for part in sentence)


def marked(found: Found, sentence: Sentence) -> Any:
    """A sentence as HTML: numbers are <data> elements with raw value, address and form."""
    from markupsafe import Markup, escape

    out = []
    for part in sentence:
        if isinstance(part, str):
            out.append(escape(part))
        elif value_of(found, part) is None:
            out.append(escape(NONE))
        else:
            over = Markup(' data-over="{}"').format(part.over) if part.over else ""
            mark = Markup('<data value="{}" data-at="{}" data-form="{}"{}>{}</data>')
            out.append(mark.format(repr(value_of(found, part)), part.at, part.form, over, told(found, part)))
    return Markup("").join(out)


def count(value: float) -> str:
    """A number with its thousands apart; small ones with three digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def seconds(value: float) -> str:
    """A duration in the unit that fits, with three digits."""
    if value < 0:
        return f"−{seconds(-value)}"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if value >= 0.9995 * scale:
            number = value / scale
            return f"{number:,.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f} {unit}"
    return "0 s" if value == 0 else f"{value / 1e-9:.2g} ns"


def factor(value: float) -> str:
    """A ratio: two decimals, and as many more as it takes to tell it from 1."""
    if value < 0.0995:
        return f"{value:.3f}" if value >= 0.0095 else f"{value:.2g}"
    if value >= 99.5:
        return count(value)
    if value >= 9.995:
        return f"{value:.1f}"
    return next((text for digits in (2, 3, 4) if float(text := f"{value:.{digits}f}") != 1), "1.00")


def percent(value: float) -> str:
    """A share: whole from ten on, one decimal below."""
    return f"{100 * value:.0f} %" if abs(value) >= 0.0995 else f"{100 * value:.1f} %"


def size(value: float) -> str:
    """Bytes as MiB."""
    return f"{value / 2**20:,.0f} MiB" if value >= 10 * 2**20 or value == 0 else f"{value / 2**20:.2g} MiB"


def _scaled(unit: str) -> Callable[[float], str]:
    def form(value: float) -> str:
        power = min(5, max(0, math.floor(math.log10(value) / 3))) if value > 0 else 0
        return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"

    return form


FORMS: dict[str, Callable[[Any], str]] = {
    "count": count,
    "seconds": seconds,
    "factor": factor,
    "inverse": lambda value: factor(1 / value),
    "percent": percent,
    "size": size,
    "flops": _scaled("FLOP/s"),
    "bandwidth": _scaled("B/s"),
    "sci": lambda value: "0" if value == 0 else f"{value:.1e}",
    "text": str,
    TALLY: str,
}
