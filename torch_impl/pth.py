"""State dicts in PyTorch's own file format, never unpickled beyond tensors and plain containers."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from common.errors import UserError
from common.files import replacing

WRAPPER = "model_state_dict"  # the book saves {"model_state_dict": ..., "optimizer_state_dict": ...}


def _refuse(path: Path, reason: object) -> UserError:
    text = " ".join(str(reason).split()).rstrip(".")
    return UserError(f"{path} is not a PyTorch state dict that can be read safely: {text}.")


def _check_archive(path: Path) -> None:
    """torch.save stores its members as they are; a compressed one could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                    raise _refuse(path, f"its member {member.filename} is compressed, which torch.save never does")
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _refuse(path, f"its archive is damaged ({error})") from error


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if is_archive:
        _check_archive(path)
    try:
        # Files in the format before torch 1.6 are no archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "weights_only" in str(error).lower():
            raise _refuse(path, "it holds Python objects, not only tensors; save model.state_dict() instead") from error
        raise _refuse(path, "it is not a pickle") from error
    except Exception as error:  # damage surfaces as many types: RuntimeError, EOFError, KeyError, ValueError, …
        raise _refuse(path, f"{type(error).__name__} while reading it") from error


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same memory as an array; bfloat16 as ml_dtypes' type."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """The same memory as a contiguous tensor, copied only if it is read-only or strided."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def read_state_dict(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, mapped from the file; the book's wrapper around it is taken off.

    Raises UserError for anything else: other pickles, damaged archives, values that are no dense tensors.
    """
    path = Path(path)
    found = _load(path)
    if isinstance(found, Mapping) and isinstance(found.get(WRAPPER), Mapping):
        found = found[WRAPPER]
    if not isinstance(found, Mapping) or not found:
        raise _refuse(path, f"it holds a {type(found).__name__}, expected a dictionary of tensors")
    arrays = {}
    for name, value in found.items():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
        if not isinstance(name, str) or not dense or value.device.type != "cpu":
            kind = type(value).__name__
            raise _refuse(path, f"its entry {name!r} is a {kind}, expected a name and a dense tensor")
        try:
            arrays[name] = to_numpy(value)
        except TypeError as error:
            raise _refuse(path, f"{name} has dtype {value.dtype}, which has no form outside PyTorch") from error
    return arrays


def write_state_dict(path: Path | str, mapping: Mapping[str, np.ndarray]) -> None:
    """Write a state dict that `torch.load(..., weights_only=True)` reads, all or nothing, the same bytes each time."""
    tensors = {name: from_numpy(mapping[name]) for name in mapping}
    # Into an open file: given a path, torch would write that temporary name into the archive.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(tensors, file)
        except RuntimeError as error:  # torch wraps a full disk in its own error
            raise OSError(" ".join(str(error).split())) from error
