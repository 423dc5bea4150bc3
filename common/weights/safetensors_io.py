"""Safetensors files, single or sharded: lazy reading, atomic writing with one tensor in memory at a time.

The layout of a file is the library's own (github.com/huggingface/safetensors); headers are validated by it.
"""

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors looks up by name)
import numpy as np

from common.errors import UserError
from common.files import replacing, write_text
from common.weights.damage import damaged, one_line, read_json, require_file
from common.weights.stored import Index, Stored

METADATA = {"format": "pt"}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
_DTYPES |= {"I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"}
_DTYPES |= {"BOOL": "bool"}


def _handle(path: Path):
    from safetensors import SafetensorError, safe_open

    require_file(path, "safetensors file")
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise damaged(path, "safetensors file", reason) from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {one_line(error.strerror or error)}.") from error


def open_file(path: Path | str, mapped: bool = False) -> dict[str, Stored]:
    """Every tensor of one file by name, in the order of the data; nothing is read yet but the header. Whole tensors are
    read into memory of their own, or are pages of the file (`mapped`), of which a write makes a private copy."""
    path = Path(path)
    handle = _handle(path)
    data, found = (_Mapped if mapped else _Data)(path), {}
    for name in handle.keys():  # noqa: SIM118  (the handle is no mapping)
        view = handle.get_slice(name)
        kind = view.get_dtype()
        if kind not in _DTYPES:
            raise damaged(path, "file of weights", f"{name} has dtype {kind}, known are {', '.join(_DTYPES)}")

        shape, dtype = tuple(view.get_shape()), np.dtype(_DTYPES[kind])

        def read(index: Index = ..., name: str = name, shape=shape, dtype=dtype) -> np.ndarray:
            return data.read(name, shape, dtype) if index is ... else handle.get_slice(name)[index]

        found[name] = Stored(shape, dtype, read)
    return found


class _Data:
    """Whole tensors of a file that the library has checked, in memory of their own.

    What is mapped counts as this process's once it was read, and a model would be there twice while it is loaded.
    """

    def __init__(self, path: Path):
        self.path, self.lock, self.file = path, threading.Lock(), path.open("rb")
        size = int.from_bytes(self.file.read(8), "little")
        header = json.loads(self.file.read(size))
        self.starts = {
            name: 8 + size + one["data_offsets"][0] for name, one in header.items() if name != "__metadata__"
        }

    def read(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        found = np.empty(shape, dtype)
        with self.lock:
            self.file.seek(self.starts[name])
            count = self.file.readinto(found.reshape(-1).view(np.uint8))
        if count != found.nbytes:
            raise damaged(self.path, "safetensors file", f"it ends in the middle of {name}")
        return found

    def __del__(self):
        if hasattr(self, "file"):
            self.file.close()


class _Mapped(_Data):
    """Whole tensors as pages of the file, which the system reads when they are first touched."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.pages = np.memmap(path, np.uint8, "c")

    def read(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        start = self.starts[name]
        return self.pages[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def open_index(path: Path | str, mapped: bool = False) -> dict[str, Stored]:
    """Every tensor of a sharded model by name, in the order of its index; shards lie beside the index."""
    path = Path(path)
    places = read_json(path, "index of shards").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise damaged(path, "index of shards", '"weight_map" must give a file name for every tensor')
    shards = {}
    for place in sorted(set(places.values())):
        if PurePosixPath(place).name != place or place in ("", ".", "..") or set(place) & set("\\:\0"):
            raise damaged(path, "index of shards", f"shard {place!r} is not a plain file name beside the index")
        if not (path.parent / place).is_file():
            raise damaged(path, "index of shards", f"shard {place} is missing")
        shards[place] = open_file(path.parent / place, mapped)
    for name, place in places.items():
        if name not in shards[place]:
            raise damaged(path, "index of shards", f"{name} is not in {place}")
    for place, tensors in shards.items():
        for name in tensors:
            if places.get(name) != place:
                raise damaged(path, "index of shards", f"it does not say that {name} is in {place}")
    return {name: shards[place][name] for name, place in places.items()}


def open_folder(folder: Path | str, mapped: bool = False) -> dict[str, Stored]:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names."""
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        return open_file(folder / SINGLE, mapped)
    if (folder / INDEX).is_file():
        return open_index(folder / INDEX, mapped)
    others = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).exists()]
    hint = f"; it has {others[0]}, which can be loaded by its own path if it is a single file" if others else ""
    raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}{hint}.")


def metadata(path: Path | str) -> dict[str, str]:
    """The free-form metadata in a file's header."""
    return dict(_handle(Path(path)).metadata() or {})


def write_file(path: Path | str, tensors: Mapping[str, Stored], more: Mapping[str, str] | None = None) -> None:
    """Write one file, all or nothing; each tensor is read when its turn comes and dropped at once. `more` is metadata
    of one's own."""
    with replacing(path) as temporary:
        _write(temporary, tensors, METADATA | dict(more or {}))


def _write(path: Path, tensors: Mapping[str, Stored], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # The library lays the file out from one shared block of zeros; then each tensor goes to its place.
    zeros = np.zeros(max((tensor.nbytes for tensor in tensors.values()), default=0), np.uint8)
    layout = {name: zeros[: t.nbytes].view(t.dtype).reshape(t.shape) for name, t in tensors.items()}
    try:
        save_file(layout, path, metadata=metadata)
    except SafetensorError as error:  # the library wraps a full disk in its own error
        raise OSError(one_line(error)) from error
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if len(metadata) > 1:  # the library's order of them is another one every time
            header["__metadata__"] = metadata
            file.seek(8)
            file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))
        for name, tensor in tensors.items():
            array = np.ascontiguousarray(tensor.read())
            if array.dtype != tensor.dtype or array.size != tensor.size:
                raise UserError(f"{name} changed while it was written: it was {tensor.dtype} of {list(tensor.shape)}.")
            file.seek(8 + length + header[name]["data_offsets"][0])
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


def write_folder(folder: Path | str, tensors: Mapping[str, Stored], max_shard_bytes: int | None = None) -> None:
    """Write `model.safetensors`, or shards of at most that many bytes (a larger tensor has one alone) and an index."""
    folder = Path(folder)
    if max_shard_bytes is None:
        write_file(folder / SINGLE, tensors)
        return
    if isinstance(max_shard_bytes, bool) or not isinstance(max_shard_bytes, int) or max_shard_bytes < 1:
        raise UserError(f"The largest size of a shard is {max_shard_bytes!r}; allowed is a whole number of bytes > 0.")
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        write_file(folder / file, {name: tensors[name] for name in names})
    if split.is_sharded:
        total = {"total_parameters": sum(tensor.size for tensor in tensors.values())} | split.metadata
        index = {"metadata": total, "weight_map": split.tensor_to_filename}
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
