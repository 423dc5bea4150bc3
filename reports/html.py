"""A page as one self-contained document: the template and style of its folder, and the style that all pages share."""

from importlib import resources
from typing import Any


def render(package: str, **values: Any) -> str:
    """`page.html` of that package with these values; `style` is the shared style.css and the package's page.css."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "".join(
        resources.files(place).joinpath(name).read_text(encoding="utf-8")
        for place, name in (("reports", "style.css"), (package, "page.css"))
    )
    return environment.get_template("page.html").render(style=Markup(style), **values)
