"""Costs against context and against batch, as SVG and PNG: the numbers of the table, a line for each model."""

import io
from typing import Any

from common.accounting.estimate import Estimate
from reports.estimate.job import Result
from reports.estimate.table import scaled
from reports.perf.ink import DASHES, LETTER, MARKERS, Ink, label_ends, on_paper

PANELS: dict[str, str] = {  # a field of an estimate, and what it is
    "cache": "bytes of cache",
    "kept": "bytes kept between the passes",
    "forward": "FLOPs of a forward pass",
    "decode": "FLOPs of one more token a row",
}
AXES = {"context": "tokens", "batch": "rows"}
COLUMNS, PANEL = 2, 3.0  # panels in a row, and inches of height of each


def drawn(found: Result) -> dict[str, dict[str, bytes]]:
    """{"by_context": {"svg": …, "png": …}}, and "by_batch" where there are several."""
    along = ["context"] + (["batch"] if len({row.batch for row in found.rows}) > 1 else [])
    return {f"by_{axis}": _files(found, axis) for axis in along}


def _files(found: Result, axis: str) -> dict[str, bytes]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, paper = on_paper()
    panels = [field for field in PANELS if any(getattr(row, field) for row in found.rows)]
    height = PANEL * -(-len(panels) // COLUMNS) + 0.5
    out = {}
    with matplotlib.rc_context({**ink.settings, "savefig.facecolor": paper, "savefig.dpi": 120}):
        figure = Figure(figsize=(11, height), layout="constrained", facecolor=paper)
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.4 / height), wspace=0.04)
        _draw(figure, found, axis, panels, ink)
        figure.text(
            0.012, 1 - 0.2 / height, f"{found.base} by {axis}, {found.dtype}, attention kernel {found.attention}",
            fontsize=12, weight="bold", color=ink.ink, in_layout=False, va="center", parse_math=False,
        )  # fmt: skip
        for kind, metadata in (
            ("svg", dict.fromkeys(("Date", "Creator", "Format", "Type"))),
            ("png", {"Software": None}),
        ):
            file = io.BytesIO()
            figure.savefig(file, format=kind, metadata=metadata)
            out[kind] = file.getvalue()
    return out


def _draw(figure: Any, found: Result, axis: str, panels: list[str], ink: Ink) -> None:
    grid = figure.add_gridspec(-(-len(panels) // COLUMNS), min(COLUMNS, len(panels)))
    lines = _lines(found, axis)
    for number, field in enumerate(panels):
        axes = figure.add_subplot(grid[number // COLUMNS, number % COLUMNS])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ends = []
        for label, (colour, marker, dashes), rows in _looks(lines, found, ink):
            points = [(getattr(row, axis), getattr(row, field)) for row in rows if getattr(row, field)]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colour, marker=marker, linestyle=dashes, markersize=4,
                    linewidth=1.4, markeredgewidth=0,
                )  # fmt: skip
                ends.append((points[-1][1], label, colour))
        _axes(axes, field, axis, sorted({getattr(row, axis) for row in found.rows}))
        label_ends(axes, ends, PANEL - 0.7)


def _axes(axes: Any, field: str, axis: str, values: list[int]) -> None:
    """Sizes as ticks, no more than fit; a little air above and below, for lines may be level."""
    from matplotlib.ticker import LogLocator

    every = -(-len(values) // 6)
    shown = values[::-1][::every][::-1]
    axes.set_xticks(shown, [f"{value:,}" for value in shown])
    axes.set_xlim(values[0] / 1.1, values[-1] * 1.1)
    low, high = axes.dataLim.intervaly
    axes.set_ylim(low / 1.6, high * 1.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.minorticks_off()
    unit = "B" if field in ("cache", "kept") else ""
    axes.yaxis.set_major_formatter(lambda value, _: scaled(round(value), unit))
    axes.tick_params(labelsize=LETTER)
    axes.set_xlabel(AXES[axis], fontsize=LETTER)
    axes.set_title(PANELS[field], loc="left", fontsize=LETTER + 0.5)


Line = tuple[str, int, list[Estimate]]  # (model, the other size, its estimates along the axis)


def _lines(found: Result, axis: str) -> list[Line]:
    """A line for every model and every value of the other size, or three of these where they are many."""
    other = "batch" if axis == "context" else "context"
    values = sorted({getattr(row, other) for row in found.rows})
    shown = values if len(values) <= len(DASHES) else [values[0], values[len(values) // 2], values[-1]]
    out: dict[tuple[str, int], list[Estimate]] = {}
    for row in found.rows:
        if getattr(row, other) in shown:
            out.setdefault((row.name, getattr(row, other)), []).append(row)
    return [(*key, rows) for key, rows in out.items()]


def _looks(lines: list[Line], found: Result, ink: Ink) -> list[tuple[str, tuple[str, str, Any], list[Estimate]]]:
    """Models differ by colour and marker, values of the other size by dashes, which the label then names."""
    colours, models = (ink.ink, ink.jax, ink.torch, ink.good, ink.bad, ink.soft), list(found.models)
    others = list(dict.fromkeys(other for _, other, _ in lines))
    out = []
    for name, other, rows in lines:
        at, dash = models.index(name), others.index(other)
        look = colours[at % len(colours)], MARKERS[at % len(MARKERS)], DASHES[dash % len(DASHES)]
        label = name if len(name) <= 24 else f"{name[:23]}…"
        out.append((label if len(others) == 1 else f"{label}, {other:,}", look, rows))
    return out
