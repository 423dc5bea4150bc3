"""Parallax's own checkpoints: exact, complete or not there at all."""

import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest

from common import params
from common.config import TrainConfig
from common.errors import UserError
from common.weights import safetensors_io
from common.weights.checkpoint import load_checkpoint, save_checkpoint
from common.weights.formats import load


@pytest.fixture
def slots(tiny):
    rng = np.random.default_rng(5)
    return {
        f"{name}.{slot}": rng.standard_normal(p.shape).astype(np.float32)
        for name, p in params.table(tiny).items()
        for slot in ("exp_avg", "exp_avg_sq")
    }


TRAINING = {"step": 7, "train": TrainConfig().to_dict(), "data": {"epoch": 1, "offset": 12345678901234567890, "x": 0.1}}


@pytest.mark.parametrize("change", [{}, {"qkv_bias": False}, {"tie_embeddings": False}, {"dropout_attn": 0.1}])
def test_everything_comes_back_exactly(change, tiny, slots, tmp_path, same, contents):
    config = tiny.with_(**change)
    weights = params.randomise(config, 2)
    slots = {name: value for name, value in slots.items() if name.rpartition(".")[0] in weights}
    for name in weights:
        for slot in ("exp_avg", "exp_avg_sq"):
            slots.setdefault(f"{name}.{slot}", np.ones_like(weights[name]))
    save_checkpoint(tmp_path / "a", config, weights, slots, TRAINING)
    found = load_checkpoint(tmp_path / "a")
    assert found.config == config
    assert found.training == TRAINING
    assert same(found.weights, weights)
    assert set(found.slots) == set(slots)
    assert all(np.array_equal(found.slots[name], slots[name]) for name in slots)
    save_checkpoint(tmp_path / "b", found.config, found.weights, found.slots, found.training)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_weights_alone_and_other_dtypes(tiny, weights, tmp_path):
    halves = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}
    save_checkpoint(tmp_path / "a", tiny, halves)
    found = load_checkpoint(tmp_path / "a")
    assert found.slots is None
    assert found.training is None
    assert all(
        found.weights[n].dtype == ml_dtypes.bfloat16 and np.array_equal(found.weights[n], halves[n]) for n in halves
    )
    assert sorted(item.name for item in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert load(tmp_path / "a").kind == "parallax"


def test_a_lazy_source_is_saved_exactly(tiny, tmp_path, same):
    save_checkpoint(tmp_path / "a", tiny, params.initialise(tiny, 3))
    assert same(load_checkpoint(tmp_path / "a").weights, dict(params.initialise(tiny, 3)))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_failed_save_leaves_the_old_one_and_no_litter(file, tiny, weights, slots, tmp_path, monkeypatch, contents):
    save_checkpoint(tmp_path / "a", tiny, weights, slots, {"step": 1})
    before = contents(tmp_path / "a")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write_file, write_text = safetensors_io.write_file, type(tmp_path).write_text

    def failing_file(path, *rest):
        if path.name == file:
            raise full
        write_file(path, *rest)

    def failing_text(path, *rest, **named):
        if path.name == file:
            raise full
        return write_text(path, *rest, **named)

    monkeypatch.setattr(safetensors_io, "write_file", failing_file)
    monkeypatch.setattr(type(tmp_path), "write_text", failing_text)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(tmp_path / "a", tiny, params.randomise(tiny, 9), slots, {"step": 2})
    assert contents(tmp_path / "a") == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_renaming_brings_the_old_one_back(failing, tiny, weights, tmp_path, monkeypatch, contents):
    save_checkpoint(tmp_path / "a", tiny, weights)
    before, rename, calls = contents(tmp_path / "a"), os.rename, []

    def sometimes(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    monkeypatch.setattr(os, "rename", sometimes)
    monkeypatch.setattr("common.files._exchanged", lambda one, other: False)
    with pytest.raises(UserError, match="Permission denied"):
        save_checkpoint(tmp_path / "a", tiny, params.randomise(tiny, 9))
    assert contents(tmp_path / "a") == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_an_interrupted_save_leaves_the_old_one(tiny, weights, tmp_path, contents):
    save_checkpoint(tmp_path / "a", tiny, weights)
    before = contents(tmp_path / "a")

    class Interrupted(dict):
        reads = 0

        def __getitem__(self, name):
            self.reads += 1
            if self.reads > 40:  # shapes are asked for first: this is in the middle of writing
                raise KeyboardInterrupt
            return super().__getitem__(name)

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "a", tiny, Interrupted(params.randomise(tiny, 9)))
    assert contents(tmp_path / "a") == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_an_older_optimizer_state_does_not_linger(tiny, weights, slots, tmp_path):
    save_checkpoint(tmp_path / "a", tiny, weights, slots, {"step": 1})
    save_checkpoint(tmp_path / "a", tiny, weights)
    assert load_checkpoint(tmp_path / "a").slots is None


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tiny, weights, slots, tmp_path, refused):
    with refused("JSON"):
        save_checkpoint(tmp_path / "a", tiny, weights, training={"x": object()})
    slots.pop("model.norm.weight.exp_avg")
    slots["model.norm.weight.step"] = np.ones(1)
    slots["model.norm.bias.exp_avg"] = np.ones(3)
    with refused("norm.weight.exp_avg is missing", "norm.weight.step is not part", "norm.bias.exp_avg has shape [3]"):
        save_checkpoint(tmp_path / "a", tiny, weights, slots)
    with refused("model.norm.bias is missing"):
        save_checkpoint(tmp_path / "a", tiny, {n: v for n, v in weights.items() if n != "model.norm.bias"})
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_not_replaced(tiny, weights, tmp_path, refused):
    (tmp_path / "notes.txt").write_text("mine")
    with refused("notes.txt"):
        save_checkpoint(tmp_path, tiny, weights)
    with refused("is a file"):
        save_checkpoint(tmp_path / "notes.txt", tiny, weights)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", lambda c: {}),
        ("config.json", lambda c: c | {"format": "other"}),
        ("config.json", lambda c: c | {"format": ["parallax"]}),
        ("config.json", lambda c: c | {"version": 2}),
        ("config.json", lambda c: {k: v for k, v in c.items() if k != "model"}),
        ("config.json", lambda c: c | {"model": c["model"] | {"family": "llama9"}}),
        ("config.json", lambda c: c | {"model": c["model"] | {"family": []}}),
        ("config.json", lambda c: c | {"model": c["model"] | {"num_layers": 3}}),
        ("config.json", lambda c: c | {"model": c["model"] | {"num_layers": 10**15}}),
        ("config.json", lambda c: c | {"model": c["model"] | {"nmu_layers": 3}}),
        ("config.json", lambda c: c | {"model": {"family": "gpt"}}),
        ("config.json", lambda c: c | {"model": c["model"] | {"activation": {}}}),
        ("config.json", None),
        ("training.json", None),
        ("training.json", lambda c: []),
        ("model.safetensors", None),
        ("optimizer.safetensors", None),
    ],
)
def test_damaged_checkpoints_are_one_sentence(file, change, tiny, weights, slots, tmp_path, refused):
    save_checkpoint(tmp_path / "a", tiny, weights, slots, {"step": 1})
    path = tmp_path / "a" / file
    if change is None:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with refused(str(tmp_path / "a")):
        load_checkpoint(tmp_path / "a")


def test_missing_parts(tiny, weights, slots, tmp_path, refused):
    save_checkpoint(tmp_path / "a", tiny, weights, slots)
    safetensors_io.write_file(tmp_path / "a" / "optimizer.safetensors", {})
    with refused("optimizer.safetensors does not fit", "exp_avg_sq is missing"):
        load_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with refused("model.safetensors"):
        load_checkpoint(tmp_path / "a")
    with refused("There is no checkpoint config"):
        load_checkpoint(tmp_path / "nowhere")
