"""Inspection of every kind: the right rows and totals, and what a model nearly fits."""

import json
import math

import numpy as np
import pytest

from common import params
from common.config import GPTConfig
from common.weights import gpt2_names, safetensors_io
from common.weights.checkpoint import save_checkpoint
from common.weights.formats import convert
from common.weights.inspect import inspect
from common.weights.stored import in_memory

NANO = GPTConfig(256, 128, 128, 4, 4)
SCHEMES = {"hf": "hf", "parallax": "canonical", "safetensors": "hf", "pth": "book"}
PLACES = {"hf": "m", "parallax": "m", "safetensors": "m.safetensors", "pth": "m.pth"}


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano") / "start"
    save_checkpoint(folder, NANO, params.randomise(NANO, 0))
    return folder


@pytest.mark.parametrize("kind", PLACES)
def test_every_kind(kind, nano, tmp_path):
    path = tmp_path / PLACES[kind]
    convert(nano, path, to=kind)
    found = inspect(path)
    assert (found.kind, found.path) == (kind, str(path))
    assert found.scheme.name == SCHEMES[kind]
    assert found.scheme.exact
    assert found.preset.name == "nano"
    assert found.preset.exact == (kind != "pth")  # the book's form has an untied head
    copies = NANO.vocab_size * NANO.embed_dim if kind == "pth" else 0
    assert found.elements == params.count(NANO) + copies
    assert found.bytes == 4 * found.elements == sum(row.bytes for row in found.tensors)
    if kind != "pth":
        assert found.config == NANO
        assert found.metadata == {"format": "pt"}
    else:
        assert found.preset.differences == ("tie_embeddings False instead of True",)


def test_openai_folder(data_dir):
    found = inspect(data_dir / "openai_gpt2_tiny")
    assert (found.kind, found.scheme.name, found.scheme.exact, found.elements) == ("openai", "openai", True, 67920)
    assert found.config == GPTConfig(211, 24, 48, 2, 3)
    assert found.preset is None


def test_shards_and_training_state(nano, tmp_path):
    convert(nano, tmp_path / "m", max_shard_bytes=200_000)
    assert inspect(tmp_path / "m").elements == params.count(NANO)
    weights = params.randomise(NANO, 0)
    slots = {f"{name}.{slot}": value for name, value in weights.items() for slot in ("exp_avg", "exp_avg_sq")}
    save_checkpoint(tmp_path / "t", NANO, weights, slots, {"step": 3})
    notes = inspect(tmp_path / "t").notes
    assert any(f"{8 * params.count(NANO):,} bytes" in note for note in notes)
    assert any("step" in note for note in notes)


def test_text_and_json_agree_with_the_rows(nano):
    found = inspect(nano)
    text = found.to_text()
    assert "model.layers.3.mlp.up_proj.weight" in text
    assert "512 x 128" in text
    assert f"{found.elements:,}" in text
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["elements"] == params.count(NANO)
    assert plain["scheme"] == {"name": "canonical", "differences": [], "exact": True}
    assert plain["config"]["embed_dim"] == 128
    assert sum(math.prod(row["shape"]) for row in plain["tensors"]) == params.count(NANO)
    assert len(found.rows()) == len(plain["tensors"]) == len(params.table(NANO))


def test_near_misses_say_what_differs(tmp_path):
    config = NANO.with_(vocab_size=258)
    tensors = gpt2_names.from_canonical(gpt2_names.HF, config, params.randomise(config, 0))
    del tensors["transformer.ln_f.bias"]
    tensors["extra"] = in_memory(np.zeros(3, np.int64))
    safetensors_io.write_file(tmp_path / "x.safetensors", tensors)
    found = inspect(tmp_path / "x.safetensors")
    assert set(found.scheme.differences) == {"transformer.ln_f.bias is missing", "extra is not part of the model"}
    assert found.preset.name == "nano"
    assert found.preset.differences == ("vocab_size 258 instead of 256",)
    assert found.config is None  # the heads are not known
    assert "number of heads" in found.notes[0]
    assert "transformer.ln_f.bias is missing" in found.to_text()


def test_foreign_tensors_are_listed_all_the_same(tmp_path):
    safetensors_io.write_file(tmp_path / "x.safetensors", {"conv.weight": in_memory(np.zeros((2, 3), np.float16))})
    found = inspect(tmp_path / "x.safetensors")
    assert (found.scheme, found.preset, found.config) == (None, None, None)
    assert found.rows() == [("conv.weight", "float16", "2 x 3", "12")]
    assert "no known scheme" in found.to_text()
    (tmp_path / "m").mkdir()
    (tmp_path / "x.safetensors").rename(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    found = inspect(tmp_path / "m")
    assert found.kind == "hf"
    assert "llama" in found.notes[0]


def test_damage_is_still_an_error(nano, tmp_path, refused):
    path = convert(nano, tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with refused(str(path)):
        inspect(path)
    with refused("nowhere"):
        inspect(tmp_path / "nowhere")
