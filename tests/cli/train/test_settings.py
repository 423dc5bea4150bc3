"""Runs that say their settings in a file, and take them along when they go on."""

import json
import tomllib

import numpy as np
import pytest
from bytes_of_runs import BYTES

from common import params
from common import run as runs
from common.config import TrainConfig
from common.tokenizers import tokenizer
from common.weights.checkpoint import load_checkpoint


def test_a_file_says_what_the_command_line_does_not(call, tmp_path, file):
    out = tmp_path / "run"
    path = file(**{"learning-rate": 5e-3, "set": ["loss=chunked"], "keep-best": True})
    code, _, err = call("train", "--settings", path, "--steps", 4, "--out", out)
    assert (code, "steps 0 to 4" in err) == (0, True)
    record = load_checkpoint(out / "checkpoint").training
    assert record["train"]["learning_rate"] == 5e-3
    assert record["train"]["steps"] == 4
    assert record["train"]["batch_size"] == 4
    assert record["execution"]["loss"] == "chunked"
    assert (out / "best" / "model.safetensors").is_file()
    stored = tomllib.loads((out / "settings.toml").read_text())
    assert (stored["steps"], stored["learning-rate"], stored["set"]) == (4, 5e-3, ["loss=chunked"])
    assert call("train", "--settings", out / "settings.toml", "--out", tmp_path / "again")[0] == 0
    first, second = (load_checkpoint(tmp_path / name / "checkpoint").weights for name in ("run", "again"))
    assert all(np.array_equal(first[name], second[name]) for name in params.table(BYTES))


def test_what_a_file_turns_on_the_command_line_turns_off(call, tmp_path, file):
    """And a run that has it, when it goes on."""
    out, on = tmp_path / "run", ["keep-best", "tensorboard", "auto-resume", "rslora", "dora"]
    path = file(train="lora", rank=2, **dict.fromkeys(on, True))
    off = [f"--no-{name}" for name in on]
    assert call("train", "--settings", path, *off, "--out", out)[0] == 0
    stored = tomllib.loads((out / "settings.toml").read_text())
    assert [stored[name] for name in on] == [False] * 5
    (adapter,) = load_checkpoint(out / "checkpoint").config.adapters
    assert (adapter.rslora, adapter.dora) == (False, False)
    assert not (out / "best").exists()
    assert not (out / "tensorboard").exists()
    code, _, err = call("train", "--settings", path, *off, "--out", out)
    assert (code, "already holds a run" in err) == (2, True)
    two = tmp_path / "two"
    assert call("train", "--settings", path, "--no-tensorboard", "--until", 3, "--out", two)[0] == 0
    best = load_checkpoint(two / "best").training["step"]
    assert call("train", "--resume", two, "--no-keep-best", "--eval-every", 1)[0] == 0
    log = runs.read_log(two / "log.jsonl")
    assert log[-1]["held_out"] < log[best - 1]["held_out"]  # so it would have been kept
    assert load_checkpoint(two / "best").training["step"] == best


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("steps = ", "is no TOML file"),
        ("stesp = 3", "did you mean 'steps'"),
        ("steps = true", "'steps' in"),
        ("steps = [3]", "allowed is a number or a text"),
        ("steps = 'many'", "steps"),
        ("keep-best = 1", "allowed is true or false"),
        ("batch-size = 3\nbatch_size = 4", "sets 'batch-size' twice"),
        ("set = 'loss=chunked'", "allowed is a list"),
        ("resume = 'x'", "Unknown setting"),
        ("[plan]\nsteps = 3", "Unknown setting"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(call, tmp_path, content, words):
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_text(content)
    code, out, err = call("train", "--settings", path, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_settings(call, tmp_path, file):
    out = tmp_path / "run"
    assert call("train", "--settings", file(), "--until", 2, "--out", out)[0] == 0
    code, _, err = call("train", "--settings", file(steps=9, seed=3), "--resume", out)
    assert code == 2
    assert "steps 9 (it was 6)" in err
    assert "seed 3 (it was 0)" in err
    assert call("train", "--settings", file(), "--resume", out)[0] == 0
    assert load_checkpoint(out / "checkpoint").training["step"] == 6


def test_the_command_line_goes_before_a_file_and_that_before_what_a_run_had(call, tmp_path, file):
    """Whichever is named first."""
    out, path = tmp_path / "run", file(dtype="float64", set=["loss=chunked"])
    assert call("train", "--settings", path, "--until", 1, "--out", out)[0] == 0
    path = file(dtype="bfloat16")
    both = ["--settings", path, "--resume", out], ["--resume", out, "--settings", path]
    tries = (both[0], "bfloat16"), (both[1], "bfloat16"), (["--dtype", "float32", *both[0]], "float32")
    for until, (asked, dtype) in enumerate([*tries, (["--resume", out], "float64")], 2):
        code, _, err = call("train", *asked, "--until", until)
        execution = load_checkpoint(out / "checkpoint").training["execution"]
        assert (code, execution["dtype"], execution["loss"]) == (0, dtype, "chunked"), err


def test_a_run_that_is_to_stop_early_stores_settings_of_the_whole(call, tmp_path, file):
    out = tmp_path / "run"
    assert call("train", "--settings", file(), "--until", 2, "--out", out)[0] == 0
    assert "until" not in tomllib.loads((out / "settings.toml").read_text())
    code, _, err = call("train", "--settings", out / "settings.toml", "--out", tmp_path / "again")
    assert (code, "steps 0 to 6" in err) == (0, True)


def test_what_differs_is_told_and_what_is_equal_is_taken(call, tmp_path, file):
    out, path = tmp_path / "run", file(**{"learning-rate": 2e-3})
    assert call("train", "--settings", path, "--until", 2, "--out", out)[0] == 0
    code, _, err = call("train", "--resume", out, "--learning-rate", 0.5, "--steps", 6)
    assert code == 2
    assert "leave out --learning-rate 0.5 (it was 0.002), or start" in err
    code, _, err = call("train", "--resume", out, "--learning-rate", 2e-3, "--steps", 6)
    assert code == 0, err


def test_a_run_that_goes_on_in_another_folder_takes_its_settings_along(call, tmp_path, file):
    one, two, path = tmp_path / "one", tmp_path / "two", file()
    assert call("train", "--settings", path, "--until", 2, "--out", one)[0] == 0
    assert call("train", "--resume", one, "--out", two, "--until", 3)[0] == 0
    stored = [tomllib.loads((folder / "settings.toml").read_text()) for folder in (one, two)]
    assert [told.pop("out") for told in stored] == [str(one), str(two)]
    assert stored[0] == stored[1]
    assert call("train", "--settings", path, "--auto-resume", "--out", two, "--until", 4)[0] == 0
    code, _, err = call("train", "--settings", one / "settings.toml", "--resume", two, "--until", 5)
    assert code == 0, err
    assert load_checkpoint(two / "checkpoint").training["step"] == 5
    assert load_checkpoint(one / "checkpoint").training["step"] == 2
    (two / "settings.toml").unlink()
    code, _, err = call("train", "--settings", path, "--resume", two)
    assert (code, "None" in err) == (2, False)
    assert "has no settings.toml that the file could be held against; leave out --settings" in err


def test_a_share_is_held_out_and_runs_of_before_go_on(call, tmp_path, file):
    """A run says its share; one that was made before it could had a tenth."""
    out, path = tmp_path / "run", file(**{"held-out": 0.3})
    assert call("train", "--settings", path, "--until", 2, "--out", out)[0] == 0
    assert load_checkpoint(out / "checkpoint").training["held_out"] == 0.3
    code, _, err = call("train", "--resume", out)
    assert code == 0, err
    code, _, err = call("train", "--settings", file(**{"held-out": 1.0}), "--out", tmp_path / "none")
    assert (code, "held_out is 1.0" in err) == (2, True)

    old, path = tmp_path / "old", file()
    assert call("train", "--settings", path, "--until", 2, "--out", old)[0] == 0
    training = old / "checkpoint" / "training.json"
    record = json.loads(training.read_text())
    assert record.pop("held_out") == 0.1
    training.write_text(json.dumps(record | {"held_out": "0.1"}))
    code, _, err = call("train", "--resume", old)
    assert (code, "is damaged: see held_out" in err) == (2, True)
    training.write_text(json.dumps(record))
    stored = old / "settings.toml"
    stored.write_text("".join(line for line in stored.open() if not line.startswith("held-out")))
    code, _, err = call("train", "--settings", path, "--out", old, "--auto-resume")
    assert code == 0, err


def test_windows_may_overlap_and_a_run_keeps_their_stride(call, tmp_path, file):
    """F-012: a window every so many tokens."""
    out, half = tmp_path / "run", ["--stride", 8, "--length", 16]
    code, _, err = call("train", "--settings", file(), *half, "--until", 3, "--out", out)
    assert code == 0, err
    tokens = load_checkpoint(out / "checkpoint").training["data"]["windows"]
    assert (tokens["length"], tokens["stride"]) == (16, 8)
    assert f"{-(-(2106 - 16) // 8)} windows of 16, one every 8" in err
    assert tomllib.loads((out / "settings.toml").read_text())["stride"] == 8
    code, _, err = call("train", "--resume", out, "--stride", 4)
    assert (code, "--stride" in err) == (2, True)
    assert call("train", "--settings", out / "settings.toml", "--auto-resume", "--out", out)[0] == 0
    whole = tmp_path / "whole"
    assert call("train", "--settings", file(), *half, "--out", whole)[0] == 0
    first, second = (load_checkpoint(folder / "checkpoint").weights for folder in (out, whole))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    code, _, err = call("train", "--settings", file(), "--stride", 0, "--out", tmp_path / "none")
    assert (code, "--stride is 0" in err) == (2, True)
    text = tmp_path / "text.txt"
    found = runs.prepare_data(str(text), tokenizer("bytes"), 16, TrainConfig(batch_size=4), stride=8)
    assert (found.batches.windows.stride, found.held_out.stride) == (8, 16)
