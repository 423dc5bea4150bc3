"""Plots as inline SVG whose colours are the page's own variables, so that they follow its theme."""

import io
import re
from typing import Any

import numpy as np

# Colours that stand for variables of the page's style; they never reach the eye.
STAND_INS = {"#aa0001": "--torch", "#aa0002": "--jax", "#aa0003": "--ink", "#aa0004": "--soft", "#aa0005": "--line"}
STAND_INS |= {"#aa0006": "--band", "#aa0007": "--good", "#aa0008": "--bad"}
NARROW = "\u2002"  # browsers fold plain spaces
FIRST, SECOND, INK, SOFT, LINE, BAND, GOOD, BAD = STAND_INS
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "parallax",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def svg(draw, name: str, title: str, *, size: tuple[float, float]) -> str:
    """Run `draw(figure)` and give its drawing as one <svg> element."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), name, title)


def _inline(text: str, name: str, title: str) -> str:
    """Only what a page needs of an SVG file: no header, no metadata, no namespaces, identifiers of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = (
        re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", text[: text.index(">")]) + text[text.index(">") :]
    )
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for stand_in, variable in STAND_INS.items():
        text = text.replace(stand_in, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def decades(axes: Any, values: np.ndarray) -> None:
    """A logarithmic axis over whole decades, labelled at decades only."""
    axes.set_yscale("log")
    low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))
    axes.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
    axes.minorticks_off()
