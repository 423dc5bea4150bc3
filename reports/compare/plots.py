"""The plots of the page."""

from typing import Any

import numpy as np

from reports.compare import wording as say
from reports.compare.wording import Found
from reports.drawing import BAND, FIRST, INK, NARROW, SECOND, decades, svg


def _colours(found: Found) -> dict[str, str]:
    return dict(zip(found["settings"]["wings"], (FIRST, SECOND), strict=True))


def losses(found: Found) -> str:
    """The loss curves over each other, their difference below on a logarithmic axis."""
    training, wings = found["training"], found["settings"]["wings"]
    styles = dict(zip(wings, ({"linewidth": 4, "alpha": 0.5}, {"linewidth": 1.1}), strict=True))

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
        for wing in wings:
            curve = [np.nan if value is None else value for value in training["curves"][wing]["loss"]]
            above.plot(curve, color=_colours(found)[wing], label=say.title(found, wing), **styles[wing])
        above.set_ylabel("loss (nats per token)")
        above.legend(loc="upper right")
        gap = np.array([np.nan if value is None else value for value in training["difference"]], float)
        below.plot(np.where(gap > 0, gap, np.nan), color=INK, linewidth=0.9, marker=".", markersize=2)
        if (gap > 0).any():
            decades(below, gap[gap > 0])
        below.set_ylabel("difference")
        below.set_xlabel("step (where the two are equal to the last bit, the lower curve has a gap)")

    return svg(draw, "losses", "Loss of both wings by training step, and their difference", size=(9, 4.6))


def speeds(found: Found) -> str:
    """Tokens per second of each task, and the paired ratios with interval and noise floor."""
    speed, wings = found["speed"], found["settings"]["wings"]

    def draw(figure: Any) -> None:
        grid = figure.add_gridspec(2, len(speed), height_ratios=(1.3, 1))
        for column, (task, row) in enumerate(speed.items()):
            axes = figure.add_subplot(grid[0, column])
            rates = [row["seconds"][wing]["tokens_per_second"] for wing in wings]
            axes.barh(range(len(wings)), rates, color=[_colours(found)[wing] for wing in wings], height=0.62)
            axes.set_yticks(range(len(wings)), [say.title(found, wing) for wing in wings], color=INK)
            axes.invert_yaxis()
            axes.set_xlim(0, 1.45 * max(rates))
            for at, value in enumerate(rates):
                axes.text(value, at, NARROW + say.count(value), va="center", color=INK)
            axes.set_title(f"{say.TASKS[task]}, tokens/s", loc="left", fontsize=10)
            axes.xaxis.set_visible(False)
            axes.grid(False)
        _forest(figure.add_subplot(grid[1, :]), found)

    return svg(draw, "speeds", "Tokens per second of both wings, and their paired ratios", size=(9, 4.2))


def _forest(axes: Any, found: Found) -> None:
    speed, wings = found["speed"], found["settings"]["wings"]
    for at, row in enumerate(speed.values()):
        reach = 1 + row["floor"]
        axes.barh(at, reach - 1 / reach, left=1 / reach, height=0.66, color=BAND)
        low, high = row["low"], row["high"]
        colour = INK if row["faster"] is None else _colours(found)[row["faster"]]
        axes.plot([low, high], [at, at], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot([row["ratio"]], [at], "o", color=colour, markersize=6)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    limit = max(2.0, *(max(row["high"], 1 / row["low"]) for row in speed.values())) * 1.15
    axes.set_xlim(1 / limit, limit)
    axes.set_yticks(range(len(speed)), [say.TASKS[task] for task in speed], color=INK)
    axes.invert_yaxis()
    first, second = (say.title(found, wing) for wing in wings)
    gap = 3 * "\u2003"  # browsers fold plain spaces
    axes.set_xlabel(f"← {first} faster{gap}seconds of {first} / seconds of {second}{gap}{second} faster →")
    axes.set_title("Paired ratio, 99 % interval; the band is the noise floor", loc="left", fontsize=10)


def memories(found: Found) -> str:
    """Peak memory of training and decoding; the pale part is there as soon as the framework is imported."""
    memory, wings = found["memory"], found["settings"]["wings"]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        labels, at = [], 0.0
        for task in ("train", "decode"):
            for wing in wings:
                cell, colour = memory[task][wing], _colours(found)[wing]
                total, imported = (value / 2**20 for value in (cell["steady"]["bytes"], cell["import_only"]))
                axes.barh(at, min(imported, total), color=colour, alpha=0.35, height=0.7)
                axes.barh(at, max(0.0, total - imported), left=min(imported, total), color=colour, height=0.7)
                axes.text(total, at, NARROW + say.size(cell["steady"]["bytes"]), va="center", color=INK)
                labels.append((at, f"{say.TASKS[task]}, {say.title(found, wing)}"))
                at += 1
            at += 0.5
        axes.set_yticks([place for place, _ in labels], [label for _, label in labels], color=INK)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.set_xlabel("MiB of this process; pale: after import alone")
        axes.grid(axis="y", visible=False)

    return svg(draw, "memories", "Peak memory of both wings, training and decoding", size=(9, 2.6))
