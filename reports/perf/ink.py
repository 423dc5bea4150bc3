"""Colours, markers and places for labels that all plots share."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from reports.drawing import SETTINGS, STAND_INS

MARKERS, DASHES = ("o", "s", "D", "^", "v", "P"), ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))
LETTER = 8  # points, of labels inside a plot


@dataclass(frozen=True)
class Ink:
    """One colour for each role; `settings` are matplotlib's in these colours."""

    torch: str
    jax: str
    ink: str
    soft: str
    line: str
    band: str
    good: str
    bad: str

    @property
    def settings(self) -> dict[str, Any]:
        own = dict(zip(STAND_INS, vars(self).values(), strict=True))
        return {key: own.get(value, value) if isinstance(value, str) else value for key, value in SETTINGS.items()}

    def wing(self, name: str) -> str:
        """PyTorch and JAX have colours of their own; everybody else is grey."""
        return {"torch": self.torch, "jax": self.jax}.get(name, self.soft)


THEMED = Ink(*STAND_INS)  # become the page's variables


def on_paper() -> tuple[Ink, str]:
    """The light colours of style.css and its paper, for files that stand alone."""
    text = resources.files("reports").joinpath("style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", text[: text.index("@media")]))
    return Ink(*(light[variable] for variable in STAND_INS.values())), light["--card"]


def looks(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, Any]]:
    """By contender its marker and dashes: the n-th of a wing gets the n-th of each, everywhere in a plot."""
    seen: dict[str, list[str]] = {}
    for row in rows:
        own = seen.setdefault(row["wing"], [])
        if row["name"] not in own:
            own.append(row["name"])
    return {name: look_of(n) for own in seen.values() for n, name in enumerate(own)}


def look_of(number: int) -> tuple[str, Any]:
    """Marker and dashes of the n-th line: every pair of them once before the first comes again."""
    turn = number // math.lcm(len(MARKERS), len(DASHES))
    return MARKERS[number % len(MARKERS)], DASHES[(number + turn) % len(DASHES)]


def apart(places: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Places moved as little as needed so that neighbours are `gap` apart, in their own order, within [low, high]."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = [0.0] * len(places)
    at = low - gap
    for i in order:
        out[i] = at = max(places[i], at + gap)
    above = high + gap
    for i in reversed(order):
        out[i] = above = min(out[i], above - gap)
    return out


def label_ends(
    axes: Any, ends: Sequence[tuple[float, str, str]], height: float, looks: Sequence[dict[str, Any]] = ()
) -> None:
    """(y, text, colour) beside the right edge of a plot `height` inches high; overlapping ones move apart. Where they
    are many, a piece of every line, given how it looks, can stand before its text."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        shares = [math.log(y / low) / math.log(high / low) for y, _, _ in ends]
    else:
        shares = [(y - low) / (high - low) for y, _, _ in ends]
    places, left = apart(shares, 1.25 * LETTER / 72 / height), 1.1 if looks else 1.015
    for share, (_, text, colour) in zip(places, ends, strict=True):
        axes.text(
            left, share, text, transform=axes.transAxes, va="center", color=colour, fontsize=LETTER, parse_math=False
        )
    for share, look in zip(places, looks, strict=bool(looks)):
        across = 1.015, (1.015 + left - 0.01) / 2, left - 0.01
        axes.plot(across, [share] * 3, transform=axes.transAxes, clip_on=False, markevery=[1], **look)


FAMILIES = (
    (0.8, 0.85, 0.9, 0.95, 1, 1.05, 1.1, 1.15, 1.2, 1.25),
    (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2),
    (0.2, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5),
    (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
    (0.001, 0.01, 0.1, 1, 10, 100, 1000),
)  # fmt: skip


def ratio_ticks(low: float, high: float) -> list[float]:
    """Round ratios, 1 among them, of the finest family that spans the limits."""
    family = next((f for f in FAMILIES if f[0] * 0.9 <= low and high <= f[-1] * 1.1), FAMILIES[-1])
    return [tick for tick in family if low <= tick <= high]
