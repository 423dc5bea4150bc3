"""OpenAI's original GPT-2 checkpoints (TensorFlow's V2 format), read without TensorFlow.

An index maps names to entries (dtype, shape, shard, offset, size, checksum); the values lie raw in the shards. Source:
TensorFlow, core/protobuf/tensor_bundle.proto and core/util/tensor_bundle.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from common.config import GPTConfig
from common.errors import UserError
from common.weights import gpt2_names
from common.weights.damage import damaged, one_line, read_bytes, read_json
from common.weights.stored import Index, Stored, StoredWeights
from common.weights.tf_table import WHAT, Fault, crc32c, masked, read_table, varint

_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 14: ml_dtypes.bfloat16, 19: np.float16}
_HPARAMS = {
    "n_vocab": "vocab_size",
    "n_ctx": "context_length",
    "n_embd": "embed_dim",
    "n_layer": "num_layers",
    "n_head": "num_heads",
}
_MAX_SHARDS = 1000
_MAX_AXES = 8
_CHUNK = 2**20  # bytes checked at once


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of a protocol-buffer message (varint, fixed 32 and 64 bits, bytes)."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise Fault(f"a field has the unknown wire type {wire}")
        length, at = varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + length > len(data):
            raise Fault("a field runs past the end of its message")
        content = data[at : at + length]
        yield number, content if wire == 2 else int.from_bytes(content, "little")
        at += length


def _typed(value: int | bytes, kind: type) -> int | bytes:
    if not isinstance(value, kind):
        raise Fault("a field has the wrong type")
    return value


@dataclass
class _Entry:
    """BundleEntryProto: where one tensor lies."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0


def _parse_entry(data: bytes) -> _Entry:
    entry = _Entry()
    plain = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
    for number, value in _fields(data):
        if number in plain:
            setattr(entry, plain[number], _typed(value, int))
        elif number == 2:
            for part, dim in _fields(_typed(value, bytes)):
                if part == 2:
                    sizes = [size for name, size in _fields(_typed(dim, bytes)) if name == 1]
                    entry.shape.append(_typed(sizes[-1], int) if sizes else 0)
                elif part == 3 and dim:
                    raise Fault("its shape is unknown")
        elif number == 7:
            raise Fault("it is saved in slices, which GPT-2's checkpoints are not")
    return entry


def _shards(prefix: Path, header: bytes) -> list[np.ndarray]:
    """The shards as mapped bytes, as many as the header says."""
    values = dict(_fields(header))
    count = _typed(values.get(1, 0), int)
    if values.get(2, 0) != 0:
        raise Fault("its numbers are big-endian")
    if not 1 <= count <= _MAX_SHARDS:
        raise Fault(f"it speaks of {count} data shards, allowed are 1 to {_MAX_SHARDS}")
    shards = []
    for number in range(count):
        path = prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{count:05d}")
        if not path.is_file():
            raise Fault(f"the data shard {path.name} is missing")
        try:
            empty = path.stat().st_size == 0
            shards.append(np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r"))
        except OSError as error:
            raise UserError(f"Cannot read {path}: {one_line(error.strerror or error)}.") from error
    return shards


def _tensor(name: str, entry: _Entry, shards: list[np.ndarray], place: Path) -> Stored:
    """One entry as a stored tensor, its bounds checked now and its checksum when it is first read."""
    if entry.dtype not in _DTYPES:
        raise Fault(f"the dtype {entry.dtype} is unknown")
    dtype, shape = np.dtype(_DTYPES[entry.dtype]), tuple(entry.shape)
    if len(shape) > _MAX_AXES:
        raise Fault(f"its shape has {len(shape)} axes")
    if (size := math.prod(shape) * dtype.itemsize) != entry.size:
        raise Fault(f"the shape {list(shape)} must take {size} bytes, but {entry.size} are given")
    if entry.shard >= len(shards):
        raise Fault(f"it lies in shard {entry.shard} of {len(shards)}")
    if entry.offset + entry.size > len(shards[entry.shard]):
        raise Fault(f"it ends at byte {entry.offset + entry.size} of a data shard of {len(shards[entry.shard])}")
    raw = shards[entry.shard][entry.offset : entry.offset + entry.size]
    sound = False

    def read(index: Index = ...) -> np.ndarray:
        nonlocal sound
        if not sound:
            crc = 0
            for start in range(0, len(raw), _CHUNK):
                crc = crc32c(raw[start : start + _CHUNK].tobytes(), crc)
            if masked(crc) != entry.checksum:
                raise damaged(place, "TensorFlow checkpoint", f"the data of {name} do not match their checksum")
            sound = True
        return np.asarray(raw).view(dtype).reshape(shape)[index]

    return Stored(shape, dtype, read)


def open_bundle(prefix: Path | str) -> dict[str, Stored]:
    """Every tensor of the checkpoint `<prefix>.index`, `<prefix>.data-*` by name; UserError where it is damaged."""
    prefix = Path(prefix)
    path = prefix.with_name(prefix.name + ".index")
    table = read_table(path)
    try:
        if b"" not in table:
            raise Fault("its header is missing")
        shards = _shards(prefix, table.pop(b""))
        found = {}
        for key, value in table.items():
            name = key.decode("utf-8", errors="replace")
            try:
                found[name] = _tensor(name, _parse_entry(value), shards, prefix)
            except Fault as fault:
                raise Fault(f"{name}: {fault}") from fault
    except Fault as fault:
        raise damaged(path, WHAT, fault) from fault
    return found


def _prefix(folder: Path) -> Path:
    """Where `checkpoint` says the model lies; only the last part of its path counts, so it cannot leave the folder."""
    if (folder / "checkpoint").is_file():
        text = read_bytes(folder / "checkpoint", "checkpoint record", 2**20).decode("utf-8", errors="replace")
        match = re.search(r'^model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
        name = re.split(r"[/\\]", match[1])[-1] if match else ""
        if name in ("", ".", "..") or "\0" in name:
            raise damaged(folder / "checkpoint", "checkpoint record", "it names no model_checkpoint_path")
        return folder / name
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        raise UserError(f"{folder} needs a file named checkpoint or exactly one *.index; it has {len(found)} of them.")
    return found[0].with_suffix("")


def read_config(folder: Path | str) -> GPTConfig:
    """The config that `hparams.json` describes: tied head, biases everywhere, the tanh form of GELU."""
    path = Path(folder) / "hparams.json"
    values = read_json(path, "file of hyperparameters")
    missing = [name for name in _HPARAMS if name not in values]
    if missing:
        raise damaged(path, "file of hyperparameters", f"{', '.join(missing)} must be there")
    try:
        return GPTConfig(**{ours: values[theirs] for theirs, ours in _HPARAMS.items()})
    except UserError as error:
        raise damaged(path, "file of hyperparameters", error) from error


def open_openai(folder: Path | str) -> dict[str, Stored]:
    """The tensors of an OpenAI folder under TensorFlow's names."""
    return open_bundle(_prefix(Path(folder)))


def read_openai(folder: Path | str) -> tuple[GPTConfig, StoredWeights]:
    """Config and canonical weights of an OpenAI folder; tensors are mapped, and verified when first read."""
    config = read_config(folder)
    return config, gpt2_names.to_canonical(gpt2_names.OPENAI, config, open_openai(folder), folder)
