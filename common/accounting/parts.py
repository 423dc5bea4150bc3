"""Which rules a model's accounts are made of: the parameter table names its modules, each module's kind has a rule.

A case is counted by the path it names, so a new case needs nothing here, and a new kind of module one rule.
"""

from collections.abc import Callable, Iterator, Mapping

from common import params
from common.config import ModelConfig
from common.errors import UserError, unknown
from common.params import Parameter

Rules = Mapping[str, Mapping[str, Callable]]  # family -> kind of module -> rule


def kind(path: str) -> str:
    """What a module is, whatever its place: "model.layers.3" -> "layers.#", "model.layers.3.mlp" -> "mlp"."""
    *above, last = path.split(".")
    return f"{above[-1]}.#" if last.isdigit() else last


def inside(path: str, name: str) -> bool:
    """Whether a module or parameter is the module at `path` or lies in it."""
    return not path or name == path or name.startswith(f"{path}.")


def rules_under(
    config: ModelConfig, path: str, rules: Rules, where: str
) -> Iterator[tuple[str, Callable, dict[str, Parameter]]]:
    """(path, rule, the module's own parameters by their last name) of the module at `path` and of all below it.

    Raises where the path names nothing, and where a kind of module has no rule: nothing is counted as 0 by oversight.
    """
    modules = params.modules(config)
    if path not in modules:
        raise unknown("component", path, modules)
    if config.family not in rules:
        raise unknown("family with rules", config.family, rules)
    table = params.table(config)
    for module in filter(lambda name: inside(path, name), modules):
        if kind(module) not in rules[config.family]:
            raise UserError(
                f"The component {module!r} has no rule: {kind(module)!r} of family {config.family!r} is missing in"
                f" RULES of {where}."
            )
        prefix = f"{module}." if module else ""
        own = {n[len(prefix) :]: p for n, p in table.items() if n.startswith(prefix) and "." not in n[len(prefix) :]}
        yield module, rules[config.family][kind(module)], own
