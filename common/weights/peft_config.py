"""What PEFT's adapter_config.json says about a LoRA adapter, read and written.

Source of the fields and their meaning: peft, tuners/lora/config.py. A field that changes the computation and is not
implemented is refused, also one that does not exist yet: whatever is not known must be empty.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.adapters import Adapter
from common.errors import UserError
from common.weights.damage import damaged, one_line, read_json

FILE = "adapter_config.json"
# Initial weights that leave the base as it is; others of PEFT take away from the base what they put into the adapter.
_STARTS = (True, False, None, "gaussian", "orthogonal")
_USELESS = frozenset(  # they say how an adapter came about, or belong to what is switched off by another field
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "layers_pattern",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
_READ = frozenset(
    {
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    }
)


@dataclass(frozen=True)
class Settings:
    """One adapter as PEFT sees it. `targets` are names of modules or ends of them, or None where a pattern or a choice
    of layers says which: then the tensors tell. `ranks` and `alphas` hold what differs, by name or end of it."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] | None = None
    saved: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank of a module's adapter."""
        return _chosen(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """Its alpha."""
        return _chosen(self.alphas, module, self.alpha)

    def scale_of(self, module: str) -> float:
        """What B A x is multiplied by."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)


def ends(module: str, name: str) -> bool:
    """Whether a module has that name, or a name that ends so."""
    return module == name or module.endswith(f".{name}")


def _chosen(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
    return next((value for name, value in patterns.items() if ends(module, name)), usual)


def read(path: Path | str) -> Settings:
    """The settings in an adapter_config.json; UserError where they are damaged or not implemented."""
    values = read_json(path, "adapter config")
    if values.get("peft_type") != "LORA":
        raise UserError(f"{path} is for an adapter of type {one_line(values.get('peft_type'))!r}; only 'LORA' is read.")
    for name, value in values.items():
        if name not in _READ | _USELESS and value not in (None, False, {}, [], ""):
            raise UserError(f"{path} has {name} = {one_line(value)}, which is not implemented.")
    if values.get("bias", "none") != "none":
        raise UserError(f"{path} has bias = {one_line(values['bias'])!r}, which is not implemented; 'none' is.")
    start = values.get("init_lora_weights")
    if not isinstance(start, (bool, str, type(None))) or start not in _STARTS:
        raise UserError(
            f"{path} has init_lora_weights = {one_line(start)!r}, which changes the base; convert it first."
        )
    usual = _numbers(path, values)
    chosen = values.get("target_modules"), values.get("layers_to_transform"), values.get("exclude_modules")
    settings = Settings(
        usual.rank,
        usual.alpha,
        usual.dropout,
        usual.rslora,
        usual.dora,
        None if isinstance(chosen[0], str) or chosen[1:] != (None, None) else _names(path, values, "target_modules"),
        _names(path, values, "modules_to_save") if values.get("modules_to_save") else (),
        {n: _numbers(path, values, r=rank).rank for n, rank in _pattern(path, values, "rank_pattern").items()},
        {n: _numbers(path, values, lora_alpha=a).alpha for n, a in _pattern(path, values, "alpha_pattern").items()},
    )
    if settings.targets == ():
        raise damaged(path, "adapter config", '"target_modules" names nothing')
    return settings


def _numbers(path: object, values: Mapping[str, Any], **changes: Any) -> Adapter:
    """The numbers of a config as an adapter without a place, which checks them. Defaults are PEFT's."""
    values = {**values, **changes}
    try:
        return Adapter(
            rank=values.get("r", 8),
            alpha=values.get("lora_alpha", 8),
            dropout=values.get("lora_dropout", 0.0),
            rslora=values.get("use_rslora", False),
            dora=values.get("use_dora", False),
        )
    except UserError as error:
        raise damaged(path, "adapter config", error) from error


def _names(path: object, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = values.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise damaged(path, "adapter config", f'"{key}" is {one_line(names)}, expected a list of names')
    return tuple(names)


def _pattern(path: object, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What differs, by name. PEFT takes the names for regular expressions, which are not run here: they may hang."""
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise damaged(path, "adapter config", f'"{key}" is {one_line(found)}, expected an object')
    plain = {name.removeprefix("^").replace(r"\.", "."): value for name, value in found.items()}
    for name in plain:
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"{path} has {key} for {name!r}, a regular expression; names of modules are read.")
    return plain


def to_dict(settings: Settings, *, fan_in_fan_out: bool, task: str, base: str | None) -> dict[str, Any]:
    """What PEFT reads; its other fields have values that change nothing when they are absent."""
    return {
        "alpha_pattern": {name: _short(value) for name, value in settings.alphas.items()},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _short(settings.alpha),
        "lora_dropout": settings.dropout,
        "modules_to_save": list(settings.saved) or None,
        "peft_type": "LORA",
        "r": settings.rank,
        "rank_pattern": dict(settings.ranks),
        "target_modules": list(settings.targets or ()),
        "task_type": task,
        "use_dora": settings.dora,
        "use_rslora": settings.rslora,
    }


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
