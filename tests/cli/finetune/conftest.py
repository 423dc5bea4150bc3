"""Weights, data of each kind, and the words of each command that fine-tunes."""

import json

import pytest
from small import BYTES, FEW

from common import adapters, heads, params
from common.adapters import Adapter
from common.weights.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_checkpoint(folder, BYTES, params.randomise(BYTES, 0, 0.5))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small files of each kind by name."""
    folder = tmp_path_factory.mktemp("data")
    words = ["see you at home", "are you there", "on my way now", "call me later", "thank you so much"]
    rows = [{"text": f"{words[i % 5]} {i}", "label": "ham"} for i in range(20)]
    rows += [{"text": f"WIN cash {i} now!!", "label": "spam"} for i in range(12)]
    (folder / "texts.json").write_text(json.dumps(rows))
    pairs = [
        {"instruction": f"Add {i} and 1.", "input": "" if i % 2 else "as a number", "output": f"It is {i + 1}."}
        for i in range(20)
    ]
    pairs = [{**row, "chosen": row["output"], "rejected": "Go away."} for row in pairs]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture
def asked(weights, data):
    """The words of each command, without --out."""
    phi3 = ["--style", "phi3", "--length", 96, "--pad-multiple", 96]  # one shape, so JAX compiles once
    return {
        "classify": ["--weights", weights, "--data", data / "texts.json", *FEW],
        "instruct": ["--weights", weights, "--data", data / "pairs.json", *phi3, *FEW],
        "prefer": ["--weights", weights, "--data", data / "pairs.json", *phi3, *FEW],
    }


@pytest.fixture
def classifier(tmp_path):
    """(folder, config, weights) of a classifier that no run of ours has made, with two adapters."""
    config, weights = heads.classifier(BYTES, params.randomise(BYTES, 0, 0.5), 3)
    for name in ("first", "second"):
        config, weights = adapters.add(config, weights, Adapter(name, ("*.down_proj", "score"), rank=2))
    weights = dict(weights)
    weights |= {name: weights[name] + params.draw(0, name, weights[name].shape) for name in adapters.names(config)}
    save_checkpoint(tmp_path / "given", config, weights)
    return tmp_path / "given", config, weights
