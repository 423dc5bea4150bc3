"""Folders of runs: what is kept in them, who holds them, and what is left of a run that is killed."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from bytes_of_runs import BYTES

from common import backend as door
from common import params
from common import run as runs
from common.commands import options
from common.compare import difference
from common.config import Execution
from common.errors import UserError
from common.files import take_place
from common.tokenizers import bpe
from common.weights.checkpoint import load_checkpoint


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
    assert call("train", "--resume", out)[0] == 0
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
    assert call("train", "--resume", out, "--backend", second)[0] == 0
    assert call("train", "--settings", path, "--out", tmp_path / "whole")[0] == 0
    assert [line["step"] for line in runs.read_log(out / "log.jsonl")] == list(range(6))
    whole, split = (load_checkpoint(one / "checkpoint").weights for one in (tmp_path / "whole", out))
    for name, parameter in params.table(BYTES).items():
        if first == second:
            assert np.array_equal(whole[name], split[name]), name
        elif not parameter.dead:  # the claim of C5 about runs that change framework, as of Muon's in test_learning.py
            assert difference(name, split[name], whole[name]).relative <= 1e-11, name


def told(log):
    """A log without what the clock says."""
    return [{name: one[name] for name in one.keys() - {"seconds", "tokens_per_second"}} for one in log]


def test_the_log_has_every_step_once_it_is_done(call, tmp_path, file, monkeypatch):
    """Before there is a checkpoint, and in a run that goes on with fewer lines than the file had; checkpoints leave the
    file as it is, for those who follow it."""
    out, path, follow, seen = tmp_path / "run", file(**{"save-every": 4}), runs.RunFolder.follow, []
    files = []

    def followed(self, log):
        follow(self, log)
        there = runs.read_log(out / runs.LOG)
        assert list(there) == log
        seen.append((len(there), (out / runs.CHECKPOINT).exists()))
        files.append((out / runs.LOG).stat().st_ino)

    monkeypatch.setattr(runs.RunFolder, "follow", followed)
    assert call("train", "--settings", path, "--until", 5, "--out", out)[0] == 0
    assert seen == [(1, False), (2, False), (3, False), (4, False), (5, True)]
    assert set(files) == {(out / runs.LOG).stat().st_ino}
    with (out / runs.LOG).open("a") as log:  # as it is if somebody was killed behind the checkpoint
        log.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    assert call("train", "--resume", out)[0] == 0
    assert seen[5:] == [(6, True)]


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_a_run_goes_on_as_it_was_by_the_words_that_it_prints(call, tmp_path, file, monkeypatch, backend):
    """Precision, ways of running, evaluation, samples and what is kept are those of a run that nobody interrupted; the
    words say what is of the machine, or was chosen when it was taken up."""
    own = {"backend": backend, "dtype": "float64", "dropout": 0.1, "set": ["loss=chunked"], "save-every": 1, "keep": 2}
    own |= {"eval-windows": 3, "keep-best": True, "sample-every": 2, "prompt": "She sells"}
    path, threads = file(**own), ["--threads", 1] if backend == "torch" else []
    assert call("train", "--settings", path, *threads, "--out", tmp_path / "whole")[0] == 0
    kind = type(door.load(backend).build(BYTES, params.randomise(BYTES, 0), Execution()))
    real, steps = kind.train_step, []

    def interrupted(self, *batch):
        steps.append(1)
        if len(steps) in (1, 4):
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *batch)

    monkeypatch.setattr(kind, "train_step", interrupted)
    out = tmp_path / "run"
    code, _, err = call("train", "--settings", path, *threads, "--out", out)
    words = err.partition("go on with: parallax ")[2].partition("\n")[0]
    assert (code, words) == (130, f"train --resume {out}" + (" --threads 1" if threads else "")), err
    code, _, err = call(*words.split(), "--save-every", 7)
    words = err.partition("go on with: parallax ")[2].partition("\n")[0]
    assert (code, words.split()[3:5]) == (130, ["--save-every", "7"]), err
    assert call(*words.split())[0] == 0
    assert told(runs.read_log(out / runs.LOG)) == told(runs.read_log(tmp_path / "whole" / runs.LOG))
    for place in ("checkpoint", "best"):
        whole, split = (load_checkpoint(one / place) for one in (tmp_path / "whole", out))
        assert (whole.training["step"], whole.training["execution"]) == (
            split.training["step"],
            split.training["execution"],
        )
        assert all(np.array_equal(whole.weights[name], split.weights[name]) for name in whole.weights), place


def test_only_what_an_error_tells_of_is_to_be_said_otherwise():
    was = {"device": "cuda", "mode": "fast", "layers": "scan", "dtype": "bfloat16", "compile": True}
    assert options.plain("torch", was, "PyTorch sees no device 'cuda'.") == {"device": "--device cpu"}
    assert options.plain("torch", was, "layout=data=2 needs 2 processes; start them by torchrun.") == {}
    assert options.plain("torch", was, "PyTorch does not compile this.") == {"compile": "--no-compile"}
    assert options.plain("jax", {"mode": "nf4"}, "base='nf4' cannot be.") == {"mode": "--mode default"}
    assert options.plain("jax", {"more": ["loss=chunked"]}, "loss='chunked' cannot be.") == {"more": "--set loss=plain"}


def test_the_words_say_what_was_left_out_when_it_was_taken_up(call, tmp_path, file):
    """A run may be taken up in another precision by saying none; who goes on by its words goes on in that."""
    out, own = tmp_path / "my run", {"set": ["loss=chunked"]}
    assert call("train", "--settings", file(dtype="float64", **own), "--until", 2, "--out", out)[0] == 0
    code, said, err = call("train", "--settings", file(), "--auto-resume", "--until", 3, "--out", out)
    assert code == 0, err
    words = f"train --resume '{out}' --dtype float32 --set loss=plain"
    assert f"Go on with: parallax {words} (any backend)" in said
    assert load_checkpoint(out / "checkpoint").training["execution"]["dtype"] == "float32"
    assert call(*shlex.split(words), "--until", 4)[0] == 0
    assert load_checkpoint(out / "checkpoint").training["execution"]["dtype"] == "float32"


def test_a_run_that_cannot_go_on_as_it_was_says_what_to_say(call, tmp_path, file):
    """In a framework that has no such way of running; and the oracle's precision is that of its runs."""
    out, stored = tmp_path / "run", tmp_path / "run" / "settings.toml"
    assert call("train", "--settings", file(), "--until", 2, "--out", out)[0] == 0
    before = stored.read_text()
    stored.write_text(before + 'layers = "scan"\ndtype = "float64"\n')
    code, _, err = call("train", "--resume", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "layers='scan' is JAX's; the run was begun with --layers scan: say another way, as in --layers loop." in err
    code, _, err = call("train", "--resume", out, "--layers", "scan")  # that is no matter of how the run was
    assert (code, err) == (2, "parallax: PyTorch runs its layers in a loop; layers='scan' is JAX's.\n")
    code, said, _ = call("train", "--resume", out, "--layers", "loop", "--until", 3)
    assert (code, f"Go on with: parallax train --resume {out} --layers loop (any backend)" in said) == (0, True)
    assert load_checkpoint(out / "checkpoint").training["execution"]["dtype"] == "float64"
    code, _, err = call("train", "--resume", out, "--layers", "loop", "--backend", "numpy", "--dtype", "float32")
    assert (code, "begun with" in err) == (2, False)
    stored.write_text(before.replace('"torch"', '"numpy"'))
    assert call("train", "--resume", out, "--backend", "torch", "--until", 4)[0] == 0
    assert load_checkpoint(out / "checkpoint").training["execution"]["dtype"] == "float64"
    stored.write_text(before + 'dtype = "bfloat16"\n')
    code, _, err = call("train", "--resume", out, "--backend", "numpy")
    assert (code, "was begun with --dtype bfloat16: say another way, as in --dtype float64." in err) == (2, True), err
    stored.write_text(before + "keep = [3]\n")
    code, _, err = call("train", "--resume", out)
    assert (code, "is no TOML file" in err) == (2, True)


FOLLOWED = """
import os, signal, sys
from common import run
from common.cli import main

def dies(path, text):
    with open(path, "a") as file:
        file.write(text if '"step": 4' not in text else text[: len(text) // 2])
    if '"step": 4' in text:
        os.kill(os.getpid(), signal.SIGKILL)

run.append = dies
main(sys.argv[1:])
"""


@pytest.mark.full_for("without one")
@pytest.mark.parametrize("every", [2, 50], ids=["behind a checkpoint", "without one"])
def test_a_run_that_is_killed_while_it_writes_a_line_has_the_log_of_one_that_nobody_killed(call, tmp_path, file, every):
    """SIGKILL in the middle of the line of the fifth step: half of it is none, for who looks at it and who goes on."""
    out, path = tmp_path / "run", file(**{"save-every": every})
    words = ["train", "--settings", str(path), "--out", str(out)]
    assert subprocess.run([sys.executable, "-c", FOLLOWED, *words], capture_output=True).returncode == -9
    assert (out / runs.LOG).read_text().count("\n") == 4
    assert not (out / runs.LOG).read_text().endswith("\n")
    code, said, err = call("curves", out, "--out", tmp_path / "plots")
    assert (code, "run: 4 steps" in said) == (0, True), err
    assert (out / "checkpoint").is_dir() == (every == 2)
    assert call(*(["train", "--resume", out] if every == 2 else words))[0] == 0
    assert call("train", "--settings", path, "--out", tmp_path / "whole")[0] == 0
    assert told(runs.read_log(out / runs.LOG)) == told(runs.read_log(tmp_path / "whole" / runs.LOG))


def test_a_line_that_is_damaged_is_not_taken_for_one_that_is_being_written(tmp_path):
    path = tmp_path / runs.LOG
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert [line["step"] for line in runs.read_log(path)] == [0, 1]
    assert [line["step"] for line in runs.read_log(path, 2)] == [0, 1]
    with pytest.raises(UserError, match=r"Line 3 of .* is damaged"):  # that of a step that was saved
        runs.read_log(path, 3)
    for text, number in (('{"step": 0}\n{"st\n', 2), ('{"step": 0}\n{"st\n{"step": 2}\n', 2), ('{"st', 1)):
        path.write_text(text)
        with pytest.raises(UserError, match=f"Line {number} of .* is damaged"):
            runs.read_log(path)


KILLED = """
import os, signal, sys
from common import run
from common.cli import main

TOUCHES = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree"}
moment, seen, armed, real = int(sys.argv[1]), 0, False, run.RunFolder.save

def watch(event, args):
    global seen
    if armed and event in TOUCHES:
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

def save(self, *rest, **more):
    global armed
    armed = rest[1]["step"] == 5
    real(self, *rest, **more)
    armed = False

run.RunFolder.save = save
sys.addaudithook(watch)
main(["train", *sys.argv[2:]])
"""


@pytest.mark.full
def test_a_run_that_is_killed_anywhere_while_it_saves_goes_on(call, tmp_path, file):
    """SIGKILL as it touches the first, fourth, seventh, … file or folder, while earlier checkpoints and the best one
    are kept: the run goes on from this checkpoint or from the one before, to where nobody would have killed it."""
    path = file(**{"save-every": 1, "dropout": 0.1})
    more = ["--settings", path, "--keep", 3, "--keep-best"]
    assert call("train", *more, "--out", tmp_path / "whole")[0] == 0
    whole = load_checkpoint(tmp_path / "whole" / "checkpoint").weights
    best = load_checkpoint(tmp_path / "whole" / "best").training["step"]
    for moment in itertools.count(1, 3):
        out = tmp_path / f"run-{moment}"
        asked = [sys.executable, "-c", KILLED, *map(str, [moment, *more, "--out", out])]
        code = subprocess.run(asked, capture_output=True).returncode
        if code == 0:  # it was done before
            break
        assert code == -9, moment
        assert load_checkpoint(out / "checkpoint").training["step"] in (4, 5), moment
        assert call("train", "--resume", out)[0] == 0, moment
        found = load_checkpoint(out / "checkpoint")
        assert (found.training["step"], len(runs.read_log(out / "log.jsonl"))) == (6, 6), moment
        assert all(np.array_equal(found.weights[name], whole[name]) for name in whole), moment
        assert load_checkpoint(out / "best").training["step"] == best, moment
        assert len(list((out / "checkpoints").iterdir())) == 2, moment
    assert moment > 20


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
