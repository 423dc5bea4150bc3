"""A checkpoint that TensorFlow itself wrote gives the logits that transformers computed from it."""

import numpy as np
import pytest

from common import backend
from common.config import Execution
from common.weights.tensorflow import read_openai


@pytest.fixture(scope="module")
def checkpoint(data_dir):
    folder = data_dir / "openai_gpt2_tiny"
    config, weights = read_openai(folder)
    return config, dict(weights), dict(np.load(folder / "expected_logits.npz"))


@pytest.mark.parametrize("name", backend.names())
def test_logits(checkpoint, name):
    config, weights, expected = checkpoint
    model = backend.load(name).build(config, weights, Execution(dtype="float64"))
    got = model.forward(expected["ids"]).logits[:, expected["positions"]]
    assert got.shape == expected["logits"].shape
    assert expected["logits"].dtype == np.float32
    want = expected["logits"].astype(np.float64)
    # computed in float64, then stored as float32: half a unit in the last place, and nothing more
    assert (np.abs(got - want) <= 2.0**-24 * np.abs(want) + 1e-10).all()


def test_config_says_what_the_file_says(checkpoint):
    config, _, expected = checkpoint
    assert (config.vocab_size, config.context_length, config.embed_dim) == (211, 24, 48)
    assert (config.num_heads, config.num_layers) == (3, 2)
    assert config.tie_embeddings
    assert expected["ids"].max() < 211
