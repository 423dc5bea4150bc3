"""Who is timed: a backend or another library's model, and the mode in which it runs."""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common import backend as door
from common.config import Execution, ModelConfig
from common.errors import UserError, unknown
from common.points import entry_points

OUTSIDE = "parallax.contenders"  # entry points of what is timed beside the wings; see benchmarks/outside


@dataclass(frozen=True)
class Contender:
    """One arm of a contest. `source` is the name of a backend, of an entry point in OUTSIDE, or "module:attribute";
    `mode` says how it runs and `options` are the fields of `Execution` that make it so. A `lower_bound` is as
    little as its framework needs for the task: others are held against it, and it wins nothing. `allowed` are
    relative errors of outputs that its library computes worse than the precision could. `dtype` is its own precision,
    and `config` its own model, where these are not its cell's.
    """

    name: str
    title: str
    source: str
    wing: str
    mode: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    lower_bound: bool = False
    allowed: Mapping[str, float] = field(default_factory=dict, hash=False)
    dtype: str | None = None
    config: ModelConfig | None = None

    def line(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
        """Who this is and how it computes, as its line of the record has it."""
        about = {"name": self.name, "title": self.title, "wing": self.wing, "mode": self.mode}
        return {**about, "lower_bound": self.lower_bound, "settings": settings, "versions": versions}

    def execution(self, dtype: str, device: str, threads: int) -> Execution:
        """How it runs in a cell of that precision."""
        return Execution(dtype=self.dtype or dtype, device=device, threads=threads, **self.options)


@functools.cache
def load(name: str) -> Any:
    """The backend of that name, ours or an outside one, or "module:attribute"; imports its framework now."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)
    for point in entry_points(group=OUTSIDE):
        if point.name == name:
            try:
                return point.load()
            except ImportError as error:
                raise UserError(f"{name} cannot be timed: {error}.") from error
    if name not in door.names():
        raise unknown("backend", name, (*door.names(), *(point.name for point in entry_points(group=OUTSIDE))))
    return door.load(name)


def numpy(value: Any) -> np.ndarray:
    """An output on the host, bfloat16 widened."""
    if hasattr(value, "detach"):
        value = value.detach()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).cpu().numpy()
    array = np.asarray(value)
    return array if array.dtype.kind in "fiub" and array.dtype.itemsize > 0 else array.astype(np.float32)


def settings(backend: Any, model: Any, *shape: Any) -> dict[str, Any]:
    """How a model computes: precisions, kernels (for calls of a cell's `shape`), threads and the framework's switches,
    as read back from it."""
    execution = model.execution
    precision = execution.precision
    told = {"param": precision.param, "compute": precision.compute, "reduce": precision.reduce}
    chosen = {k: v for k, v in execution.to_dict().items() if k not in ("dtype", "threads") and v is not None}
    about = model.about(*shape) if hasattr(model, "about") else {}
    return {**told, **chosen, "threads": backend.threads(), **backend.flags(), **about}
