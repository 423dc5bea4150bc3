"""The report on runs with real data: a page in Markdown and a plot, both from the collected JSON alone."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from common.files import write_text
from common.preference import LOSSES
from reports.curves.plots import draw_confusion, smoothed
from reports.finetune import plots
from reports.perf.ink import DASHES, LETTER, Ink

PAGE, PLOT = "README.md", "finetune"
ABREAST = 4  # tables of what is confused
PANELS = (
    ("pretrain", "held_out", "pretraining: held-out loss (dots), and of every step, smoothed"),
    (
        "classify",
        "epoch_accuracy",
        "classification: accuracy on all held-out texts after an epoch (dots), bag of words",
    ),
    ("classify", "loss", "classification: loss, smoothed"),
    ("instruct", "held_out", "instructions: held-out loss (dots), and of every step, smoothed"),
    ("prefer", "margin", "preferences: margin of rewards on held-out pairs"),
)


def markdown(found: Mapping[str, Any]) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined

    text = resources.files("reports.finetune").joinpath("page.md").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    runs = {name: _Run(run) for name, run in found["runs"].items()}
    kinds = {kind: {name: run for name, run in runs.items() if run.kind == kind and run.results} for kind in KINDS}
    page = environment.from_string(text).render(
        about=found["about"],
        prepared=found.get("prepared", ()),
        device=found["device"],
        runs=runs,
        title="Fine-tuning" if any(run.kind in KINDS for run in runs.values()) else "Pretraining",
        pairs=found["pairs"],
        pretraining={name: told for name, run in runs.items() if run.kind == "pretrain" and (told := _told(run))},
        classifiers=kinds["classify"],
        instructions=kinds["instruct"],
        preferences=kinds["prefer"],
        unseen=any("unseen" in run.results for run in kinds["classify"].values()),
        percent=lambda value: f"{value:.2%}",
        small=lambda value: "—" if value is None else f"{value:.1e}",
        fresh=_fresh,
        by_itself=LOSSES,
        cell=lambda text: " ".join(text.replace("|", "\\|").split()),
    )
    lines = [line.rstrip() for line in page.splitlines()]
    return "\n".join(line for place, line in enumerate(lines) if line or (place and lines[place - 1])) + "\n"


KINDS = ("classify", "instruct", "prefer")


class _Run(dict):
    """A run whose fields can be read as attributes; what it has not is empty."""

    def __getattr__(self, name: str) -> Any:
        found = self.get(name, {})
        return _Run(found) if isinstance(found, dict) else found


def _told(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run that pretrains: its first and last held-out loss, its lowest, and what it wrote at the end; steps count
    from 1. Empty where nothing was held out."""
    held = [(line["held_out"], line["step"] + 1) for line in run["evaluations"] if "held_out" in line]
    samples = [(line["sample"], line["step"] + 1) for line in run["evaluations"] if "sample" in line]
    if not held:
        return {}
    return {"first": held[0], "last": held[-1], "lowest": min(held), "sample": samples[-1] if samples else None}


def _fresh(run: Mapping[str, Any], which: str) -> str:
    unseen = run["results"].get("unseen")
    return f"{unseen['accuracy'][which]:.2%} of {unseen['texts']}" if unseen and which in unseen["accuracy"] else "—"


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """Page and plot into a folder, once there are both."""
    page = markdown(found)
    rows = -(-len(_panels(found["runs"])) // 2) + -(-len(_confused(found["runs"])) // ABREAST)
    for kind, content in plots.drawn(lambda figure, ink: _draw(figure, ink, found["runs"]), (11, 2.2 * rows)).items():
        plots.write(folder / f"{PLOT}.{kind}", content)
    write_text(folder / PAGE, page)


def _panels(runs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [one for one in PANELS if any(run["kind"] == one[0] for run in runs.values())]


def _confused(runs: Mapping[str, Any]) -> dict[str, Any]:
    """(counts, classes) of runs that are done, by name."""
    done = {name: run.get("results") or {} for name, run in runs.items() if run["kind"] == "classify"}
    return {name: (found["confusion"], found["classes"]) for name, found in done.items() if "confusion" in found}


def _draw(figure: Any, ink: Ink, runs: Mapping[str, Any]) -> None:
    panels, confused = _panels(runs), _confused(runs)
    above, below = -(-len(panels) // 2) or 1, -(-len(confused) // ABREAST)
    grid = figure.add_gridspec(above + below, ABREAST)
    for number, (name, matrix) in enumerate(confused.items()):
        axes = figure.add_subplot(grid[above + number // ABREAST, number % ABREAST])
        draw_confusion(axes, matrix, f"what {name} confuses", ink)
    half = ABREAST // min(2, len(panels) or 1)
    for place, (kind, name, title) in enumerate(panels):
        axes = figure.add_subplot(grid[place // 2, place % 2 * half : (place % 2 + 1) * half])
        for number, (label, run) in enumerate(one for one in runs.items() if one[1]["kind"] == kind):
            wings = {one["backend"] for one in runs.values() if one["kind"] == kind}
            colour = ink.wing(run["backend"]) if len(wings) > 1 else (ink.torch, ink.jax, ink.ink)[number % 3]
            look = {"color": colour, "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.3}
            told = [line for line in run["evaluations"] if name in line]
            before = (run["before"] or {}).get(name.removeprefix("epoch_"))
            at = ([] if before is None else [0]) + [line["step"] + 1 for line in told]
            values = ([] if before is None else [before]) + [line[name] for line in told]
            if name == "held_out":
                axes.plot(range(1, len(run["losses"]) + 1), smoothed(run["losses"]), **{**look, "linewidth": 0.9})
                ring = {"markersize": 7, "markerfacecolor": "none"} if number % 2 else {"markersize": 3}
                axes.plot(at, values, "o", color=colour, label=label, **ring)
            elif name == "loss":
                axes.plot(range(1, len(run["losses"]) + 1), smoothed(run["losses"]), label=label, **look)
            else:
                axes.plot(at, values, marker="o", markersize=3, label=label, **look)
            words = run.get("results", {}).get("accuracy", {}).get("bag of words") if name == "epoch_accuracy" else None
            if words:
                axes.axhline(words["validation"], color=colour, linewidth=0.8, linestyle=(0, (1.5, 1.5)))
        axes.set_title(title, loc="left", fontsize=LETTER + 0.5)
        axes.set_xlabel("step", fontsize=LETTER)
        axes.tick_params(labelsize=LETTER)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                fontsize=LETTER - 1, ncols=1 if len(axes.get_legend_handles_labels()[1]) < 5 else 2, framealpha=0.8
            )
