"""One self-contained page: everything on it comes from the JSON, nothing from outside."""

from importlib import resources
from types import SimpleNamespace

from reports.compare import plots
from reports.compare import wording as say
from reports.compare.wording import Found


def render(found: Found) -> str:
    """The page as one HTML document with its style and its plots inside."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("reports.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = SimpleNamespace(
        losses=Markup(plots.losses(found)),
        speeds=Markup(plots.speeds(found)) if found["speed"] else None,
        memories=Markup(plots.memories(found)),
    )
    style = resources.files("reports.compare").joinpath("page.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html")
    return template.render(found=found, say=say, drawn=drawn, style=Markup(style), wings=found["settings"]["wings"])
