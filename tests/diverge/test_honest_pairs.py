"""Implementations that compute the same agree, in every precision, and the report says so."""

import json

import numpy as np
import pytest

from common import params
from common.config import GPTConfig, dumps
from common.parity.diverge import table
from common.weights import gpt2_names
from common.weights.huggingface import write_hf

HF = GPTConfig(53, 40, 24, 2, 3, ff_dim=40)


@pytest.fixture
def folder(tmp_path):
    """A GPT-2 folder as transformers reads it, every weight random."""
    write_hf(tmp_path / "gpt2-small", HF, params.randomise(HF, 7))
    return tmp_path / "gpt2-small"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("case", ["gpt", "gpt_untied"])
def test_torch_and_transformers(case, dtype, diverge):
    """Their model, built from our weights, watched by hooks: every one of our names has its counterpart."""
    pytest.importorskip("transformers")
    report = diverge("torch", "transformers", case=case, dtype=dtype, gradients=True)
    assert report.agree
    assert report.notes == ()
    forward = [row.name for row in report.rows if row.stage == "forward"]
    assert len(forward) == 1 + 11 * 2 + 2
    assert forward[:2] == ["model.embed", "model.layers.0.input_layernorm"]
    assert forward[-2:] == ["model.norm", "logits"]


@pytest.mark.full_for("float32")  # in which a Hugging Face folder and JAX agree, below
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torch_and_jax(dtype, diverge):
    report = diverge("torch", "jax", case="gpt", dtype=dtype, gradients=True)
    assert report.agree
    assert max(row.gap for row in report.rows) > 0, "two programs never round alike everywhere"


def test_the_oracle_has_no_error_of_its_own(diverge):
    report = diverge("numpy", "torch", case="gpt")
    assert report.agree
    assert all(row.own["A"] == 0 for row in report.rows if row.own)
    assert any(row.own["B"] > 0 for row in report.rows if row.own)


def test_two_sides_that_are_wrong_alike(port, diverge):
    """They agree with each other; that the oracle does not is said beside it."""
    wrong = port("torch", "layers.py", "variance + self.eps", "variance + 2 * self.eps")
    report = diverge(wrong, wrong, case="gpt")
    assert report.agree
    assert report.diagnosis.judged.startswith("The oracle makes model.layers.0.input_layernorm otherwise than A and B")
    assert diverge("torch", "torch", case="gpt").diagnosis is None


@pytest.mark.full
def test_a_hugging_face_folder_and_jax(folder, run):
    """transformers loads the folder by its own code; the other side gets the folder's weights, converted."""
    pytest.importorskip("transformers")
    code, out, _ = run(folder, "jax", "--ids", "1,2,3,4,5", "--gradients", "--json")
    found = json.loads(out)
    assert code == 0, found["first"]
    assert found["sides"]["A"]["title"].startswith("transformers")
    assert found["subject"]["weights"] == "weights of gpt2-small"


def test_two_folders_with_one_wrong_weight(folder, tmp_path, run):
    """A conversion gone wrong is told as such: the first tensor that the folders do not share."""
    pytest.importorskip("transformers")
    wrong = params.randomise(HF, 7)
    name = "model.layers.1.self_attn.v_proj.weight"
    wrong[name] = np.ascontiguousarray(wrong[name].T)
    write_hf(tmp_path / "converted", HF, wrong)
    code, out, _ = run(folder, tmp_path / "converted", "--json")
    assert code == 1
    assert json.loads(out)["first"] == name
    assert "o and i exchanged" in json.loads(out)["diagnosis"]["hints"][0]


def test_the_names_of_transformers_are_a_bijection():
    """No parameter of theirs is left out when gradients are put under our names."""
    transformers = pytest.importorskip("transformers")
    from common.weights.huggingface import config_to_dict

    net = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_dict(config_to_dict(HF, "float32")))
    assert {name for name, _ in net.named_parameters()} == set(gpt2_names.entries(gpt2_names.HF, HF)) - {
        "lm_head.weight"
    }


def test_the_table_fits_80_columns(port, diverge):
    from rich.console import Console

    wrong = port("torch", "masks.py", "(key <= query)", "(key <= query + 1)")
    for everything in (False, True):
        console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(table.build(diverge(wrong, "torch", gradients=True), everything))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= 80
        assert not any("…" in line for line in lines), "nothing is cut off"
        assert any(line.startswith("They part at model.layers.0.self_attn.scores") for line in lines)
        assert len(lines) < (45 if not everything else 140)


def test_the_report_is_plain_data(port, diverge):
    """Infinite errors (other shapes) are null and explained, so that any JSON reader takes the report."""
    find = 'map(taps, "qkv", self.project(linears, x_BTE, self.num_heads))'
    bug = "self.project(linears, x_BTE, self.num_heads)\n"
    bug += '        list(map(taps, "qkv", (q_BHTD, k_BHSD, v_BHSD.transpose(1, 2))))'
    wrong = port("torch", "attention/multi_head.py", find, bug)
    report = diverge(wrong, "torch", case="gpt")
    found = json.loads(dumps(report.to_dict()), parse_constant=pytest.fail)
    row = next(row for row in found["rows"] if row["name"] == found["first"])
    assert found["first"] == "model.layers.0.self_attn.v"
    assert row["gap"] is None
    assert row["note"] == "shape [2, 11, 2, 4] against [2, 2, 11, 4]"
    assert "axes in the order" in found["diagnosis"]["hints"][0]
