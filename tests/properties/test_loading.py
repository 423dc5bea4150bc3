"""Every way to load weights gives the same bits; what a wing cannot do is refused."""

import re

import numpy as np
import pytest

from common import backend, params
from common.config import Execution, TrainConfig
from common.errors import UserError
from common.weights import loading, safetensors_io
from common.weights.stored import stored

ONE_SIDED = {("jax", "mapped and kept")}


@pytest.fixture(params=["file", pytest.param("shards", marks=pytest.mark.full)])
def place(request, small, tmp_path):
    """(what was written, where)."""
    weights = params.randomise(small, 3)
    if request.param == "shards":
        safetensors_io.write_folder(tmp_path, stored(weights), max_shard_bytes=20_000)
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        return weights, tmp_path
    safetensors_io.write_file(tmp_path / "weights.safetensors", stored(weights))
    return weights, tmp_path / "weights.safetensors"


@pytest.mark.parametrize("how", loading.WAYS)
def test_every_way_gives_the_same_bits(wing, small, place, how):
    """Also after a step of training, which leaves the file as it was."""
    weights, path = place
    execution = Execution(dtype="float32")
    if (wing, how) in ONE_SIDED:
        with pytest.raises(UserError, match="JAX computes with memory of its own"):
            loading.load(backend.load(wing), small, path, execution, how)
        return
    model = loading.load(backend.load(wing), small, path, execution, how)
    found = model.weights()
    assert set(found) == set(weights)
    assert all(np.array_equal(found[name], array) for name, array in weights.items())
    if "mapped" in how:
        ids = np.arange(8, dtype=np.int32)[None] % small.vocab_size
        model.start_training(TrainConfig(steps=1, warmup_steps=0, learning_rate=0.1))
        model.train_step(ids, np.roll(ids, -1, 1))
        assert not np.array_equal(model.weights()["model.norm.weight"], weights["model.norm.weight"])
        again = loading.opened(path)
        assert all(np.array_equal(again[name], array) for name, array in weights.items())


@pytest.mark.full_for("jax-scan")
@pytest.mark.parametrize("layers", ["loop", "scan"])
def test_other_weights_are_written_over_those_of_a_model(wing, small, layers, fresh_model):
    """What it decodes with follows; wrong names and shapes are refused."""
    if (wing, layers) == ("torch", "scan"):
        layers = "checkpointed"
    first, second = params.randomise(small, 1), params.randomise(small, 2)
    model, other = (fresh_model(wing, small, "float32", w, layers=layers) for w in (first, second))
    ids = np.arange(8, dtype=np.int32)[None] % small.vocab_size
    assert model.forward(ids).logits.tobytes() != other.forward(ids).logits.tobytes()
    model.refill(second)
    assert np.array_equal(model.forward(ids).logits, other.forward(ids).logits)
    assert all(np.array_equal(array, second[name]) for name, array in model.weights().items())
    with pytest.raises(UserError, match=re.escape("model.norm.weight is missing")):
        model.refill({name: array for name, array in second.items() if name != "model.norm.weight"})


@pytest.mark.parametrize(
    ("how", "execution", "words"),
    [
        (
            "mapped and kept",
            Execution(dtype="float64"),
            "Parameters in float64 on cpu cannot be the memory of an array",
        ),
        ("mapped and kept", Execution(base="nf4"), "leave layout and base out"),
        ("initialised first", Execution(base="nf4"), "Models in 4 bits or on several devices take other weights when"),
        ("maped", Execution(), "did you mean 'mapped'"),
    ],
    ids=["another precision", "4 bits", "written over 4 bits", "unknown"],
)
def test_ways_that_cannot_be_are_refused(small, place, how, execution, words):
    with pytest.raises(UserError, match=re.escape(words)):
        loading.load(backend.load("torch"), small, place[1], execution, how)
