"""Weights, a text, and a file of settings for runs."""

import json

import pytest
from bytes_of_runs import BYTES

from common import params
from common.weights.checkpoint import save_checkpoint


@pytest.fixture
def weights(tmp_path):
    save_checkpoint(tmp_path / "weights", BYTES, params.randomise(BYTES, 1))
    return tmp_path / "weights"


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("She sells sea shells by the sea shore. " * 60)
    return file


@pytest.fixture
def file(tmp_path, weights, text):
    """Write a file of settings; `file(**more)` adds some."""

    def write(**more):
        own = {"weights": str(weights), "data": str(text), "steps": 6, "batch-size": 4, "eval_every": 2, **more}
        path = tmp_path / "settings.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in own.items()))
        return path

    return write
