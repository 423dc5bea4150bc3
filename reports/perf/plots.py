"""Every plot by name, drawn from its rows: for the page in the page's colours, and as SVG and PNG files.

A drawing carries two stamps: the sha256 of the rows it draws (in a file, with its footer) and of itself. So
`parallax report --check` sees both a drawing of other numbers and an edited one, while another version of matplotlib
may draw the same numbers otherwise.
"""

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from reports import drawing
from reports.perf import bars, curves
from reports.perf.ink import THEMED, Ink, on_paper
from reports.perf.series import Row, stamp

MARK, CHUNK = "parallax", b"tEXt"


class Plot(NamedTuple):
    """What is drawn, how large, under which title."""

    draw: Callable[[Any, list[Row], Ink], None]
    size: Callable[[list[Row]], tuple[float, float]]
    title: str


PLOTS = {
    "ratio_forest": Plot(bars.forest, bars.forest_size, "How fast, against the reference of each cell"),
    "roofline": Plot(curves.roofline, curves.roofline_size, "Against this machine's measured peaks"),
    "scaling": Plot(curves.scaling, curves.scaling_size, "By context and by batch"),
    "variants": Plot(curves.variants, curves.variants_size, "Kinds of layers, by context"),
    "memory": Plot(bars.memory, bars.memory_size, "Peak memory, and what must be held"),
    "breakeven": Plot(curves.breakeven, curves.breakeven_size, "When compiling pays"),
    "depth": Plot(curves.depth, curves.depth_size, "Compiling, by depth"),
}


def inline(name: str, rows: list[Row]) -> str:
    """The plot as an <svg> element of the page, stamped."""
    plot = PLOTS[name]
    svg = drawing.svg(lambda figure: plot.draw(figure, rows, THEMED), name, plot.title, size=plot.size(rows))
    return svg.replace("<svg", f'<svg data-numbers="{stamp(rows)}" data-drawing="{_sha(svg)}"', 1)


def numbers_only(name: str, rows: list[Row]) -> str:
    """What `faceless` leaves of `inline`."""
    return f'<svg data-numbers="{stamp(rows)}">'


def faceless(page: str) -> str:
    """The page with each drawing reduced to the stamp of its numbers, if it is what was drawn."""

    def reduced(found: re.Match) -> str:
        svg = "<svg" + found[3]
        return f'<svg data-numbers="{found[1]}">' + ("" if _sha(svg) == found[2] else "edited")

    return re.sub(
        r'<svg data-numbers="(\w*)" data-drawing="(\w*)"(.*?</svg>\n?)', reduced, page, flags=re.DOTALL
    )  # fmt: skip


def files(name: str, rows: list[Row], footer: str) -> dict[str, bytes]:
    """The plot as {"svg": …, "png": …} in light colours, with its title and where it was measured."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, paper = on_paper()
    plot, out = PLOTS[name], {}
    with matplotlib.rc_context({**ink.settings, "savefig.facecolor": paper, "savefig.dpi": 120}):
        width, height = plot.size(rows)
        below, above = 0.24 / (height + 0.6), 0.36 / (height + 0.6)
        figure = Figure(figsize=(width, height + 0.6), layout="constrained", facecolor=paper)
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(rect=(0, below, 1, 1 - below - above))
        plot.draw(figure, rows, ink)
        apart = {"in_layout": False, "va": "center", "parse_math": False}
        figure.text(0.012, 1 - above / 2, plot.title, fontsize=12, weight="bold", color=ink.ink, **apart)
        figure.text(0.012, below / 2, footer, fontsize=7, color=ink.soft, **apart)
        for kind, metadata in (
            ("svg", dict.fromkeys(("Date", "Creator", "Format", "Type"))),
            ("png", {"Software": None}),
        ):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, metadata=metadata)
            out[kind] = _stamped(kind, drawn.getvalue(), stamp(rows, footer))
    return out


def _sha(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def _stamped(kind: str, data: bytes, numbers: str) -> bytes:
    told = f"{numbers} {_sha(data)}".encode()
    if kind == "svg":
        return data + b"<!-- " + MARK.encode() + b" " + told + b" -->\n"
    body = CHUNK + MARK.encode() + b"\0" + told
    end = len(data) - 12  # before IEND
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:end] + chunk + data[end:]


def stamp_of(kind: str, data: bytes) -> str | None:
    """The stamp of what a file shows; None if it has none, or is not what was drawn."""
    mark = MARK.encode()
    if kind == "svg":
        found = re.search(rb"<!-- " + mark + rb" (\w{64}) (\w{64}) -->\n$", data)
        rest = data[: found.start()] if found else b""
    else:
        found = re.search(rb"....tEXt" + mark + rb"\0(\w{64}) (\w{64})....(?=.{12}$)", data, flags=re.DOTALL)
        rest = data[: found.start()] + data[found.end() :] if found else b""
    return found[1].decode() if found and _sha(rest) == found[2].decode() else None
