"""Curves of training runs against the step, and what a classifier confuses, as SVG and PNG, and where these come from:
the log of a run, its settings and its results."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import run as runs
from common.commands import settings
from common.commands.running import RESULTS
from common.config import TrainConfig
from common.errors import UserError
from common.files import read_toml
from common.weights.checkpoint import TRAINING
from common.weights.damage import read_json
from reports.perf.ink import DASHES, LETTER, Ink, on_paper

PANELS = {  # a number of the log, and what it is
    "loss": "loss: of every step (thin), smoothed, and held out (dots)",
    "accuracy": "accuracy: held out (dots), and on data that are trained on (thin)",
    "epoch_accuracy": "accuracy on all data after an epoch: held out (dots), and trained on (thin)",
    "margin": "margin of rewards: held out (dots), and on data that are trained on (thin)",
    "rate": "learning rate",
    "grad_norm": "norm of the gradient, before clipping",
    "tokens_per_second": "tokens per second",
}
TRAINED = {  # what is beside a held-out number that evaluations give
    "accuracy": "train_accuracy",
    "epoch_accuracy": "epoch_train_accuracy",
    "margin": "train_margin",
}
COUNTED = ("loss", "accuracy", "epoch_accuracy")  # panels that also say how many tokens or examples have been seen
HEIGHT = 2.7  # inches of a panel
SMOOTHED = 0.9  # of the mean before, where a step's own loss has the rest

Log = Sequence[Mapping[str, Any]]
Confusion = tuple[Sequence[Sequence[int]], Sequence[str]]  # texts of a class (row) taken for which, and their names


def read(folder: Path) -> list[dict[str, Any]]:
    """The log of a run's folder, a line a step."""
    path = folder / runs.LOG
    if not path.is_file():
        raise UserError(f"{folder} holds no run: there is no {runs.LOG} in it.")
    lines = list(runs.read_log(path))
    if not lines or any(not isinstance(line.get(name), (int, float)) for line in lines for name in ("step", "loss")):
        raise UserError(f"{path} holds no steps with their losses.")
    return lines


def counted(folder: Path) -> tuple[int, str] | None:
    """What a step of a run sees, if its folder says so: how many tokens where it pretrains, else how many examples."""
    record = folder / runs.CHECKPOINT / TRAINING
    if not record.is_file():  # it has saved nothing yet
        return None
    found = read_json(record, "training record")
    if (
        found.get("kind") == "pretrain"
        and isinstance(found.get("train"), dict)
        and isinstance(found.get("length"), int)
    ):
        train = TrainConfig.from_dict(found["train"])
        return train.batch_size * train.accumulate * found["length"], "tokens seen"
    if not (folder / settings.FILE).is_file():
        return None
    found = read_toml(folder / settings.FILE)
    sizes = [found.get(name) for name in ("batch-size", "accumulate")]
    return (sizes[0] * sizes[1], "examples seen") if all(isinstance(size, int) for size in sizes) else None


def confusion(folder: Path) -> Confusion | None:
    """What a run's classifier took test data for, if it is one and is done."""
    if not (folder / RESULTS).is_file():
        return None
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        counts, names = results.get("confusion"), results.get("classes")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / RESULTS} is damaged; resume the run without it, which makes it anew.") from error
    square = isinstance(counts, list) and isinstance(names, list) and len(counts) == len(names)
    return (counts, names) if square and all(len(row) == len(names) for row in counts) else None


def label(folder: Path, every: Sequence[Path]) -> str:
    """A run's name: that of its folder, or its path where several have one name."""
    alike = [one for one in every if one.name == folder.name]
    return folder.name if len(set(alike)) == 1 and folder.name else str(folder)


def drawn(
    found: Mapping[str, Log], confused: Mapping[str, Confusion] | None = None, seen: tuple[int, str] | None = None
) -> dict[str, bytes]:
    """{"svg": …, "png": …} of runs by name; `seen` is what a step of all of them sees: how many, of what."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, paper = on_paper()
    panels = [name for name in PANELS if any(name in line for log in found.values() for line in log)]
    confused = confused or {}
    rows = -(-(len(panels) + len(confused)) // 2)
    out = {}
    with matplotlib.rc_context({**ink.settings, "savefig.facecolor": paper, "savefig.dpi": 120}):
        figure = Figure(figsize=(11, HEIGHT * rows + 0.5), layout="constrained", facecolor=paper)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(rows, 2)
        many, what = seen or (1, "")
        for number, name in enumerate(panels):
            axes = figure.add_subplot(grid[number // 2, number % 2])
            _panel(axes, name, found, ink)
            if seen and name in COUNTED:
                top = axes.secondary_xaxis("top", functions=(lambda x: x * many, lambda x: x / many))
                top.tick_params(labelsize=LETTER)
                top.set_xlabel(what, fontsize=LETTER)
            if not number:
                axes.legend(fontsize=LETTER, loc="upper right")
        for number, (run, matrix) in enumerate(confused.items(), len(panels)):
            told = f" ({run})" if len(found) > 1 else ""
            title = f"what is confused, on test data{told}"
            draw_confusion(figure.add_subplot(grid[number // 2, number % 2]), matrix, title, ink)
        for kind, about in (("svg", dict.fromkeys(("Date", "Creator", "Format", "Type"))), ("png", {"Software": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, metadata=about)
            out[kind] = file.getvalue()
    return out


def _panel(axes: Any, name: str, found: Mapping[str, Log], ink: Ink) -> None:
    for number, (run, log) in enumerate(found.items()):
        look = {"color": _colour(number, log, found, ink), "linestyle": DASHES[number % len(DASHES)]}
        steps, values = _points(log, name)
        if not steps:  # a run of another kind
            continue
        if name in TRAINED:
            axes.plot(*_points(log, TRAINED[name]), linewidth=0.8, alpha=0.6, **look)
            axes.plot(steps, values, "o-", markersize=3.5, linewidth=1.2, color=look["color"], label=run)
            continue
        if name != "loss":
            axes.plot(steps, values, linewidth=1.2, label=run, **look)
            continue
        axes.plot(steps, values, linewidth=0.5, alpha=0.35, color=look["color"])
        axes.plot(steps, smoothed(values), linewidth=1.4, label=run, **look)
        axes.plot(*_points(log, "held_out"), "o", markersize=3.5, color=look["color"])
    axes.set_title(PANELS[name], loc="left", fontsize=LETTER + 0.5)
    axes.set_xlabel("step", fontsize=LETTER)
    axes.tick_params(labelsize=LETTER)
    if name in ("rate", "tokens_per_second"):
        axes.set_ylim(bottom=0)
    elif name in ("accuracy", "epoch_accuracy"):
        axes.set_ylim(min(0.5, axes.get_ylim()[0]), 1.02)
        axes.set_xlim(left=0)


def draw_confusion(axes: Any, matrix: Confusion, title: str, ink: Ink) -> None:
    """Counts and shares of test data, by what they are (rows) and what the model says (columns)."""
    from matplotlib.colors import LinearSegmentedColormap

    counts, names = matrix
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    colours = LinearSegmentedColormap.from_list("ink", (ink.band, ink.torch))
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for is_, row in enumerate(counts):
        for said, count in enumerate(row):
            colour = "white" if shares[is_][said] > 0.5 else ink.ink
            words = f"{count:,}\n{shares[is_][said]:.1%}"
            axes.text(said, is_, words, ha="center", va="center", fontsize=LETTER + 1, color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=LETTER)
    axes.set_yticks(range(len(names)), names, fontsize=LETTER)
    axes.set_xlabel("what the model says", fontsize=LETTER)
    axes.set_ylabel("what it is", fontsize=LETTER)
    axes.grid(visible=False)
    axes.set_title(title, loc="left", fontsize=LETTER + 0.5)


def _points(log: Log, name: str) -> tuple[list[int], list[float]]:
    """The steps whose lines have a number, and the number."""
    lines = [line for line in log if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def _colour(number: int, log: Log, found: Mapping[str, Log], ink: Ink) -> str:
    """The colour of the wing that made a run, if every run has one of its own; else one after the other."""
    wings = [one[-1].get("backend") for one in found.values()]
    if len(set(wings)) == len(wings):
        return ink.wing(log[-1].get("backend"))
    return (ink.torch, ink.jax, ink.ink, ink.good, ink.bad, ink.soft)[number % 6]


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean over the steps, which starts at the first value."""
    out = [values[0]]
    for value in values[1:]:
        out.append(SMOOTHED * out[-1] + (1 - SMOOTHED) * value)
    return out
