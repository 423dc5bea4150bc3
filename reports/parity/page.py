"""One self-contained page: everything on it comes from the certificate, nothing from outside."""

from types import SimpleNamespace
from typing import Any

from reports import html
from reports.parity import curves, matrix, plots, view
from reports.parity import wording as say
from reports.parity.wording import Found

DRAWN = ("mutants", "fields", *curves.TOLD)  # exhibits with a place of their own; others are shown as tables
TOLD = {
    "ulps": (
        "Elementwise functions",
        "Errors in float32, in units in the last place (ulps) of the true value: the largest, and the 99th percentile.",
    ),
    "ties": (
        "Certified ties",
        "Where an implementation chose another token than the oracle, the two were closer than rounding can tell: the"
        " margin between them, and what rounding explains there.",
    ),
}


def render(found: Found) -> str:
    """The page as one HTML document with its style and its plots inside."""
    from markupsafe import Markup

    drawn = SimpleNamespace(gap=Markup(plots.gap(found)) if plots.measured(found) else None)
    figures = [(title, text, Markup(svg)) for title, text, svg in curves.figures(found)]
    return html.render(
        "reports.parity",
        found=found,
        head=found["head"],
        say=say,
        view=view,
        drawn=drawn,
        figures=figures,
        bugs=matrix.of(found),
        matrix=matrix,
        fields=found["exhibits"].get("fields", []),
        others=_others(found),
    )


def _others(found: Found) -> list[tuple[str, str, Any]]:
    """(title, what is seen, table) of exhibits that are lists of entries and have no place of their own."""
    tables = {name: view.table_of(own) for name, own in found["exhibits"].items() if name not in DRAWN}
    return [(*TOLD.get(name, (name.capitalize(), "")), table) for name, table in tables.items() if table is not None]
