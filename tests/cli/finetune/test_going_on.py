"""Runs of fine-tuning go on: in the other framework, with their own settings, data and frozen weights."""

import json

import numpy as np
import pytest
from small import EVALUATED, log_of

from common import params
from common.weights.checkpoint import load_checkpoint

WINGS = [("torch", "jax"), ("jax", "torch")]
MORE = {
    "classify fast": ["--mode", "fast", "--train", "last-block", "--read", "flexible"],
    "classify": ["--train", "last-block", "--read", "flexible", "--dropout", 0.1],
    "classify lora": ["--train", "lora", "--rank", 2, "--targets", "*.q_proj", "--lora-dropout", 0.1, "--no-causal"],
    "instruct": ["--mask-instruction", "--accumulate", 2],
    "instruct lora": ["--train", "lora", "--rank", 2, "--dora"],
    "prefer": ["--loss", "dpo", "--reduction", "mean"],
    "prefer online": ["--loss", "ipo", "--reference", "online"],
    "prefer lora": ["--train", "lora", "--rank", 2, "--rslora"],
}


@pytest.mark.full_for("jax-torch", "instruct", "classify", "prefer-", "online")
@pytest.mark.parametrize(("first", "second"), WINGS)
@pytest.mark.parametrize("name", MORE)
def test_a_run_continues_in_the_other_wing(call, tmp_path, asked, name, first, second):
    kind = name.split()[0]
    own = [*asked[kind], *MORE[name], "--dtype", "float64", *EVALUATED]
    own += ["--no-baseline"] if kind == "classify" else []
    whole, split = tmp_path / "whole", tmp_path / "split"
    assert call("finetune", kind, *own, "--backend", first, "--out", whole)[0] == 0
    assert call("finetune", kind, *own, "--backend", first, "--until", 2, "--out", split)[0] == 0
    code, out, _ = call("finetune", kind, "--resume", split, "--backend", second)
    assert (code, "Step 4 of 4" in out) == (0, True)
    one, two = (load_checkpoint(folder / "checkpoint") for folder in (whole, split))
    start = load_checkpoint(asked[kind][1]).weights
    for weight, parameter in params.table(one.config).items():
        a, b = (np.asarray(found.weights[weight], np.float64) for found in (one, two))
        if not parameter.dead:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9, err_msg=weight)
    moved = {weight for weight in start if weight in one.weights and (one.weights[weight] != start[weight]).any()}
    block = {weight for weight in start if weight.startswith(("model.layers.1.", "model.norm."))}
    assert moved == (set() if "lora" in name else block if kind == "classify" else set(start))
    logs = log_of(whole), log_of(split)
    assert [line["backend"] for line in logs[1]] == [first, first, second, second]
    for left, right in zip(*logs, strict=True):
        for number in set(left) - {"backend", "seconds", "tokens_per_second"}:
            assert left[number] == pytest.approx(right[number], rel=1e-8, abs=1e-10), number
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, split)]
    assert results[0]["before"] == pytest.approx(results[1]["before"])
    assert call("curves", whole, split)[0] == 0


def test_a_resumed_run_keeps_its_settings_and_its_kind(call, tmp_path, asked):
    run = tmp_path / "run"
    assert call("finetune", "classify", *asked["classify"], "--until", 2, "--out", run)[0] == 0
    code, _, err = call("finetune", "classify", "--resume", run, "--read", "first", "--rank", 4)
    assert (code, "leave out" in err, "--read" in err, "--rank" in err) == (2, True, True, True)
    code, _, err = call("finetune", "instruct", "--resume", run)
    assert (code, "a run of `parallax finetune classify`" in err) == (2, True)
    code, _, err = call("train", "--resume", run)
    assert (code, "a run of `parallax finetune classify`" in err) == (2, True)
    code, _, err = call("finetune", "classify", *asked["classify"], "--auto-resume", "--pad-to", "batch", "--out", run)
    assert (code, "--pad-to is batch, and was length" in err) == (2, True)
    again = ["--auto-resume", "--no-baseline", "--out", run]
    assert call("finetune", "classify", *asked["classify"], *again)[0] == 0
    assert load_checkpoint(run / "checkpoint").training["step"] == 4
    (run / "results.json").unlink()  # as if it had been stopped after its last checkpoint
    assert call("finetune", "classify", "--resume", run, "--no-baseline")[0] == 0
    code, _, err = call("finetune", "classify", "--resume", run)
    assert (code, "nothing left to do" in err) == (2, True)


@pytest.mark.parametrize("kind", ["classify", "instruct", "prefer"])
def test_a_resumed_run_finds_every_part_of_its_data_as_it_was(call, tmp_path, asked, data, kind):
    """Also what it does not learn from: held-out losses go on, and a reference was asked about these rows."""
    path, run = tmp_path / "data.json", tmp_path / "run"
    rows = json.loads((data / ("texts.json" if kind == "classify" else "pairs.json")).read_text())
    path.write_text(json.dumps(rows))
    own = [path if str(word).endswith(".json") else word for word in asked[kind]]
    own += ["--no-balance"] if kind == "classify" else ["--shares", "0.5,0.3"]
    assert call("finetune", kind, *own, "--until", 2, "--out", run)[0] == 0
    told = []
    for place, row in enumerate(rows):
        other = {"text": "another", "output": "No.", "chosen": "No."}
        changed = {name: other.get(name, text) for name, text in row.items()}
        path.write_text(json.dumps([*rows[:place], changed, *rows[place + 1 :]]))
        code, _, err = call("finetune", kind, "--resume", run)
        assert (code, err.count("parallax: ")) == (2, 1), err
        told.append(err.partition(" part of the data is not what it was")[0].rpartition(" ")[2])
    assert (told.count("validation"), told.count("test")) == ((3, 7) if kind == "classify" else (4, 6))
    path.write_text(json.dumps(rows))
    code, _, err = call("finetune", kind, "--resume", run, *(["--no-baseline"] if kind == "classify" else []))
    assert code == 0, err


def test_what_is_not_trained_is_kept_as_it_was_given(call, tmp_path, asked):
    """A resumed run may compute in another precision, or in 4 bits: older checkpoints are as readable as before."""
    run, own = tmp_path / "run", [*asked["classify"], *MORE["classify lora"]]
    assert call("finetune", "classify", *own, "--until", 2, "--save-every", 1, "--keep", 3, "--out", run)[0] == 0
    kept = {path.name: path.read_bytes() for path in (run / "frozen").iterdir()}
    given, first = load_checkpoint(asked["classify"][1]).weights, load_checkpoint(run / "checkpoint").weights
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(first[name], given[name])
    for how in (["--dtype", "float64", "--until", 3], ["--mode", "nf4 double", "--keep", 3, "--no-baseline"]):
        assert call("finetune", "classify", "--resume", run, *how)[0] == 0
        assert {path.name: path.read_bytes() for path in (run / "frozen").iterdir()} == kept
    for folder in (run / "checkpoint", *(run / "checkpoints").iterdir()):
        np.testing.assert_array_equal(load_checkpoint(folder).weights[name], given[name])
