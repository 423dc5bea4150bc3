"""Which rules a model's accounts are made of: the parameter table names its modules, each module's kind has a rule.

A case is counted by the path it names, so a new case needs nothing here, and a new kind of module one rule.
"""

from collections.abc import Callable, Iterator, Mapping

from common import adapters, params
from common.config import Execution, ModelConfig
from common.errors import UserError, unknown
from common.params import Parameter
from common.variants import Part

Rules = Mapping[str, Callable]  # what a module is -> rule
ENTRIES = {"self_attn": "attention", "mlp": "feed_forward"}  # modules that a config's pattern chooses
HEADS = ("lm_head", "score")  # linear maps that predict


def kind(path: str) -> str:
    """What a module is, whatever its place: "model.layers.3" -> "layers.#", "model.layers.3.mlp" -> "mlp"."""
    *above, last = path.split(".")
    return f"{above[-1]}.#" if last.isdigit() else last


def entry(config: ModelConfig, path: str) -> Part:
    """The kind of attention or feed-forward at a path such as "model.layers.3.self_attn"."""
    layer = int(path.split(".")[-2])
    return config.attention_of(layer) if kind(path) == "self_attn" else config.feed_forward_of(layer)


def holder(config: ModelConfig, path: str) -> Part | None:
    """The attention or feed-forward layer that a module is or lies in, if any."""
    names = path.split(".")
    at = next((at for at, name in enumerate(names) if name in ENTRIES), None)
    return None if at is None else entry(config, ".".join(names[: at + 1]))


def decoding(config: ModelConfig, execution: Execution | None = None) -> dict[str, str]:
    """The fields of an execution that are not plain where a model's layers are to decode: as it is best, or as this
    execution does, whose plain way to decode is in the forms that it reads texts with. None that passes adapters by."""
    if execution is not None and execution.decode == "plain":
        return {}
    forms = {field: form for layer in config.attention for field, form in layer.decodes.items()}
    passed = {field for _, field in adapters.unseen(config, forms)}
    return {field: form for field, form in forms.items() if field not in passed}


def times(config: ModelConfig, path: str) -> int:
    """How often the norm at a path is taken for a token: one inside attention may be taken head by head."""
    if place(path) != "self_attn":
        return 1
    return entry(config, path.rpartition(".")[0]).rows_of(config, kind(path))


def quiet(config: ModelConfig, path: str) -> bool:
    """Whether nothing flows back through the linear map or norm at a path: what it makes is only chosen by."""
    if place(path) != "self_attn" or kind(path) == "self_attn":
        return False
    return entry(config, path.rpartition(".")[0]).quiet(kind(path))


def shut(config: ModelConfig, path: str) -> bool:
    """Whether no gradient leaves the linear map at a path by its input."""
    layer = holder(config, path)
    return layer is not None and layer.shut(kind(path))


def low_rank(config: ModelConfig, path: str) -> tuple[str, tuple[int, int], "adapters.Adapter"]:
    """Of an adapter's matrix at a path such as "model.layers.3.self_attn.q_proj.lora_A.default": the linear map that it
    changes, (out, in) of that, and the adapter."""
    changed, _, name = path.rsplit(".", 2)
    adapter = next(one for one in config.adapters if one.name == name)
    return changed, params.table(config)[f"{changed}.weight"].shape, adapter


def inside(path: str, name: str) -> bool:
    """Whether a module or parameter is the module at `path` or lies in it."""
    return not path or name == path or name.startswith(f"{path}.")


def place(path: str) -> str:
    """Where a module lies: in "self_attn", in "mlp", or in neither (its own kind)."""
    return next((part for part in ENTRIES if f".{part}." in f"{path}."), kind(path))


def rules_under(
    config: ModelConfig, path: str, rules: Rules, where: str
) -> Iterator[tuple[str, Callable, dict[str, Parameter]]]:
    """(path, rule, the module's own parameters by their last name) of the module at `path` and of all below it.

    What holds parameters follows the rule of what it does with them (`Parameter.part`), the others that of their kind.
    Raises where the path names nothing, and where there is no rule: nothing is counted as 0 by oversight.
    """
    modules = params.modules(config)
    if path not in modules:
        raise unknown("component", path, modules)
    owned: dict[str, dict[str, Parameter]] = {}
    for name, parameter in params.table(config).items():
        above, _, leaf = name.rpartition(".")
        owned.setdefault(above, {})[leaf] = parameter
    for module in filter(lambda name: inside(path, name), modules):
        own = owned.get(module, {})
        parts = {parameter.part for parameter in own.values()}
        named = kind(module) in rules  # attention may hold numbers of its own beside its submodules
        if not own or (named and parts != {"lora"}):  # an adapter may have any name
            parts = {kind(module)}
        if len(parts) != 1 or not parts <= set(rules):
            raise UserError(f"The component {module!r} has no rule: there is none for {_listed(parts)} in {where}.")
        yield module, rules[parts.pop()], own


def _listed(parts: set) -> str:
    return " and ".join(sorted(repr(part) for part in parts))
