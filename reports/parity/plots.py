"""The plots of the page, drawn from the certificate alone."""

import math
from typing import Any

from common.parity.thresholds import ROUNDOFF
from reports.drawing import BAD, BAND, FIRST, INK, SECOND, SOFT, svg
from reports.parity import matrix
from reports.parity import wording as say
from reports.parity.wording import Found

OTHER_UNITS = ("exact", "ulps", "nats")  # rules whose errors are no relative errors
GRAIN = 20  # dots that fall into the same twentieth of a decade are drawn once
LEAST = 1e-19  # errors below are drawn here: float64 rounds at 1e-16, so these came out small by luck
MARKED = ("float64", "float32", "bfloat16")  # roundoffs drawn as lines


def colours(found: Found) -> dict[str, str]:
    """By implementation: the first two have colours of their own, pairs and further ones are grey."""
    return dict(zip(found["head"]["backends"], (FIRST, SECOND), strict=False))


def gap(found: Found) -> str:
    """Every error on one logarithmic axis, claim by claim, with its bounds; below, what planted bugs do."""
    strips = _strips(found)
    bugs = _bugs(found)
    rows = [(f"{claim} {tier}", own) for (claim, tier), own in strips.items()]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for at, (_, own) in enumerate(rows):
            _strip(axes, at, own, found)
        labels = [label for label, _ in rows]
        for claim, errors in bugs.items():
            at = len(labels)
            axes.axhspan(at - 0.5, at + 0.5, color=BAND, alpha=0.5, linewidth=0)
            axes.plot(_once(errors), [at] * len(_once(errors)), "|", color=BAD, markersize=11, markeredgewidth=1.2)
            labels.append(f"bugs noticed by {claim}")
        axes.set_xscale("log")
        axes.set_yticks(range(len(labels)), labels, color=INK)
        axes.set_ylim(len(labels) - 0.4, -1.4)
        low, high = _range(rows, bugs)
        axes.set_xlim(low, high)
        axes.minorticks_off()
        for number, tier in enumerate(MARKED):
            unit = ROUNDOFF[tier]
            if low < unit < high:
                axes.axvline(unit, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
                axes.text(
                    unit, -0.85, f"{tier} roundoff", color=SOFT, fontsize=8, ha=("right", "center", "left")[number]
                )
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("relative error")

    height = 0.9 + 0.3 * (len(rows) + len(bugs) + 1)
    return svg(
        draw, "gap", "Errors of honest implementations, their bounds, and errors of planted bugs", size=(9, height)
    )


def _strips(found: Found) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By claim and tier: the errors of every implementation and pair, and the bounds. Counts have no place here."""
    out: dict[tuple[str, str], dict[str, list[float]]] = {}
    kept = [row for row in found["rows"] if row["rule"] not in OTHER_UNITS and row["claim"] != "C6"]
    for row in sorted(kept, key=lambda row: (row["claim"], say.order(row["tier"]))):
        own = out.setdefault((row["claim"], row["tier"]), {"bounds": []})
        for name, error in row["errors"].items():
            own.setdefault(name, []).append(float(error))
            own["bounds"].append(float(row["bounds"][name]))
    return out


def _strip(axes: Any, at: int, own: dict[str, list[float]], found: Found) -> None:
    known = colours(found)
    names = [name for name in own if name != "bounds"]
    for bound in _once(own["bounds"]):
        axes.plot([bound, bound], [at - 0.36, at + 0.36], color=INK, linewidth=0.9, solid_capstyle="butt")
    for number, name in enumerate(names):
        line = at + 0.5 * ((number + 0.5) / len(names) - 0.5)
        dots = _once(own[name])
        axes.plot(dots, [line] * len(dots), ".", color=known.get(name, SOFT), markersize=4.2, markeredgewidth=0)


def _bugs(found: Found) -> dict[str, list[float]]:
    """By claim: the errors by which planted bugs were noticed, where these are errors and no counts."""
    out: dict[str, list[float]] = {}
    for entry in matrix.of(found):
        if entry["tier"] != "exact" and entry["killed"]:
            out.setdefault(f"{entry['claim']} {entry['tier']}", []).append(float(entry["error"]))
    return dict(sorted(out.items()))


def _once(values: list[float]) -> list[float]:
    """Finite values above zero, one for each grain."""
    kept = (max(value, LEAST) for value in values if 0 < value < math.inf)
    grains = {round(GRAIN * math.log10(value)): value for value in kept}
    return sorted(grains.values())


def _range(rows: list, bugs: dict[str, list[float]]) -> tuple[float, float]:
    every = [value for _, own in rows for values in own.values() for value in _once(values)]
    every += [value for values in bugs.values() for value in _once(values)] or [1.0]
    return 10.0 ** math.floor(math.log10(min(every))), 10.0 ** math.ceil(math.log10(max(every)) + 0.1)


def measured(found: Found) -> bool:
    """Whether there is any error above zero that `gap` could show."""
    return any(_once(values) for own in _strips(found).values() for values in own.values())
