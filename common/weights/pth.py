"""PyTorch state dicts (`.pth`): read and written by the torch backend, which this module reaches by name only."""

from collections.abc import Mapping
from pathlib import Path

from common import backend
from common.weights.damage import require_file
from common.weights.stored import Stored, in_memory


def open_pth(path: Path | str) -> dict[str, Stored]:
    """Every tensor of a state dict by name; the file stays mapped. Raises UserError where it is no state dict."""
    path = require_file(path, "PyTorch state dict")
    return {name: in_memory(array) for name, array in backend.load("torch").read_state_dict(path).items()}


def write_pth(path: Path | str, tensors: Mapping[str, Stored]) -> None:
    """Write a state dict, all or nothing; PyTorch's format needs all tensors in memory at once."""
    backend.load("torch").write_state_dict(path, {name: tensor.read() for name, tensor in tensors.items()})
