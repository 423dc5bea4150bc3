"""OpenAI's TensorFlow checkpoints without TensorFlow: a real one, and every way to damage it."""

import json
import shutil
import struct

import numpy as np
import pytest

from common import params
from common.config import GPTConfig
from common.errors import UserError
from common.weights import gpt2_names, tf_table
from common.weights.formats import convert, load
from common.weights.tensorflow import open_bundle, read_openai

PREFIX = "model.ckpt"
INDEX, DATA = f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001"


@pytest.fixture
def real(data_dir, tmp_path):
    """A copy of the real tiny checkpoint that a test may damage."""
    folder = tmp_path / "openai"
    folder.mkdir()
    for name in ("checkpoint", "hparams.json", INDEX, DATA):
        shutil.copyfile(data_dir / "openai_gpt2_tiny" / name, folder / name)
    return folder


def read_all(folder):
    config, weights = read_openai(folder)
    return config, {name: weights[name] for name in weights}


def test_real_checkpoint_reads(real):
    config, weights = read_all(real)
    assert config == GPTConfig(211, 24, 48, 2, 3)
    params.check(config, {name: value.shape for name, value in weights.items()}, "weights")
    raw = np.fromfile(real / DATA, np.float32)
    assert sum(value.size for value in weights.values()) == raw.size
    # the data lie in the order of the names: h0/attn/c_attn/b first, wte last
    assert np.array_equal(weights["model.layers.0.self_attn.q_proj.bias"], raw[:48])
    fused = raw[144 : 144 + 48 * 144].reshape(48, 144)
    assert np.array_equal(weights["model.layers.0.self_attn.v_proj.weight"], fused[:, 96:].T)
    assert np.array_equal(weights["model.embed_tokens.weight"], raw[-211 * 48 :].reshape(211, 48))


def test_converts_to_every_other_form_and_stays_the_same(real, tmp_path, same):
    want = read_all(real)[1]
    for target in ("hf", "x.pth", "x.safetensors"):
        convert(real, tmp_path / target)
        assert same(load(tmp_path / target, heads=3, tie=True).weights, want)
    convert(real, tmp_path / "own", to="parallax")
    assert same(load(tmp_path / "own").weights, want)


def test_every_flipped_byte_of_the_index_is_noticed(real):
    sound = (real / INDEX).read_bytes()
    rng = np.random.default_rng(0)
    for at in range(len(sound)):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << rng.integers(8)
        (real / INDEX).write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.ckpt"):
            read_all(real)


def test_flipped_bytes_of_the_data_are_noticed(real, refused):
    sound = (real / DATA).read_bytes()
    rng = np.random.default_rng(1)
    for at in {0, len(sound) - 1, *rng.integers(0, len(sound), 60).tolist()}:
        damaged = bytearray(sound)
        damaged[at] ^= 1 << rng.integers(8)
        (real / DATA).write_bytes(damaged)
        with refused(PREFIX, "do not match their checksum"):
            read_all(real)


def test_truncations_are_noticed(real, refused):
    for name, step in ((INDEX, 7), (DATA, 20_011)):
        sound = (real / name).read_bytes()
        for size in range(0, len(sound), step):
            (real / name).write_bytes(sound[:size])
            with refused(PREFIX):
                read_all(real)
        (real / name).write_bytes(sound)
    assert read_all(real)[0].num_layers == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hparams.json", None),
        ("hparams.json", "{"),
        ("hparams.json", "[1]"),
        ("hparams.json", '{"n_vocab": 211}'),
        ("hparams.json", '{"n_vocab": 211, "n_ctx": 24, "n_embd": 48, "n_head": 5, "n_layer": 2}'),
        ("hparams.json", '{"n_vocab": 211, "n_ctx": 24, "n_embd": 48, "n_head": 3, "n_layer": 3}'),
        ("hparams.json", '{"n_vocab": 210, "n_ctx": 24, "n_embd": 48, "n_head": 3, "n_layer": 2}'),
        ("checkpoint", ""),
        ("checkpoint", 'model_checkpoint_path: "other.ckpt"'),
        ("checkpoint", 'model_checkpoint_path: ".."'),
        (INDEX, None),
        (DATA, None),
    ],
)
def test_missing_and_wrong_companions(real, name, text, refused):
    (real / name).unlink()
    if text is not None:
        (real / name).write_text(text)
    with refused(str(real)):
        read_all(real)


def test_the_record_cannot_lead_out_of_the_folder(real):
    (real / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/../model.ckpt"\n')
    assert read_all(real)[0].num_layers == 2
    (real / "checkpoint").unlink()
    assert read_all(real)[0].num_layers == 2


# A writer of such tables, to make damage that keeps every checksum right.


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(key: int, value: int) -> bytes:
    return varint(key << 3) + varint(value)


def nested(key: int, value: bytes) -> bytes:
    return varint(key << 3 | 2) + varint(len(value)) + value


def entry(shape, raw: bytes, *, dtype=1, shard=0, offset=0, size=None, checksum=None, extra=b"") -> bytes:
    dims = b"".join(nested(2, number(1, length)) for length in shape)
    checksum = tf_table.masked(tf_table.crc32c(raw)) if checksum is None else checksum
    size = len(raw) if size is None else size
    fields = number(1, dtype) + nested(2, dims) + number(3, shard) + number(4, offset) + number(5, size)
    return fields + varint(6 << 3 | 5) + struct.pack("<I", checksum) + extra


def table(pairs, kind: int = 0, block: bytes | None = None) -> bytes:
    """The bytes of a table with one data block."""

    def pack(items):
        body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in items)
        return body + struct.pack("<II", 0, 1)

    out = bytearray()

    def put(content: bytes, kind: int = 0) -> bytes:
        offset = len(out)
        checked = content + bytes([kind])
        out.extend(checked + struct.pack("<I", tf_table.masked(tf_table.crc32c(checked))))
        return varint(offset) + varint(len(content))

    data = put(pack(pairs) if block is None else block, kind)
    meta = put(pack([]))
    index = put(pack([(b"\xff", data)]))
    out += (meta + index).ljust(40, b"\0") + struct.pack("<Q", tf_table.MAGIC)
    return bytes(out)


RAW = np.arange(6, dtype=np.float32).tobytes()
HEADER = number(1, 1)


def test_the_tests_own_writer_makes_sound_tables(tmp_path):
    (tmp_path / DATA).write_bytes(b"pad" + RAW)
    (tmp_path / INDEX).write_bytes(table([(b"", HEADER), (b"w", entry((2, 3), RAW, offset=3))]))
    tensors = open_bundle(tmp_path / PREFIX)
    assert np.array_equal(tensors["w"].read(), np.arange(6, dtype=np.float32).reshape(2, 3))  # from an odd offset


FORGED = {
    "compressed block": (table([(b"", HEADER)], kind=1), "compressed"),
    "no header": (table([(b"w", entry((6,), RAW))]), "header is missing"),
    "keys out of order": (table([(b"w", entry((6,), RAW)), (b"a", b"")]), "order"),
    "too many shards": (table([(b"", number(1, 10**9))]), "data shards"),
    "no shards": (table([(b"", b"")]), "data shards"),
    "missing shard": (table([(b"", number(1, 2))]), "missing"),
    "big-endian": (table([(b"", HEADER + number(2, 1))]), "big-endian"),
    "header of another type": (table([(b"", nested(1, b"x"))]), "wrong type"),
    "entry beyond the shard": (table([(b"", HEADER), (b"w", entry((6,), RAW, offset=1))]), "ends at byte 25"),
    "entry far beyond": (table([(b"", HEADER), (b"w", entry((6,), RAW, offset=2**63))]), "ends at byte"),
    "shard number": (table([(b"", HEADER), (b"w", entry((6,), RAW, shard=3))]), "shard 3 of 1"),
    "unknown dtype": (table([(b"", HEADER), (b"w", entry((6,), RAW, dtype=7))]), "dtype 7 is unknown"),
    "size of another shape": (table([(b"", HEADER), (b"w", entry((7,), RAW))]), "must take 28 bytes"),
    "negative axis": (table([(b"", HEADER), (b"w", entry((2**64 - 1,), RAW))]), "must take"),
    "thousand axes": (table([(b"", HEADER), (b"w", entry((1,) * 1000, RAW))]), "1000 axes"),
    "slices": (table([(b"", HEADER), (b"w", entry((6,), RAW, extra=nested(7, b"")))]), "slices"),
    "unknown wire type": (table([(b"", HEADER), (b"w", entry((6,), RAW, extra=varint(9 << 3 | 3)))]), "wire type"),
    "field runs out": (
        table([(b"", HEADER), (b"w", entry((6,), RAW, extra=varint(9 << 3 | 2) + b"\x09x"))]),
        "runs past",
    ),
    "number too long": (table([(b"", HEADER), (b"w", b"\xff" * 11)]), "longer than 64 bits"),
    "restarts": (table([], block=struct.pack("<I", 2**31)), "restart array"),
    "block too short": (table([], block=b"x"), "too short"),
    "entry runs out": (table([], block=b"\x00\x7f\x00k" + struct.pack("<II", 0, 1)), "runs past"),
    "prefix of nothing": (table([], block=b"\x05\x01\x00k" + struct.pack("<II", 0, 1)), "runs past"),
}


@pytest.mark.parametrize("damage", FORGED)
def test_forged_tables_with_right_checksums_are_refused(tmp_path, damage, refused):
    data, words = FORGED[damage]
    (tmp_path / DATA).write_bytes(RAW)
    (tmp_path / INDEX).write_bytes(data)
    with refused(INDEX, words):
        open_bundle(tmp_path / PREFIX)


def test_two_shards_and_other_dtypes(tmp_path):
    halves = np.arange(4, dtype=np.float16)
    for shard, raw in enumerate((RAW, halves.tobytes())):
        (tmp_path / f"{PREFIX}.data-0000{shard}-of-00002").write_bytes(raw)
    pairs = [(b"", number(1, 2)), (b"a", entry((6,), RAW)), (b"b", entry((2, 2), halves.tobytes(), dtype=19, shard=1))]
    (tmp_path / INDEX).write_bytes(table(pairs))
    tensors = open_bundle(tmp_path / PREFIX)
    assert np.array_equal(tensors["b"].read((slice(0, 2), slice(1, 2))), [[1], [3]])
    assert tensors["b"].dtype == np.float16


def test_a_whole_model_written_by_the_test_reads_back(tmp_path, same):
    config = GPTConfig(13, 5, 8, 1, 2)
    want = params.randomise(config, 4)
    tensors = gpt2_names.from_canonical(gpt2_names.OPENAI, config, want)
    data, pairs = b"", [(b"", HEADER)]
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name].read()).tobytes()
        pairs.append((name.encode(), entry(tensors[name].shape, raw, offset=len(data))))
        data += raw
    (tmp_path / DATA).write_bytes(data)
    (tmp_path / INDEX).write_bytes(table(pairs))
    hparams = {"n_vocab": 13, "n_ctx": 5, "n_embd": 8, "n_head": 2, "n_layer": 1}
    (tmp_path / "hparams.json").write_text(json.dumps(hparams))
    assert same(read_all(tmp_path)[1], want)
