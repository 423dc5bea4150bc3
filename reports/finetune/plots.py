"""What fine-tuning found out, drawn: as SVG and PNG on paper."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.files import replacing
from reports.finetune.experiments import Outcome, baselines
from reports.perf.ink import LETTER, Ink, on_paper

ROW = 0.3  # inches
LOOKS = {"majority class": (0, (1.5, 1.5)), "bag of words": (0, (5, 2))}


def drawn(draw: Callable[[Any, Ink], None], size: tuple[float, float]) -> dict[str, bytes]:
    """{"svg": …, "png": …} of what `draw(figure, ink)` draws."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, paper = on_paper()
    out = {}
    with matplotlib.rc_context({**ink.settings, "savefig.facecolor": paper, "savefig.dpi": 120}):
        figure = Figure(figsize=size, layout="constrained", facecolor=paper)
        FigureCanvasAgg(figure)
        draw(figure, ink)
        for kind, about in (("svg", dict.fromkeys(("Date", "Creator", "Format", "Type"))), ("png", {"Software": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, metadata=about)
            out[kind] = file.getvalue()
    return out


def write(path: Path, content: bytes) -> None:
    """All or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def experiments(found: Sequence[Outcome]) -> dict[str, bytes]:
    """Test accuracies, experiment by experiment: here (filled), and published (open)."""

    def draw(figure: Any, ink: Ink) -> None:
        axes = figure.add_subplot()
        rows = list(range(len(found)))[::-1]
        here = [(row, 100 * one.accuracy["test"]) for row, one in zip(rows, found, strict=True) if one.accuracy]
        there = [(row, one.experiment.published["test"]) for row, one in zip(rows, found, strict=True)]
        for (row, value), one in zip(there, found, strict=True):
            if one.accuracy:
                axes.plot([value, 100 * one.accuracy["test"]], [row, row], color=ink.line, linewidth=1.2, zorder=1)
        axes.scatter([x for _, x in there], [y for y, _ in there], facecolors="none", edgecolors=ink.soft, s=34,
                     label="published: GPT-2 on an A100", zorder=2)  # fmt: skip
        axes.scatter([x for _, x in here], [y for y, _ in here], color=ink.torch, s=34, label="here", zorder=3)
        for name, accuracy in baselines(found).items():
            axes.axvline(100 * accuracy["test"], color=ink.soft, linewidth=0.9, linestyle=LOOKS.get(name, "-"))
            axes.annotate(name, (100 * accuracy["test"], 1.0), xycoords=("data", "axes fraction"), fontsize=LETTER,
                          xytext=(0, 3), textcoords="offset points", ha="center", color=ink.soft)  # fmt: skip
        names = [f"{one.experiment.name}  {one.experiment.number}" for one in found]
        axes.set_yticks(rows, names, fontsize=LETTER + 0.5)
        axes.set_ylim(-0.7, len(found) - 0.3)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("accuracy on test data, percent", fontsize=LETTER)
        axes.tick_params(axis="x", labelsize=LETTER)
        axes.legend(fontsize=LETTER, loc="lower center")

    return drawn(draw, (8, ROW * len(found) + 1.2))
