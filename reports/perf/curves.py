"""The plots with an axis to walk along: the roofline, compiling that pays, depth, context and batch."""

import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from reports.drawing import NARROW
from reports.perf.ink import LETTER, Ink, label_ends, look_of, looks
from reports.perf.numbers import FORMS, count
from reports.perf.series import Row
from reports.perf.view import WINGS

COLUMNS, PANEL = 2, 2.5  # panels in a row, and inches of height of each
ASIDE = 0.02  # octaves between whiskers at one place
WIDE = 20  # from here on a range of calls takes logarithmic axes


def _by(rows: list[Row], *names: str) -> dict[tuple, list[Row]]:
    out: dict[tuple, list[Row]] = {}
    for row in rows:
        out.setdefault(tuple(row[name] for name in names), []).append(row)
    return out


def roofline_size(rows: list[Row]) -> tuple[float, float]:
    return 9, 4.4 + 0.2 * math.ceil(len(_by(rows, "cell")) / 2)


def roofline(figure: Any, rows: list[Row], ink: Ink) -> None:
    """Points under the roofs that this machine's measured peaks make; cells are numbered, their names stand below."""
    axes, below = figure.subplots(2, 1, height_ratios=(4, 0.22 * math.ceil(len(_by(rows, "cell")) / 2)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    crests = [row["peak_gemm"] / row["peak_read"] for row in rows]
    low = 10 ** math.floor(math.log10(min(row["intensity"] for row in rows)) - 0.1)
    high = 10 ** math.ceil(math.log10(max(*(row["intensity"] for row in rows), *crests)) + 0.1)
    across = np.geomspace(low, high, 200)
    for (dtype, gemm, read), _ in _by(rows, "multiplies", "peak_gemm", "peak_read").items():
        axes.plot(across, np.minimum(gemm, read * across), color=ink.ink, linewidth=1.2)
        axes.text(
            high, gemm * 1.08, f"{dtype}: {FORMS['flops'](gemm)} ", color=ink.ink, ha="right", va="bottom",
            fontsize=LETTER,
        )  # fmt: skip
    read = rows[0]["peak_read"]
    axes.set_xlim(low, high)
    floor = min(row["flops_per_second"] for row in rows)
    axes.set_ylim(floor / 3, max(row["peak_gemm"] for row in rows) * 2.5)
    look = looks(rows)
    for row in rows:
        axes.plot(
            row["intensity"], row["flops_per_second"], look[row["name"]][0], color=ink.wing(row["wing"]), markersize=5,
            alpha=0.85, markeredgewidth=0,
        )  # fmt: skip
    _numbers(axes, below, rows, ink)
    axes.minorticks_off()
    axes.set_xlabel(f"FLOPs for each byte that must move; the slope is reading at {FORMS['bandwidth'](read)}")
    axes.set_ylabel("FLOP/s")
    _contenders(axes, rows, ink)


def _numbers(axes: Any, below: Any, rows: list[Row], ink: Ink) -> None:
    """A number under each column of points, aside where two would meet, and one range under columns side by side; their
    names stand below the plot."""
    cells = sorted(_by(rows, "cell").values(), key=lambda own: own[0]["intensity"])
    columns: list[list[int]] = []
    for number, own in enumerate(cells):
        x = math.log10(own[0]["intensity"])
        if columns and x - math.log10(cells[columns[-1][0]][0]["intensity"]) < 0.06:
            columns[-1].append(number)
        else:
            columns.append([number])
    taken = [(math.log10(row["intensity"]), math.log10(row["flops_per_second"])) for row in rows]
    placed: list[tuple[float, float]] = []
    for numbers in columns:
        own = [row for number in numbers for row in cells[number]]
        ends = [math.log10(cells[numbers[end]][0]["intensity"]) for end in (0, -1)]
        x, y = sum(ends) / 2, math.log10(min(row["flops_per_second"] for row in own)) - 0.13
        while any(abs(x - a) < 0.09 and abs(y - b) < 0.14 for a, b in placed) or any(
            abs(x - a) < 0.05 and abs(y - b) < 0.08 for a, b in taken
        ):
            x += 0.03
        placed.append((x, y))
        told = "–".join(str(number + 1) for number in sorted({numbers[0], numbers[-1]}))
        axes.text(10**x, 10**y, told, color=ink.ink, fontsize=LETTER, ha="center", va="center")
    names = [f"{number}{NARROW}{own[0]['title']}" for number, own in enumerate(cells, 1)]
    half = math.ceil(len(names) / 2)
    below.set_axis_off()
    for column, part in enumerate((names[:half], names[half:])):
        below.text(
            -0.04 + 0.54 * column, 1, "\n".join(part), transform=below.transAxes, color=ink.ink, fontsize=LETTER,
            va="top", linespacing=1.4, parse_math=False, in_layout=False,
        )  # fmt: skip


def _contenders(axes: Any, rows: list[Row], ink: Ink) -> None:
    from matplotlib.lines import Line2D

    look = looks(rows)
    wings = {row["name"]: row["wing"] for row in rows}
    marks = [
        Line2D([], [], color=ink.wing(wings[name]), marker=own[0], linestyle="", markersize=5, label=name)
        for name, own in look.items()
    ]
    columns = max(1, min(len(marks), int(7.6 / (0.5 + 0.075 * max(map(len, look))))))
    axes.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=LETTER)


def _panels(figure: Any, groups: dict[tuple, list[Row]]) -> list[tuple[Any, tuple, list[Row]]]:
    columns = min(COLUMNS, len(groups))
    grid = figure.add_gridspec(math.ceil(len(groups) / columns), columns)
    return [
        (figure.add_subplot(grid[n // columns, n % columns]), key, own) for n, (key, own) in enumerate(groups.items())
    ]


def _size(number: int) -> tuple[float, float]:
    return 9, PANEL * math.ceil(number / COLUMNS) + 0.3


def _in_seconds(value: float, _: Any) -> str:
    return f"{value:,g} s"


def breakeven_size(rows: list[Row]) -> tuple[float, float]:
    return _size(len(_by(rows, "cell")))


def breakeven(figure: Any, rows: list[Row], ink: Ink) -> None:
    """By cell the total time of calling, compilation first: where lines cross, compiling has paid."""
    look = looks([{"name": row[end], "wing": row[f"{end}_wing"]} for end in ("first", "second") for row in rows])
    for axes, _, own in _panels(figure, _by(rows, "cell")):
        calls = [row["calls"] for row in own]
        wide = max(calls) > WIDE * min(calls)
        begin, reach = (1 if wide else 0), 1.6 * max(calls) + 1
        lines = {own[0]["first"]: (0.0, own[0]["first_seconds"], own[0]["first_wing"])}
        for row in own:
            step = row["first_seconds"] - row["saved_per_call"]
            lines[row["second"]] = (row["extra_compile"], step, row["second_wing"])
        across, ends = (np.geomspace if wide else np.linspace)(begin, reach, 60 if wide else 2), []
        for name, (start, step, wing) in lines.items():
            axes.plot(across, start + step * across, color=ink.wing(wing), linestyle=look[name][1], linewidth=1.4)
            ends.append((start + step * reach, name, ink.wing(wing)))
        if wide:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.minorticks_off()
        axes.set_xlim(begin, reach)
        axes.set_ylim(0.4 * own[0]["first_seconds"] if wide else 0, 1.05 * max(end for end, _, _ in ends))
        _crossings(axes, own, ink)
        _title(axes, own[0]["title"])
        axes.set_xlabel("calls", fontsize=LETTER)
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.yaxis.set_major_formatter(_in_seconds)
        axes.tick_params(labelsize=LETTER)
        label_ends(axes, ends, PANEL - 0.8)


def _crossings(axes: Any, own: list[Row], ink: Ink) -> None:
    """A drop line from every crossing, with the number of calls at its foot; numbers that would meet stand higher."""
    share = axes.transScale + axes.transLimits
    last, level, bottom = -math.inf, 0, axes.get_ylim()[0]
    for row in sorted(own, key=lambda row: row["calls"]):
        at, height = row["calls"], row["first_seconds"] * row["calls"]
        place = share.transform((at, height))[0]
        level = level + 1 if place - last < 0.14 else 0
        last = place
        axes.vlines([at], bottom, height, color=ink.soft, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.plot([at], [height], "o", color=ink.ink, markersize=4)
        axes.text(
            place + 0.012, 0.05 + 0.09 * level, count(at), transform=axes.transAxes, color=ink.ink, fontsize=LETTER,
            va="center",
        )  # fmt: skip


def _title(axes: Any, text: str) -> None:
    axes.set_title(textwrap.fill(text, 52), loc="left", fontsize=LETTER + 0.5, parse_math=False)


def depth_size(rows: list[Row]) -> tuple[float, float]:
    return _size(len(_by(rows, "group")))


def depth(figure: Any, rows: list[Row], ink: Ink) -> None:
    """Seconds of tracing and compiling by the number of layers."""
    _along(figure, rows, ink, "seconds", _in_seconds, lambda row: "tracing and compiling")


def scaling_size(rows: list[Row]) -> tuple[float, float]:
    return _size(len(_by(rows, "group", "axis")))


def scaling(figure: Any, rows: list[Row], ink: Ink) -> None:
    """Units per second by context and by batch; whiskers are the 10th and 90th percentile."""
    _along(figure, rows, ink, "per_second", lambda value, _: count(value), lambda row: f"{row['unit']} per second")


def variants_size(rows: list[Row]) -> tuple[float, float]:
    return 9, 3.2 * (len(_by(rows, "wing")) + 1)


def variants(figure: Any, rows: list[Row], ink: Ink) -> None:
    """Units per second of every kind by context, a panel for each wing, whiskers as for `scaling`, a little aside of
    each other; below them the bytes of their caches."""
    wings = _by(rows, "wing")
    panels = [(f"{WINGS[wing]}: {own[0]['unit']} per second", own, "per_second") for (wing,), own in wings.items()]
    panels.append(("bytes of the cache, by closed form", next(iter(wings.values())), "cache"))
    names = [name for (name,) in _by(rows, "variant")]
    for axes, (title, own, key) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        colour = ink.wing(own[0]["wing"]) if key == "per_second" else ink.ink
        ends, drawn = [], []
        for (name,), line in _by(own, "variant").items():
            number = names.index(name)
            marker, dashes = look_of(number)
            aside = 2 ** (ASIDE * (number - len(names) / 2)) if key == "per_second" else 1.0
            across, up = [aside * row["value"] for row in line], [row[key] for row in line]
            drawn.append({"color": colour, "marker": marker, "linestyle": dashes, "markersize": 4, "linewidth": 1.2})
            if key == "per_second":
                axes.vlines(across, [r["low"] for r in line], [r["high"] for r in line], color=colour, linewidth=0.6)
            axes.plot(across, up, **drawn[-1])
            ends.append((up[-1], name, colour))
        axes.set_xscale("log", base=2)
        if key == "cache":
            axes.set_yscale("log", base=4)
            axes.yaxis.set_major_formatter(lambda value, _: FORMS["size"](value))
        else:
            axes.set_ylim(0, None)
            axes.yaxis.set_major_formatter(lambda value, _: count(value))
        values = sorted({row["value"] for row in own})
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        _title(axes, title)
        axes.set_xlabel("context", fontsize=LETTER)
        axes.tick_params(labelsize=LETTER)
        label_ends(axes, ends, 2.4, drawn)


def _along(figure: Any, rows: list[Row], ink: Ink, key: str, form: Callable, unit: Callable[[Row], str]) -> None:
    look = looks(rows)
    for axes, (group, axis), own in _panels(figure, _by(rows, "group", "axis")):
        ends = []
        for (name,), line in _by(own, "name").items():
            colour, (marker, dashes) = ink.wing(line[0]["wing"]), look[name]
            across, up = [row["value"] for row in line], [row[key] for row in line]
            if "low" in line[0]:
                axes.vlines(across, [r["low"] for r in line], [r["high"] for r in line], color=colour, linewidth=1)
            axes.plot(
                across, up, color=colour, marker=marker, linestyle=dashes, markersize=4, linewidth=1.4,
                markeredgewidth=0,
            )  # fmt: skip
            ends.append((up[-1], name, colour))
        axes.set_ylim(0, None)
        _places(axes, axis, sorted({row["value"] for row in own}))
        _title(axes, f"{group}: {unit(own[0])}")
        axes.set_xlabel(axis, fontsize=LETTER)
        axes.yaxis.set_major_formatter(form)
        axes.tick_params(labelsize=LETTER)
        label_ends(axes, ends, PANEL - 0.8)


def _places(axes: Any, axis: str, values: list[float]) -> None:
    """The measured places as ticks, less those that would meet; batches, which double, on a logarithmic axis."""
    if axis == "batch" and values[0] > 0:
        axes.set_xscale("log", base=2)
    ticks: list[float] = []
    for value in values:
        if axis == "batch" or not ticks or value - ticks[-1] >= 0.05 * (values[-1] - values[0]):
            ticks.append(value)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
