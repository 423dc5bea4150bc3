"""`parallax quantise` as a person meets it: table, JSON, losses, and what is refused."""

import json

import numpy as np
import pytest

from common import params
from common.accounting import memory
from common.config import GPTConfig, preset
from common.weights.checkpoint import save_checkpoint

SMALL = GPTConfig(256, 32, 32, 2, 2)


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "small", SMALL, params.randomise(SMALL, 4))
    return tmp_path / "small"


def test_json_and_file_say_the_same(call, folder, tmp_path):
    code, out, _ = call("quantise", folder, "--json", "--out", tmp_path / "report.json")
    assert code == 0
    found = json.loads(out)
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert [kind["name"] for kind in found["kinds"]] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    base = found["base"]
    assert (base["matrices"], base["weights"]) == (12, 2 * 12 * 32 * 32)
    assert base["bytes"]["float32"] == 4 * base["weights"] == sum(kind["bytes"]["float32"] for kind in found["kinds"])
    assert base["bits"]["nf4"] == 4.5
    for name in ("nf4", "nf4_double"):
        assert found["model_bytes"][name] == memory.base(SMALL, "float32", name)
        assert 0.08 < base["rms"][name] < 0.10
        assert base["largest"][name] == max(kind["largest"][name] for kind in found["kinds"])
    assert found["model_bytes"]["float32"] == memory.weights(SMALL)
    assert found["loss"] is None


def test_the_table_and_losses(call, folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question\n" * 20)
    code, out, _ = call("quantise", folder, "--data", text, "--windows", 3, "--backend", "torch")
    assert code == 0
    assert "96 tokens" in out
    losses = [float(number) for number in out.strip().splitlines()[-1].split()]
    assert len(losses) == len(set(losses)) == 3
    assert max(losses) - min(losses) < 0.2 * losses[0]
    _, oracle, _ = call("quantise", folder, "--data", text, "--windows", 3, "--backend", "numpy")
    others = [float(number) for number in oracle.strip().splitlines()[-1].split()]
    assert np.abs(np.subtract(losses, others)).max() < 2e-4


def test_a_preset_with_initial_weights(call):
    code, out, _ = call("quantise", "--preset", "nano", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["source"] == "preset nano, initial weights"
    assert found["model_bytes"]["nf4"] == memory.base(preset("nano"), base="nf4")


def test_refusals(call, folder, tmp_path):
    bad = dict(params.randomise(SMALL, 4))
    bad["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
    save_checkpoint(tmp_path / "bad", SMALL, bad)
    for arguments, sentence in (
        ((), "Name either weights or a preset"),
        ((folder, "--preset", "nano"), "Name either weights or a preset"),
        (("--preset", "nanno"), "did you mean 'nano'"),
        ((tmp_path / "nothing",), "nothing"),
        ((tmp_path / "bad",), "model.layers.1.mlp.up_proj.weight holds NaN or infinity"),
        ((folder, "--data", tmp_path / "no.txt"), "does not exist"),
        ((folder, "--windows", "0"), "--windows is 0"),
        (("--preset", "nano", "--seed", "-1"), "--seed is -1"),
    ):
        code, out, err = call("quantise", *arguments)
        assert (code, out) == (2, ""), arguments
        assert sentence in err
        assert "Traceback" not in err
