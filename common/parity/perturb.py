"""Another valid value for a field of a config, found from the field's type and value alone."""

import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from common import config as models
from common import sampling, training, variants
from common.adapters import Adapter
from common.errors import UserError

FACTOR = 4.0  # floats are scaled by this, far enough that an epsilon shows in the outputs
TUPLES: dict[str, tuple[Any, ...]] = {
    "adapters": (Adapter(rank=2),),
    "targets": ("*.o_proj", "*.up_proj"),
    "trained": ("*.weight", "*.lora_A.*"),
}
NAMES: dict[str, tuple[str, ...]] = {"name": ("another",)}  # texts that are of no table
OF_TYPE: dict[type, tuple[Any, ...]] = {bool: (True, False), int: (2, 3), float: (0.4,)}  # for a field without a value


def names_of(config: Any) -> list[str]:
    """The names of a config's fields, in order."""
    return [f.name for f in fields(config)]


def another(config: Any, name: str, place: Callable[[Any], Any] = lambda changed: changed) -> Any:
    """The config with another valid value in that field, or None if none is known. `place` puts it where it belongs and
    raises where it does not fit: a value that fits nowhere comes last, for then all must refuse it."""
    misfit = None
    for value in candidates(config, name):
        try:
            changed = config.with_(**{name: value})
        except UserError:
            continue
        if getattr(changed, name) == getattr(config, name):
            continue
        try:
            place(changed)
        except UserError:
            misfit = misfit or changed
            continue
        return changed
    return misfit


def candidates(config: Any, name: str) -> Iterator[Any]:
    """Values to try, nearest first: flags flip, whole numbers move by one or by a factor of two, floats by four."""
    value = getattr(config, name)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, 2 * value, value // 2)
    elif isinstance(value, float):
        yield from (FACTOR * value, value / FACTOR) if value else (0.25,)
    elif isinstance(value, str):
        for table in enumerations():
            yield from (other for other in table if value in table and other != value)
        yield from NAMES.get(name, ())
    elif is_dataclass(value):
        yield from filter(None, (another(value, inner) for inner in names_of(value)))
    elif name in TUPLES:
        yield from ((entry,) for entry in TUPLES[name])
    elif name in variants.PATTERNS and isinstance(value, tuple):
        yield from ((kind,) for kind in variants.PATTERNS[name])
    elif value is None:
        hint = typing.get_type_hints(type(config))[name]
        for kind in typing.get_args(hint) if isinstance(hint, types.UnionType) else ():
            yield from OF_TYPE.get(kind, (kind(),) if is_dataclass(kind) else ())


def enumerations() -> list[tuple[str, ...]]:
    """The tables of names in `common.config`, `training` and `variants`: DTYPES, ACTIVATIONS, SCALINGS, …"""
    found = [
        value
        for module in (models, training, sampling, *variants.modules())
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, tuple)
    ]
    return [table for table in found if all(isinstance(entry, str) for entry in table)]
