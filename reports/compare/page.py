"""One self-contained page: everything on it comes from the JSON, nothing from outside."""

from types import SimpleNamespace

from reports import html
from reports.compare import plots
from reports.compare import wording as say
from reports.compare.wording import Found


def render(found: Found) -> str:
    """The page as one HTML document with its style and its plots inside."""
    from markupsafe import Markup

    drawn = SimpleNamespace(
        losses=Markup(plots.losses(found)),
        speeds=Markup(plots.speeds(found)) if found["speed"] else None,
        memories=Markup(plots.memories(found)),
    )
    return html.render("reports.compare", found=found, say=say, drawn=drawn, wings=found["settings"]["wings"])
