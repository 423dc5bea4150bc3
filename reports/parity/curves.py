"""The plots of what runs over steps: training trajectories, and the change of framework in mid-run."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from reports.drawing import BAND, FIRST, INK, SECOND, SOFT, decades, svg
from reports.parity import wording as say
from reports.parity.wording import Found

CONTROL = "control"
TOLD = {
    "trajectories": (
        "Trajectories",
        "Distance of float32 training runs, relative to the parameters, after every step: the wings from each other,"
        " and each from float64. The control is one program against itself, with every initial weight moved by one ulp;"
        " the upper edge of the band is the bound, which counts at the last step.",
    ),
    "switch": (
        "The switch",
        "A run that changes framework after a third of its steps and back after two thirds, weights and optimizer state"
        " included, against the run that stays. The band is the control and the bound, as above.",
    ),
}


def figures(found: Found) -> Iterator[tuple[str, str, str]]:
    """(title, what is seen, SVG) of every such plot that the certificate has curves for."""
    for name, (title, text) in TOLD.items():
        cases = found["exhibits"].get(name)
        if cases:
            yield title, text, _figure(found, name, title, cases)


def _figure(found: Found, name: str, title: str, cases: Mapping[str, Any]) -> str:
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)

    def draw(figure: Any) -> None:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (case, curves) in zip(panels, cases.items(), strict=False):
            _panel(axes, case, curves, _factor(found, case), switched=name == "switch")
        for axes in panels[len(cases) :]:
            axes.set_visible(False)

    return svg(draw, name, f"{title}: distance by training step", size=(9, 3.3 * lines))


def _panel(axes: Any, case: str, curves: Mapping[str, Any], factor: float | None, switched: bool) -> None:
    control = _numbers(curves[CONTROL])
    steps = np.arange(1, len(control) + 1)
    if factor is not None:
        axes.fill_between(steps, control, factor * control, color=BAND, linewidth=0)
    axes.plot(steps, control, color=SOFT, linewidth=1.2, linestyle=(0, (3, 2)), label="control: one ulp")
    styles = [{"color": INK}, {"color": FIRST}, {"color": SECOND}, {"color": INK, "linestyle": ":"}]
    others = [name for name in curves if name != CONTROL]
    offset = 1 if switched else 0
    for number, name in enumerate(others):
        style = styles[(number + offset) % len(styles)]
        label = f"{name.replace(', ', ' → ')}" if switched else say.titled(name)
        axes.plot(steps, _numbers(curves[name]), linewidth=1.3, label=label, **style)
    if switched:
        for at in (len(steps) // 3, 2 * len(steps) // 3):
            axes.axvline(at + 0.5, color=SOFT, linewidth=0.7)
    every = np.concatenate([control * (factor or 1), *map(_numbers, curves.values())])
    decades(axes, every[np.isfinite(every)])
    axes.set_title(case, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("distance / parameters")
    axes.legend(loc="best", fontsize=8)


def _factor(found: Found, case: str) -> float | None:
    """How many times the control is allowed, as the rows of the case say."""
    for row in found["rows"]:
        if row["case"] == case and CONTROL in row["inputs"] and row["rule"] == "trajectory":
            return float(next(iter(row["bounds"].values()))) / float(row["inputs"][CONTROL])
    return None


def _numbers(curve: list[Any]) -> np.ndarray:
    values = np.array([float(value) for value in curve])
    return np.where(values > 0, values, np.nan)
