"""Runs that say all their settings in a file, keep checkpoints, are held alone, show samples and can be drawn."""

import json
import os
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from common import meter, params
from common import run as runs
from common.accounting import flops
from common.adapters import Adapter
from common.compare import difference
from common.config import Execution, GPTConfig, TrainConfig
from common.files import take_place
from common.tokenizers import bpe
from common.weights.checkpoint import load_checkpoint, save_checkpoint

BYTES = GPTConfig(256, 32, 16, 2, 2, ff_dim=32)
FAST = ["--eval-every", 4, "--batch-size", 4]


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


def test_the_last_checkpoints_and_the_best_are_kept(call, tmp_path, file):
    out = tmp_path / "run"
    code, _, _ = call("train", "--settings", file(**{"save-every": 1}), "--keep", 3, "--keep-best", "--out", out)
    assert code == 0
    assert sorted(one.name for one in (out / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]
    log = [json.loads(line) for line in (out / "log.jsonl").open()]
    held_out = {line["step"] + 1: line["held_out"] for line in log if "held_out" in line}
    assert set(held_out) == {2, 4, 6}
    assert load_checkpoint(out / "best").training["step"] == min(held_out, key=held_out.get)
    assert load_checkpoint(out / "checkpoint").training["step"] == 6
    again = tmp_path / "again"
    assert call("train", "--settings", file(), "--until", 5, "--out", again)[0] == 0
    for name, array in load_checkpoint(out / "checkpoints" / "step-00000005").weights.items():
        np.testing.assert_array_equal(array, load_checkpoint(again / "checkpoint").weights[name])


def test_a_folder_belongs_to_one_process(call, tmp_path, file):
    out = tmp_path / "run"
    with runs.RunFolder(out).alone():
        code, _, err = call("train", "--settings", file(), "--out", out)
    assert code == 2
    assert "Another process is training in" in err
    assert call("train", "--settings", file(), "--out", out)[0] == 0


def test_the_best_is_kept_by_who_goes_on_if_its_run_was_killed_before_that(call, tmp_path, file, monkeypatch):
    out, path = tmp_path / "run", file(**{"keep-best": True})
    losses, link = iter([3.0, 1.0, 2.0]), runs._link  # after steps 2, 4 and 6
    monkeypatch.setattr(runs, "held_out_loss", lambda *_: next(losses))

    class Killed(BaseException):
        pass

    def dies(source, target):
        if target.name == runs.BEST and target.exists():
            raise Killed
        link(source, target)

    monkeypatch.setattr(runs, "_link", dies)
    with pytest.raises(Killed):
        call("train", "--settings", path, "--out", out)
    monkeypatch.setattr(runs, "_link", link)
    assert [load_checkpoint(out / name).training["step"] for name in ("checkpoint", "best")] == [4, 2]
    assert call("train", "--resume", out, "--keep-best", "--eval-every", 2)[0] == 0
    assert [load_checkpoint(out / name).training["step"] for name in ("checkpoint", "best")] == [6, 4]


def test_a_run_that_meets_no_number_leaves_the_curves_that_led_there(call, tmp_path, file):
    out, wild = tmp_path / "run", {"learning-rate": 1e6, "weight-decay": 1e6, "warmup-steps": 0, "steps": 50}
    code, _, err = call("train", "--settings", file(**wild), "--out", out)
    assert (code, "lower the learning rate" in err) == (2, True)
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").open()]
    assert steps
    assert steps == list(range(len(steps)))
    assert f" of step {len(steps)} is " in err
    assert f"parallax curves {out}" in err
    assert not (out / "checkpoint").exists()
    code, said, _ = call("curves", out, "--out", tmp_path / "plots")
    assert (code, f"run: {len(steps)} steps" in said) == (0, True)


def test_a_run_that_is_interrupted_leaves_its_log_and_goes_on_behind_its_checkpoint(call, tmp_path, file, monkeypatch):
    out, path, evaluate = tmp_path / "run", file(**{"save-every": 2, "eval_every": 4}), runs.held_out_loss

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "held_out_loss", interrupted)
    assert call("train", "--settings", path, "--out", out)[0] == 130
    monkeypatch.setattr(runs, "held_out_loss", evaluate)
    logs = [runs.read_log(out / "log.jsonl")]
    assert load_checkpoint(out / "checkpoint").training["step"] == 2
    assert call("train", "--resume", out, "--until", 3)[0] == 0
    logs.append(runs.read_log(out / "log.jsonl"))
    assert call("train", "--resume", out)[0] == 0
    assert call("train", "--settings", path, "--out", tmp_path / "whole")[0] == 0
    whole = runs.read_log(tmp_path / "whole" / "log.jsonl")
    for log, steps in ((logs[0], 3), (logs[1], 3), (runs.read_log(out / "log.jsonl"), 6)):
        assert [(one["step"], one["loss"]) for one in log] == [(one["step"], one["loss"]) for one in whole[:steps]]


def test_who_comes_second_leaves_the_folder_as_it_is(call, tmp_path, text, monkeypatch):
    """Also the vocabulary of a run that has no checkpoint yet; and a run that has ended meanwhile."""
    out = tmp_path / "run"
    for name, size in (("one", 262), ("two", 270)):
        bpe.train(text.read_text(), size).save(tmp_path / name)
    asked = ["train", "--data", text, "--length", 16, "--tokenizer", "bpe", "--vocab", tmp_path / "two", "--out", out]
    folder = runs.RunFolder(out)
    with folder.alone():
        bpe.load(tmp_path / "one").save(out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        code, _, err = call(*asked)
    assert (code, "Another process is training in" in err) == (2, True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.setattr(runs, "check_folder", lambda path: folder.checkpoint.mkdir())
    code, _, err = call(*asked)
    assert (code, "already holds a run" in err) == (2, True)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


@pytest.mark.full_for("jax")
@pytest.mark.parametrize(("first", "second"), [("torch", "torch"), ("torch", "jax"), ("jax", "torch")])
def test_a_killed_run_goes_on_from_its_last_checkpoint(call, tmp_path, file, first, second):
    """SIGKILL in the middle of step 5, after a checkpoint every step: what was saved is whole, and goes on in either
    wing to where a run would have come that nobody killed."""
    out, path = tmp_path / "run", file(**{"save-every": 1, "dtype": "float64", "dropout": 0.1, "backend": first})
    code = (
        "import os, signal\n"
        "from common.cli import main\n"
        "from common import run\n"
        "real = run.RunFolder.save\n"
        "def save(self, *rest, **more):\n"
        "    if self.checkpoint.is_dir() and rest[1]['step'] == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(self, *rest, **more)\n"
        "run.RunFolder.save = save\n"
        f"main(['train', '--settings', {str(path)!r}, '--out', {str(out)!r}])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert load_checkpoint(out / "checkpoint").training["step"] == 4
    assert call("train", "--resume", out, "--backend", second, "--dtype", "float64")[0] == 0
    assert call("train", "--settings", path, "--out", tmp_path / "whole")[0] == 0
    assert [line["step"] for line in runs.read_log(out / "log.jsonl")] == list(range(6))
    whole, split = (load_checkpoint(one / "checkpoint").weights for one in (tmp_path / "whole", out))
    for name, parameter in params.table(BYTES).items():
        if first == second:
            assert np.array_equal(whole[name], split[name]), name
        elif not parameter.dead:  # the claim of C5 about runs that change framework, as of Muon's below
            assert difference(name, split[name], whole[name]).relative <= 1e-11, name


def test_what_a_killed_process_had_half_written_goes(call, tmp_path, file):
    """What was there before, and what is of others, stays."""
    out = tmp_path / "run"
    assert call("train", "--settings", file(keep=2, **{"save-every": 1}), "--until", 2, "--out", out)[0] == 0
    half = [out / ".checkpoint.ab_c1234", out / ".best.abcd1234", out / "checkpoints" / ".step-00000001.abcd1234"]
    kept = [out / ".checkpoint.old.abcd1234", out / ".mine", out / "checkpoints" / ".step-mine"]
    for folder in (*half, *kept):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    (out / ".log.jsonl.abcd1234").write_text("half")
    assert call("train", "--resume", out)[0] == 0
    hidden = {path for path in (*out.iterdir(), *(out / "checkpoints").iterdir()) if path.name.startswith(".")}
    assert hidden == {*kept, out / ".lock"}


def test_a_folder_changes_place_at_once(tmp_path, monkeypatch):
    """No moment without a folder of that name: it is not renamed away where the system can let names change places."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    renamed = []
    monkeypatch.setattr(os, "rename", lambda *names: renamed.append(names))
    take_place(tmp_path / "new", tmp_path / "old")
    if sys.platform == "linux":
        assert renamed == []
        assert [one.name for one in (tmp_path / "old").iterdir()] == ["new"]
        assert not (tmp_path / "new").exists()


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
    assert call("train", "--resume", split, "--backend", second, "--dtype", "float64")[0] == 0
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
    assert ">two<" in (tmp_path / "plots" / "curves.svg").read_text()
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


def test_the_meter_leaves_out_the_first_step_and_never_shows_more_than_all():
    speed = meter.of_run(BYTES, TrainConfig(batch_size=2, accumulate=3), 32, Execution(), None)
    assert speed.tokens == 192
    speed.add(100.0)
    assert (str(speed), speed.tokens_per_second, speed.mfu) == ("", None, None)
    speed.most = speed.work / 0.25
    speed.add(0.5)
    assert speed.tokens_per_second == 384
    assert speed.mfu == pytest.approx(0.5)
    assert str(speed) == "  384 tokens/s  MFU 50%"
    speed.most = speed.work * 1.0
    assert speed.mfu is None
    assert meter.most(Execution(dtype="bfloat16"), None) is None
    assert meter.most(Execution(device="cuda"), "an unknown device") is None
    assert meter.most(Execution(device="cuda"), "NVIDIA H100 80GB HBM3") == 67e12


def test_the_meter_counts_what_a_run_multiplies():
    """Of a run that trains a part: what is frozen has no gradient, so the same speed is less of what the device can."""
    adapted = BYTES.with_(adapters=Adapter(rank=2))
    plan, how = TrainConfig(batch_size=2, accumulate=3), (32, Execution(), None)
    for config, train in ((adapted, plan), (BYTES, plan.with_(trained=("model.layers.1.*",)))):
        part, full = (meter.of_run(config, one, *how).work for one in (train, plan.with_(trained=("*",))))
        assert part == sum(flops.training(config, 6, 32, trained=params.trained(config, train)).values())
        assert part < 0.85 * full


@pytest.mark.full_for(
    "jax-torch", "torch-jax"
)  # tests/cli/finetune/test_going_on.py changes with adapters, test_commands.py without
@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_pretraining_by_adapters_goes_on_in_the_other_wing(call, tmp_path, file, weights, first, second):
    lora = ["--train", "lora", "--rank", 2, "--alpha", 4, "--lora-dropout", 0.1, "--targets", "*.q_proj", "--dora"]
    own, exact = ["--settings", file(**{"learning-rate": 0.01}), *lora], ["--dtype", "float64"]
    whole, split = tmp_path / "whole", tmp_path / "split"
    code, _, err = call("train", *own, *exact, "--backend", first, "--out", whole)
    names = [name for name in params.table(load_checkpoint(whole / "checkpoint").config) if ".lora_" in name]
    assert (code, "160 of 9,248 parameters learn" in err) == (0, True), err
    assert call("train", *own, *exact, "--backend", first, "--until", 3, "--out", split)[0] == 0
    assert call("train", "--resume", split, "--backend", second, *exact, "--eval-every", 2)[0] == 0
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
