"""Safetensors: what is written is the library's own layout; every damage is one sentence."""

import errno
import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from common.errors import UserError
from common.weights import safetensors_io
from common.weights.stored import in_memory


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "b.weight": rng.standard_normal((5, 7)).astype(np.float32),
        "a.weight": rng.standard_normal((3, 4)).astype(ml_dtypes.bfloat16),
        "c.bias": rng.standard_normal(9),
        "d": rng.standard_normal(6).astype(np.float16),
        "n": np.array([1, -2, 3], np.int64),
        "flag": np.array([True, False]),
        "one": np.array(2.5, np.float32),
    }


@pytest.fixture
def stored(arrays):
    return {name: in_memory(array) for name, array in arrays.items()}


def test_bytes_are_those_of_the_library(tmp_path, arrays, stored):
    safetensors_io.write_file(tmp_path / "ours.safetensors", stored)
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert safetensors_io.metadata(tmp_path / "ours.safetensors") == {"format": "pt"}


def test_reads_whole_and_in_part(tmp_path, arrays, stored):
    safetensors_io.write_file(tmp_path / "x.safetensors", stored)
    found = safetensors_io.open_file(tmp_path / "x.safetensors")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        assert found[name].nbytes == array.nbytes
        assert np.array_equal(found[name].read(), array)
    part = (slice(1, 4), slice(2, 7))
    assert np.array_equal(found["b.weight"].read(part), arrays["b.weight"][part])
    assert np.array_equal(found["a.weight"].read((slice(0, 3), slice(1, 2))), arrays["a.weight"][:, 1:2])


def test_transposed_and_big_endian_arrays_are_written_with_their_values(tmp_path):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"t": in_memory(matrix.T), "s": in_memory(matrix[:, ::2])}
    safetensors_io.write_file(tmp_path / "x.safetensors", tensors)
    found = safetensors_io.open_file(tmp_path / "x.safetensors")
    assert np.array_equal(found["t"].read(), matrix.T)
    assert np.array_equal(found["s"].read(), matrix[:, ::2])


def test_shards_respect_the_limit_and_give_everything_back(tmp_path, arrays, stored):
    safetensors_io.write_folder(tmp_path, stored, max_shard_bytes=150)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        assert sum(t.nbytes for t in safetensors_io.open_file(tmp_path / shard).values()) <= 150
    found = safetensors_io.open_folder(tmp_path)
    assert set(found) == set(arrays)
    assert all(np.array_equal(found[name].read(), arrays[name]) for name in arrays)
    index = json.loads((tmp_path / safetensors_io.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_senseless_shard_sizes_are_refused(tmp_path, stored, limit, refused):
    with refused("largest size of a shard"):
        safetensors_io.write_folder(tmp_path, stored, max_shard_bytes=limit)


def _header(data: bytes) -> tuple[int, dict]:
    length = struct.unpack("<Q", data[:8])[0]
    return length, json.loads(data[8 : 8 + length])


def _with_header(data: bytes, change) -> bytes:
    length, header = _header(data)
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


DAMAGES = {
    "empty": lambda data: b"",
    "shorter than the length field": lambda data: data[:5],
    "header cut": lambda data: data[:40],
    "data cut by one byte": lambda data: data[:-1],
    "data cut to nothing": lambda data: data[: 8 + _header(data)[0]],
    "bytes behind the end": lambda data: data + b"x",
    "absurd header length": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "header length beyond the file": lambda data: struct.pack("<Q", 10**6) + data[8:],
    "header not JSON": lambda data: data[:8] + b"\x00" * _header(data)[0] + data[8 + _header(data)[0] :],
    "header a list": lambda data: struct.pack("<Q", 2) + b"[]" + data[8 + _header(data)[0] :],
    "offsets overlap": lambda data: _with_header(data, lambda h: h["d"].update(data_offsets=[0, 12])),
    "offsets reversed": lambda data: _with_header(data, lambda h: h["d"].update(data_offsets=[12, 0])),
    "offsets beyond the end": lambda data: _with_header(data, lambda h: h["d"].update(data_offsets=[0, 10**15])),
    "shape does not fit": lambda data: _with_header(data, lambda h: h["d"].update(shape=[7])),
    "shape overflows": lambda data: _with_header(data, lambda h: h["d"].update(shape=[2**62, 2**62])),
    "shape negative": lambda data: _with_header(data, lambda h: h["d"].update(shape=[-6])),
    "dtype unknown": lambda data: _with_header(data, lambda h: h["d"].update(dtype="F99")),
    "dtype without an array form": lambda data: _with_header(data, lambda h: h["flag"].update(dtype="F8_E4M3")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_one_sentence(tmp_path, stored, damage, refused):
    path = tmp_path / "x.safetensors"
    safetensors_io.write_file(path, stored)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with refused(str(path)):
        safetensors_io.open_file(path)


def test_missing_files_and_folders_are_one_sentence(tmp_path, refused):
    with refused("There is no safetensors file", "nowhere.safetensors"):
        safetensors_io.open_file(tmp_path / "nowhere.safetensors")
    with refused("is a folder"):
        safetensors_io.open_file(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with refused("model.safetensors", "pytorch_model.bin"):
        safetensors_io.open_folder(tmp_path)


INDEX_DAMAGES = {
    "not JSON": lambda index: "{",
    "deep nesting": lambda index: "[" * 100_000,
    "a list": lambda index: "[]",
    "no weight_map": lambda index: "{}",
    "weight_map a list": lambda index: '{"weight_map": []}',
    "a place that is no text": lambda index: '{"weight_map": {"a": 3}}',
    "missing shard": lambda index: index.replace("model-00002", "model-00009"),
    "path escape": lambda index: index.replace('"model-00002', '"../model-00002'),
    "absolute path": lambda index: index.replace('"model-00002', '"/model-00002'),
    "backslash": lambda index: index.replace('"model-00002', '"..\\\\model-00002'),
    "subfolder": lambda index: index.replace('"model-00002', '"sub/model-00002'),
    "folder itself": lambda index: json.dumps({"weight_map": {"d": "."}}),
    "empty name": lambda index: json.dumps({"weight_map": {"d": ""}}),
    "tensor that is nowhere": lambda index: index.replace('"n":', '"nn":'),
    "tensor left out": lambda index: json.dumps({"weight_map": _without(json.loads(index)["weight_map"], "n")}),
}


ESCAPES = ("path escape", "absolute path", "backslash", "subfolder", "folder itself", "empty name")


def _without(values: dict, name: str) -> dict:
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_damaged_indices_are_one_sentence(tmp_path, stored, damage, refused):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors_io.write_folder(folder, stored, max_shard_bytes=60)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)  # sound shards wherever an escape might lead
    shutil.copytree(folder, folder / "sub")
    path = folder / safetensors_io.INDEX
    path.write_text(INDEX_DAMAGES[damage](path.read_text()))
    words = ("not a plain file name",) if damage in ESCAPES else ()
    with refused(str(path), *words):
        safetensors_io.open_folder(folder)


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_old_file(tmp_path, stored, monkeypatch, failure):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def full(*_, **__):
        raise failure

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        safetensors_io.write_file(path, stored)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_a_failing_source_leaves_the_old_file(tmp_path, stored):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def broken(index=...):
        raise UserError("The source broke.")

    stored["d"] = type(stored["d"])(stored["d"].shape, stored["d"].dtype, broken)
    with pytest.raises(UserError, match="The source broke"):
        safetensors_io.write_file(path, stored)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
