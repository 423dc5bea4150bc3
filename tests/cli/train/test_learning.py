"""What is trained, how long and how fast; what a run shows while it learns."""

import json
import tomllib

import numpy as np
import pytest
from bytes_of_runs import BYTES, FAST

from common import params
from common import run as runs
from common.compare import difference
from common.config import TrainConfig
from common.tokenizers import words as words_of
from common.weights.checkpoint import load_checkpoint


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_samples_go_on_from_a_prompt_and_are_logged(call, tmp_path, file, backend):
    out = tmp_path / backend
    asked = ["--sample-every", 3, "--prompt", "She sells", "--backend", backend]
    code, _, err = call("train", "--settings", file(), *asked, "--out", out)
    assert code == 0
    log = [json.loads(line) for line in (out / "log.jsonl").open()]
    samples = {line["step"] + 1: line["sample"] for line in log if "sample" in line}
    assert set(samples) == {3, 6}
    assert all(repr(sample) in err for sample in samples.values())
    assert [line["tokens_per_second"] > 0 for line in log[1:]] == [True] * 5


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_kernel_without_a_cache_samples_what_others_do(call, tmp_path, file, backend):
    """It ended the run at the first sample, before there was a checkpoint."""
    asked, samples = ["--steps", 2, "--sample-every", 1, "--backend", backend], []
    for kernel in ("plain", "module"):
        out = tmp_path / kernel
        code, _, err = call("train", "--settings", file(), *asked, "--attention", kernel, "--out", out)
        assert code == 0, err
        samples.append([json.loads(line)["sample"] for line in (out / "log.jsonl").open()])
    assert samples[0] == samples[1]


def test_a_prompt_is_tried_before_the_run_begins(call, tmp_path, file, text):
    """A word that no sample could go on from, no text, and one that nobody asks for a sample of."""
    words_of.train(text.read_text(), specials=()).save(tmp_path / "words")
    asked = ["train", "--settings", file(), "--tokenizer", "words", "--vocab", tmp_path / "words", "--out"]
    for prompt, sentence in (("She buys", "The word 'buys' is not in this vocabulary"), (" ", "--prompt is empty")):
        code, _, err = call(*asked, tmp_path / "x", "--sample-every", 5, "--prompt", prompt)
        assert (code, sentence in err, err.count("\n")) == (2, True, 1), err
    sentence = "--prompt is what samples go on from, and there are none: give --sample-every, too."
    for more in (["--prompt", "She"], ["--prompt", "She", "--sample-every", 0]):
        code, _, err = call(*asked, tmp_path / "x", *more)
        assert (code, sentence in err) == (2, True), err
    assert not (tmp_path / "x").exists()
    asked[2] = file(**{"prompt": "She", "sample-every": 2})  # samples may be left out of what a file says, or a run had
    assert call(*asked, tmp_path / "run", "--sample-every", 0, "--until", 3)[0] == 0
    assert call("train", "--resume", tmp_path / "run", "--until", 4)[0] == 0
    assert not any("sample" in line for line in runs.read_log(tmp_path / "run" / "log.jsonl"))
    code, _, err = call("train", "--resume", tmp_path / "run", "--prompt", "She")
    assert (code, sentence in err) == (2, True), err


def test_epochs_stand_in_place_of_steps(call, tmp_path, weights, text):
    out = tmp_path / "run"
    asked = ["--weights", weights, "--data", text, "--batch-size", 4, "--accumulate", 2, "--out", out]
    code, _, err = call("train", *asked, "--epochs", 2)
    assert code == 0
    windows = (len(text.read_text()) * 9 // 10 - 1) // 32
    assert f"{windows} windows of 32; steps 0 to {2 * (windows // 8)}" in err
    assert tomllib.loads((out / "settings.toml").read_text())["steps"] == 2 * (windows // 8)
    stored = ["--settings", out / "settings.toml", "--out"]  # the command line goes before what a file says of steps
    code, _, err = call("train", *stored, tmp_path / "longer", "--epochs", 3)
    assert (code, f"steps 0 to {3 * (windows // 8)}" in err) == (0, True)
    for more in (["--epochs", 0], ["--epochs", 1, "--steps", 3]):
        code, _, err = call("train", *asked[:-1], tmp_path / "x", *more)
        assert (code, "in place of --steps" in err) == (2, True)


def test_a_constant_rate_has_a_warm_up_by_its_own_name(call, tmp_path, file):
    def rates(out):
        return [line["rate"] for line in runs.read_log(out / "log.jsonl")]

    for schedule, steps, want in (
        ("constant", None, [1e-3] * 4),
        ("constant", 0, [1e-3] * 4),
        ("constant_with_warmup", 2, [0.0, 5e-4, 1e-3, 1e-3]),
    ):
        own = {} if steps is None else {"warmup-steps": steps}
        out = tmp_path / f"{schedule} {steps}"
        code, _, err = call("train", "--settings", file(schedule=schedule, steps=4, **own), "--out", out)
        assert code == 0, err
        assert rates(out) == want
        assert tomllib.loads((out / "settings.toml").read_text())["warmup-steps"] == (steps or 0)
        assert call("train", "--settings", out / "settings.toml", "--auto-resume", "--out", out)[0] == 0
    wrong = file(schedule="constant", **{"warmup-steps": 100})
    for more in ((), ("--warmup-steps", 20)):
        code, _, err = call("train", "--settings", wrong, *more, "--out", tmp_path / "x")
        assert (code, "or choose --schedule constant_with_warmup." in err) == (2, True)
        assert f"leave out --warmup-steps {20 if more else 100}," in err
    assert not (tmp_path / "x").exists()


def test_a_variant_is_trained(call, tmp_path, text):
    out = tmp_path / "run"
    variant = "grouped_query num_kv_heads=1 + multi_head"
    asked = ["--preset", "nano", "--variant", variant, "--data", text, "--length", 16, "--steps", 1]
    assert call("train", *asked, "--out", out, *FAST)[0] == 0
    assert [one.kind for one in load_checkpoint(out / "checkpoint").config.attention] == ["grouped_query", "multi_head"]
    code, _, err = call("train", "--variant", "grouped_qery", "--data", text, "--out", tmp_path / "x")
    assert (code, "grouped_query" in err) == (2, True)


@pytest.mark.full
@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_a_run_by_muon_continues_in_the_other_wing(call, tmp_path, file, first, second):
    path = file(optimizer="muon", dtype="float64", dropout=0.1)
    whole, split = tmp_path / "whole", tmp_path / "split"
    assert call("train", "--settings", path, "--backend", first, "--out", whole)[0] == 0
    assert call("train", "--settings", path, "--backend", first, "--until", 3, "--out", split)[0] == 0
    assert call("train", "--resume", split, "--backend", second)[0] == 0
    found = [load_checkpoint(one / "checkpoint") for one in (whole, split)]
    assert set(found[1].slots) == set(params.slots(BYTES, TrainConfig(optimizer="muon")))
    for name, parameter in params.table(BYTES).items():
        if not parameter.dead:
            assert difference(name, found[1].weights[name], found[0].weights[name]).relative <= 1e-11, name


def test_curves_of_several_runs(call, tmp_path, file):
    for name in ("one", "two"):
        assert call("train", "--settings", file(), "--out", tmp_path / name)[0] == 0
    code, out, _ = call("curves", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "plots")
    assert code == 0
    assert out.startswith("one: 6 steps, loss ")
    assert "\ntwo: 6 steps" in out
    assert (tmp_path / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "plots" / "curves.svg").read_text()
    assert ">two<" in drawn
    assert ">tokens seen<" in drawn
    assert ">examples seen<" not in drawn
    code, _, err = call("curves", tmp_path / "plots")
    assert (code, "holds no run" in err) == (2, True)


def test_tensorboard_gets_what_the_log_gets(call, tmp_path, file):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    out = tmp_path / "run"
    assert call("train", "--settings", file(), "--tensorboard", "--out", out)[0] == 0
    (events,) = (out / "tensorboard").iterdir()
    raw, found, at = events.read_bytes(), {}, 0
    while at < len(raw):  # a record: its length in 8 bytes, 4 of a checksum, itself, 4 of a checksum
        length = int.from_bytes(raw[at : at + 8], "little")
        event = Event.FromString(raw[at + 12 : at + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + length
    for line in map(json.loads, (out / "log.jsonl").open()):
        assert found["loss", line["step"] + 1] == pytest.approx(line["loss"], rel=1e-6)


@pytest.mark.full_for(
    "jax-torch", "torch-jax"
)  # tests/cli/finetune/test_going_on.py changes with adapters, tests/cli/test_commands.py without
@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_pretraining_by_adapters_goes_on_in_the_other_wing(call, tmp_path, file, weights, first, second):
    lora = ["--train", "lora", "--rank", 2, "--alpha", 4, "--lora-dropout", 0.1, "--targets", "*.q_proj", "--dora"]
    own = ["--settings", file(**{"learning-rate": 0.01}), *lora, "--dtype", "float64"]
    whole, split = tmp_path / "whole", tmp_path / "split"
    code, _, err = call("train", *own, "--backend", first, "--out", whole)
    names = [name for name in params.table(load_checkpoint(whole / "checkpoint").config) if ".lora_" in name]
    assert (code, "160 of 9,248 parameters learn" in err) == (0, True), err
    assert call("train", *own, "--backend", first, "--until", 3, "--out", split)[0] == 0
    assert call("train", "--resume", split, "--backend", second)[0] == 0
    one, two = (load_checkpoint(folder / "checkpoint") for folder in (whole, split))
    start = load_checkpoint(weights).weights
    for name in params.table(one.config):
        a, b = (np.asarray(found.weights[name], np.float64) for found in (one, two))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9, err_msg=name)
        assert (name in start) is (name not in names)
        if name in start:
            assert (a == start[name]).all(), name
        elif "lora_B" in name:
            assert a.any(), name
    assert set(one.slots) == {f"{name}.{slot}" for name in names for slot in ("exp_avg", "exp_avg_sq")}
    logs = [[json.loads(line) for line in (folder / "log.jsonl").open()] for folder in (whole, split)]
    assert [line["backend"] for line in logs[1]] == [first] * 3 + [second] * 3
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], rel=1e-9)


def test_what_learns_is_chosen_among_what_there_is(call, tmp_path, text, weights):
    out = ["--data", text, "--steps", 2, "--out", tmp_path / "run", *FAST]
    for words, told in (
        (["--preset", "nano", "--train", "lora"], "a new one has learned nothing yet: give --weights"),
        (["--weights", weights, "--rank", 4], "--rank is for --train lora; this is --train all."),
        (["--weights", weights, "--train", "lor"], "did you mean 'lora'"),
        (["--weights", weights, "--train", "lora", "--targets", "*.q_prj"], "did you mean 'q_proj'"),
    ):
        code, printed, err = call("train", *words, *out)
        assert (code, printed, told in err, err.count("\n")) == (2, "", True, 1), err
    assert not (tmp_path / "run").exists()
    assert call("train", "--weights", weights, "--train", "last-block", *out)[0] == 0
    found, before = load_checkpoint(tmp_path / "run" / "checkpoint").weights, load_checkpoint(weights).weights
    moved = {name for name in before if (found[name] != before[name]).any()}
    assert moved == {name for name in before if name.startswith(("model.layers.1.", "model.norm."))}


def test_a_padded_vocabulary(call, tmp_path, file, text):
    """The rows that there were start as they are; a run says so, goes on with it, and writes texts of tokens alone."""
    out, path = tmp_path / "run", file(**{"pad-vocabulary": 96, "sample-every": 2})
    assert call("train", "--settings", path, "--until", 3, "--out", out)[0] == 0
    found = load_checkpoint(out / "checkpoint")
    name = "model.embed_tokens.weight"
    assert found.config.vocab_size == 288
    moved = np.abs(found.weights[name][:256] - load_checkpoint(tmp_path / "weights").weights[name]).max()
    assert moved < 4 * found.training["train"]["learning_rate"]  # in three steps of AdamW
    assert tomllib.loads((out / "settings.toml").read_text())["pad-vocabulary"] == 96
    code, _, err = call("train", "--resume", out, "--pad-vocabulary", 64)
    assert (code, "leave out --pad-vocabulary" in err) == (2, True)
    assert call("train", "--resume", out, "--backend", "jax")[0] == 0
    assert load_checkpoint(out / "checkpoint").config.vocab_size == 288
    more = ["--temperature", 5, "--max-new-tokens", 20, "--json"]
    code, told, _ = call("generate", "--weights", out, "--prompt", "sea", *more)
    assert code == 0
    assert all(0 <= token < 256 for token in json.loads(told)["rows"][0]["tokens"])
    code, _, err = call("train", "--settings", path, "--pad-vocabulary", 0, "--out", tmp_path / "none")
    assert (code, "--pad-vocabulary is 0; allowed is a whole number > 0." in err) == (2, True)
