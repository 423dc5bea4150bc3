"""Modules that hold named NumPy parameters, so that the oracle reads like the wings. The oracle's own; no twin."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Module:
    """An object whose attributes are parameters (`Slot`), modules, or lists and dictionaries of modules."""

    def load(self, params: Mapping[str, np.ndarray], path: str = "") -> "Module":
        """Put `params[path + name]` into every parameter's place. Returns itself."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Module):
                value.load(params, f"{path}{name}.")
            elif isinstance(value, list):
                for index, child in enumerate(value):
                    child.load(params, f"{path}{name}.{index}.")
            elif isinstance(value, dict):
                for key, child in value.items():
                    child.load(params, f"{path}{name}.{key}.")
            elif isinstance(value, Slot):
                array = np.asarray(params[path + name])
                if array.shape != value.shape:
                    raise ValueError(f"{path}{name} has shape {array.shape}, expected {value.shape}")
                setattr(self, name, array)
        return self

    def at(self, path: str) -> Any:
        """The submodule at a dotted path; "" is the module itself."""
        module = self
        for name in filter(None, path.split(".")):
            if isinstance(module, (list, dict)):
                module = module[int(name) if isinstance(module, list) else name]
            else:
                module = getattr(module, name)
        return module


class Slot:
    """The place of a parameter, until it is loaded."""

    def __init__(self, *shape: int):
        self.shape = shape
