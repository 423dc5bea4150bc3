"""Ways to get weights from a file into a model: what of them is in memory meanwhile, how often, and who reads it.

After the book's bonus material on loading weights. Its ways over a device and over the host are one here, for arrays
cross the door on the host, and a file for each tensor is no way of its own: safetensors gives single tensors anyway.
Models are made without numbers (on PyTorch's meta device, by `nnx.eval_shape`) but where it says so.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from common import params
from common.backend import Backend, Model, pick
from common.config import Execution, ModelConfig
from common.errors import UserError
from common.params import LazyWeights
from common.weights import safetensors_io
from common.weights.stored import StoredWeights


def tensor_by_tensor(wing: Backend, config: ModelConfig, path: Path, execution: Execution) -> Model:
    """Every tensor is read, put in its place, and dropped: the model and one tensor. What all commands do."""
    return wing.build(config, opened(path), execution)


def all_at_once(wing: Backend, config: ModelConfig, path: Path, execution: Execution) -> Model:
    """The whole file is read first: it and the model."""
    return wing.build(config, _everything(path), execution)


def initialised_first(wing: Backend, config: ModelConfig, path: Path, execution: Execution) -> Model:
    """A model with initial weights; then the whole file is read, and written over them: both, and the time for numbers
    that nobody needs. As state dicts are loaded by those who think of nothing else."""
    model = wing.build(config, params.initialise(config, 0), execution)
    model.refill(_everything(path))
    return model


def mapped(wing: Backend, config: ModelConfig, path: Path, execution: Execution) -> Model:
    """Tensors are copied out of the mapped file, without being read into memory of their own before: its pages count as
    the process's, but the system takes them back when memory is short."""
    return wing.build(config, opened(path, mapped=True), execution)


def mapped_and_kept(wing: Backend, config: ModelConfig, path: Path, execution: Execution) -> Model:
    """Parameters are pages of the mapped file: nothing is read before it is used, and what is written (a step of
    training) becomes memory of one's own. The file must stay as it is. PyTorch on a CPU."""
    if not hasattr(wing, "keep"):
        raise UserError(f"{wing.title} computes with memory of its own; weights that stay mapped are PyTorch's.")
    if execution.layout or execution.base != "plain":
        raise UserError("Weights stay mapped in one process and in all their bits: leave layout and base out.")
    tensors = opened(path, mapped=True)
    kept = {name: lambda name=name: wing.keep(tensors[name], execution) for name in tensors}
    return wing.build(config, LazyWeights(kept), execution)


Way = Callable[[Backend, ModelConfig, Path, Execution], Model]
WAYS: dict[str, Way] = {
    "tensor by tensor": tensor_by_tensor,
    "all at once": all_at_once,
    "initialised first": initialised_first,
    "mapped": mapped,
    "mapped and kept": mapped_and_kept,
}


def load(
    wing: Backend, config: ModelConfig, path: Path | str, execution: Execution, how: str = "tensor by tensor"
) -> Model:
    """A model with the weights of a safetensors file (or a folder of them), by one of WAYS. Tensors have the names of
    the parameter table."""
    return pick("way to load weights", how, WAYS)(wing, config, Path(path), execution)


def opened(path: Path, mapped: bool = False) -> StoredWeights:
    """The weights of a file or folder, each read when it is asked for."""
    found = (safetensors_io.open_folder if path.is_dir() else safetensors_io.open_file)(path, mapped)
    return StoredWeights(found)


def _everything(path: Path) -> Mapping[str, np.ndarray]:
    tensors = opened(path)
    return {name: tensors[name] for name in tensors}
