"""The claims C0 to C7 in their order, and the modules that try them, imported when their claim is asked for."""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from common.parity.trial import check_choice

MODULES = {
    "C0": "conversion",
    "C1": "bits",
    "C2": "semantics",
    "C3": "rounding",
    "C4": "decisions",
    "C5": "trajectories",
    "C6": "power",
    "C7": "edges",
}


def claims(names: Sequence[str] = ()) -> list[ModuleType]:
    """The modules of these claims, or of all; unknown names are answered with near matches."""
    chosen = check_choice("claim", tuple(names), tuple(MODULES))
    return [import_module(f"common.parity.{module}") for name, module in MODULES.items() if name in chosen]
