"""Entry points: commands, implementations, references and contenders, the project's own and those of other packages."""

import functools
import tomllib
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path

CHECKOUT = Path(__file__).parents[1] / "pyproject.toml"


def entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Those of installed packages; in a checkout also what its pyproject.toml declares, so that it runs uninstalled."""
    installed = tuple(metadata.entry_points(group=group))
    known = {point.name for point in installed}
    return (*installed, *(point for point in _declared(group) if point.name not in known))


@functools.cache
def _declared(group: str) -> tuple[EntryPoint, ...]:
    if not CHECKOUT.is_file():
        return ()
    project = tomllib.loads(CHECKOUT.read_text(encoding="utf-8")).get("project", {})
    declared = project.get("entry-points", {}).get(group, {}) if project.get("name") == "parallax" else {}
    return tuple(EntryPoint(name, value, group) for name, value in declared.items())
