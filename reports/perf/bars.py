"""The plots with a line for each contender: ratios to the reference, and memory."""

from typing import Any

import numpy as np

from reports.drawing import NARROW
from reports.perf.ink import LETTER, Ink, ratio_ticks
from reports.perf.numbers import factor, percent
from reports.perf.series import CLOSED, PARTS, Row

LINE = 0.2  # inches of height for each line
SHADES = dict(zip(PARTS, (0.85, 0.62, 0.42, 0.26, 0.14), strict=True))


def _groups(rows: list[Row], *names: str) -> list[tuple[Row, list[list[Row]]]]:
    """By cell its first row and, for each of its lines (rows with equal names), the rows."""
    out: dict[str, dict[tuple, list[Row]]] = {}
    for row in rows:
        out.setdefault(row["cell"], {}).setdefault(tuple(row[name] for name in names), []).append(row)
    return [(next(iter(own.values()))[0], list(own.values())) for own in out.values()]


def _lines(rows: list[Row]) -> int:
    groups = _groups(rows, "name")
    return sum(len(own) for _, own in groups) + 2 * len(groups)


def _frame(axes: Any, labels: list[tuple[float, str]], heads: list[tuple[float, str]], zero: float, ink: Ink) -> None:
    """Contenders as labels on the left, cells as headings inside, which no line crosses; `zero` is a darker line."""
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], color=ink.ink, fontsize=LETTER + 0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", top=True, labeltop=True, length=0, labelsize=LETTER)
    axes.grid(False)
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    places = np.array([at for at, _ in labels])
    for across, colour, width, order in ((ticks, ink.line, 0.5, 0.5), ([zero], ink.ink, 1, 1.5)):
        for x in across:
            axes.vlines([x] * len(places), places - 0.5, places + 0.5, color=colour, linewidth=width, zorder=order)
    for at, text in heads:
        axes.text(
            0, at, text, transform=axes.get_yaxis_transform(), color=ink.ink, fontsize=LETTER + 0.5, va="center",
            weight="bold", parse_math=False,
        )  # fmt: skip
    axes.spines["left"].set_visible(False)
    axes.set_xlim(low, high)
    axes.set_ylim(max(at for at, _ in labels) + 0.8, -0.8)


def forest_size(rows: list[Row]) -> tuple[float, float]:
    return 9, 0.9 + LINE * _lines(rows)


def forest(figure: Any, rows: list[Row], ink: Ink) -> None:
    """Ratios with interval, over the noise floor as a band; what is void is named in their place."""
    axes = figure.subplots()
    axes.set_xscale("log")
    at, labels, heads = 0.0, [], []
    for first, lines in _groups(rows, "name"):
        heads.append((at, f"{first['title']}: against {first['reference']}"))
        for ((row,),) in zip(lines, strict=True):
            at += 1
            _ratio(axes, at, row, ink)
            labels.append((at, row["name"]))
        at += 2
    ends = [1 + row["floor"] for row in rows] + [1 / (1 + row["floor"]) for row in rows]
    ends += [row[end] for row in rows for end in ("low", "high") if row[end] is not None]
    low, high = min(*ends, 0.9), max(*ends, 1.1)
    margin = (high / low) ** 0.05
    low, high = low / margin, high * margin
    axes.set_xlim(low, high)
    axes.minorticks_off()
    ticks = ratio_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks])
    _frame(axes, labels, heads, 1, ink)
    axes.set_xlabel(
        "times as fast as the reference, with 99 % interval; the band is the noise floor; hollow: no difference",
        fontsize=LETTER + 1,
    )


def _ratio(axes: Any, at: float, row: Row, ink: Ink) -> None:
    reach, colour = 1 + row["floor"], ink.wing(row["wing"])
    axes.barh(at, reach - 1 / reach, left=1 / reach, height=0.8, color=ink.band)
    aside = {"transform": axes.get_yaxis_transform(), "va": "center", "color": colour, "fontsize": LETTER}
    if row["state"] == "carried":
        axes.text(1.015, at, f"void: carry-over of {percent(row['carry_over'])}", **aside)
        return
    axes.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=2.4, solid_capstyle="butt")
    face = "none" if row["state"] == "same" else colour
    axes.plot([row["ratio"]], [at], "o", color=colour, markersize=5.5, markerfacecolor=face)
    text = f"{factor(row['ratio'])} ({factor(row['low'])} to {factor(row['high'])})"
    axes.text(1.015, at, text, **aside)


def memory_size(rows: list[Row]) -> tuple[float, float]:
    return 9, 1.1 + LINE * _lines(rows)


def memory(figure: Any, rows: list[Row], ink: Ink) -> None:
    """What must be held, stacked; below it what each contender took beyond its import, which stands left of zero."""
    axes = figure.subplots()
    largest = max(row["bytes"] for row in rows)
    unit, scale = ("GiB", 2**30) if largest >= 4 * 2**30 else ("MiB", 2**20)
    at, labels, heads, shown = 0.0, [], [], set()
    for first, lines in _groups(rows, "name"):
        heads.append((at, first["title"]))
        for own in lines:
            at += 1
            labels.append((at, own[0]["name"]))
            sizes = {row["what"]: row["bytes"] / scale for row in own}
            if own[0]["name"] == CLOSED:
                shown |= set(sizes)
                _stack(axes, at, sizes, ink, unit)
            else:
                _measured(axes, at, sizes, ink.wing(own[0]["wing"]), ink, unit)
        at += 2
    axes.margins(x=0.14)
    _frame(axes, labels, heads, 0, ink)
    axes.set_xlabel(f"{unit} beyond what importing the framework takes (pale, left of zero)", fontsize=LETTER + 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,g}")
    _key(axes, [part for part in PARTS if part in shown], ink)


def _told(value: float, unit: str) -> str:
    return f"{value:,.2f} {unit}" if unit == "GiB" else f"{value:,.0f} {unit}"


def _stack(axes: Any, at: float, sizes: dict[str, float], ink: Ink, unit: str) -> None:
    left = 0.0
    for part in PARTS:
        if part in sizes:
            axes.barh(at, sizes[part], left=left, height=0.72, color=ink.ink, alpha=SHADES[part])
            left += sizes[part]
    axes.text(left, at, NARROW + _told(left, unit), va="center", color=ink.ink, fontsize=LETTER)


def _measured(axes: Any, at: float, sizes: dict[str, float], colour: str, ink: Ink, unit: str) -> None:
    """On a device its own peak, which no import is part of; else the peak of the process."""
    base = 0.0 if "device" in sizes else sizes.get("import", 0.0)
    peak = sizes.get("device", sizes.get("peak", 0.0))
    axes.barh(at, -base, height=0.72, color=colour, alpha=0.3)
    axes.barh(at, peak - base, height=0.72, color=colour)
    beyond = _told(peak - base, unit).removesuffix(f" {unit}")
    text = f"{_told(peak, unit)} on the device" if "device" in sizes else f"{beyond} of {_told(peak, unit)}"
    axes.text(max(0.0, peak - base), at, NARROW + text, va="center", color=ink.ink, fontsize=LETTER)


def _key(axes: Any, parts: list[str], ink: Ink) -> None:
    from matplotlib.patches import Patch

    if parts:
        patches = [Patch(color=ink.ink, alpha=SHADES[part], label=part, linewidth=0) for part in parts]
        axes.set_title(" ")  # keeps the key clear of the axis' labels
        axes.legend(
            handles=patches,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=2.6,
            ncols=len(parts),
            fontsize=LETTER,
        )
