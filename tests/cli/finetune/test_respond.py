"""Runs on instructions, and what they answer: kept, taken up again, counted where the context ends."""

import json

import pytest
from small import EVALUATED, log_of

from common.weights.checkpoint import load_checkpoint


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_answers_are_kept_and_taken_up_again(call, tmp_path, asked, monkeypatch, backend):
    from common.tuning import answers

    run, how = tmp_path / "run", ["--backend", backend]
    more = ["--steps", 150, "--learning-rate", 0.02, "--eval-every", 150, "--mask-instruction", "--batch-size", 4]
    assert call("finetune", "instruct", *asked["instruct"], *more, *how, "--out", run)[0] == 0
    lines = log_of(run)
    assert lines[-1]["held_out"] < load_checkpoint(run / "checkpoint").training["before"]["held_out"]
    whole = ["respond", "--weights", run, *how, "--max-new-tokens", 26, "--batch-size", 2, "--part", "train"]
    code, out, _ = call(*whole, "--out", tmp_path / "whole.json")
    assert (code, "17 answers" in out) == (0, True)
    rows = json.loads((tmp_path / "whole.json").read_text())
    assert all(set(row) == {"instruction", "input", "output", "model_response"} for row in rows)
    assert any(row["model_response"].startswith("It is") for row in rows)
    assert not any("<|assistant|>" in row["model_response"] for row in rows)
    real, made = answers.answers, []

    def stopped(*given):
        for row in real(*given):
            if len(made) == 5:
                raise KeyboardInterrupt
            made.append(row)
            yield row

    with monkeypatch.context() as patched:
        patched.setattr(answers, "answers", stopped)
        assert call(*whole, "--out", tmp_path / "split.json")[0] == 130
    assert not (tmp_path / "split.json").exists()
    code, _, err = call(*whole, "--out", tmp_path / "split.json")
    assert (code, "4 of 17 answers are there already" in err) == (0, True)
    assert json.loads((tmp_path / "split.json").read_text()) == rows
    assert [one.name for one in tmp_path.iterdir() if "partial" in one.name] == []


def test_answers_longer_than_the_context_are_counted(call, tmp_path, weights, data, asked):
    short = ["--length", 20, "--pad-multiple", 8]
    code, _, err = call("finetune", "instruct", *asked["instruct"], *short, "--out", tmp_path / "one")
    assert (code, "20 answers go beyond 20 tokens and are cut there; of 20 nothing is left." in err) == (0, True)
    short = ["--length", 56, "--pad-multiple", 8]
    code, _, err = call("finetune", "prefer", *asked["prefer"], *short, "--out", tmp_path / "two")
    assert code == 0, err
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert f"{results['cut']} answers go beyond 56 tokens" in err
    assert results["cut"] > 0


def test_answers_that_the_context_cuts_short_are_counted(call, tmp_path, weights):
    rows = [{"instruction": "x" * size, "input": "", "output": "y"} for size in (1, 1, 70, 96)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    asked = ["respond", "--weights", weights, "--data", tmp_path / "rows.json", "--part", "all", "--style", "phi3"]
    code, _, err = call(*asked, "--max-new-tokens", 30, "--out", tmp_path / "said.json")
    assert code == 0, err
    assert "1 prompts fill the context of 96 tokens and get no answer." in err
    assert "The context leaves 1 answers fewer than --max-new-tokens 30." in err
    said = json.loads((tmp_path / "said.json").read_text())
    assert said[0]["model_response"] == said[1]["model_response"]
    assert said[3]["model_response"] == ""


def test_a_place_for_answers_that_is_none_is_refused_before_any_is_made(call, tmp_path, weights, monkeypatch):
    from common.tuning import answers

    monkeypatch.setattr(answers, "answers", None)
    (tmp_path / "file").touch()
    for out, told in ((tmp_path, "is a folder; a file is to be written"), (tmp_path / "file" / "x", "is a file.")):
        code, _, err = call("respond", "--weights", weights, "--data", tmp_path / "x.json", "--out", out)
        assert (code, told in err, err.count("\n")) == (2, True, 1), err


def test_a_preference_run_answers_its_own_rows(call, tmp_path, asked):
    run = tmp_path / "run"
    assert call("finetune", "prefer", *asked["prefer"], *EVALUATED, "--out", run)[0] == 0
    code, _, err = call("respond", "--weights", run, "--max-new-tokens", 2, "--out", tmp_path / "said.json")
    assert code == 0, err
    said = json.loads((tmp_path / "said.json").read_text())
    assert said
    assert all({"chosen", "model_response"} <= set(row) for row in said)
