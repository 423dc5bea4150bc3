"""A search: what it tries, what it keeps, what it goes on with, and what it refuses."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
import tomllib

import psutil
import pytest

from common import params
from common.config import GPTConfig
from common.data.corpora import split
from common.data.windows import Windows
from common.errors import UserError
from common.files import alone
from common.tokenizers import tokenizer
from common.weights.checkpoint import save_checkpoint

pytest.importorskip("optuna")

from reports.search import job
from reports.search.following import Following

BYTES = GPTConfig(256, 32, 16, 2, 2, ff_dim=32)


@pytest.fixture
def space(tmp_path):
    """Write a space; `space(search={...}, **settings)`."""
    save_checkpoint(tmp_path / "weights", BYTES, params.randomise(BYTES, 1))
    (tmp_path / "text.txt").write_text("She sells sea shells by the sea shore. " * 60)

    def write(search, **more):
        own = {"weights": str(tmp_path / "weights"), "data": str(tmp_path / "text.txt"), "steps": 6, "eval-every": 2}
        own |= {"batch-size": 4, "warmup-steps": 0, **more}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in own.items()) + "[search]\n"
        for name, what in search.items():
            inside = (
                json.dumps(what)
                if isinstance(what, list)
                else ", ".join(f"{k} = {json.dumps(v)}" for k, v in what.items())
            )
            text += f"{name} = {inside}\n" if isinstance(what, list) else f"{name} = {{ {inside} }}\n"
        path = tmp_path / "space.toml"
        path.write_text(text)
        return path

    return write


def rows(folder):
    return list(csv.DictReader((folder / "trials.csv").open()))


def test_a_search_of_one_trial(call, tmp_path, space):
    out = tmp_path / "out"
    code, said, err = call("search", space({"learning-rate": [1e-2]}), "--out", out, "--trials", 1)
    assert code == 0, err
    ((trial,), words) = rows(out), said.splitlines()
    assert words[0] == "1 trials finished, 0 stopped early, 0 failed."
    assert words[1].split() == [f"{float(trial['held_out']):.4f}", "trial", "0", "learning-rate", "0.01"]
    log = [json.loads(line) for line in (out / "trial-0000" / "log.jsonl").open()]
    assert float(trial["held_out"]) == min(line["held_out"] for line in log if "held_out" in line)
    assert tomllib.loads((out / "best.toml").read_text())["learning-rate"] == 0.01


@pytest.mark.full
def test_several_processes_share_the_trials(call, tmp_path, space):
    """Each is a run of its own by its own settings, and what two trials have in common has one loss."""
    out, path = tmp_path / "out", space({"learning-rate": [1e-3, 1e-2], "weight-decay": [0.0, 0.1]})
    code, said, err = call("search", path, "--out", out, "--trials", 6, "--processes", 2, "--no-prune")
    assert code == 0, err
    assert said.splitlines()[0] == "6 trials finished, 0 stopped early, 0 failed."
    found, losses = rows(out), {}
    assert sorted(row["trial"] for row in found) == [str(number) for number in range(6)]
    for row in found:
        stored = tomllib.loads((out / f"trial-{int(row['trial']):04d}" / "settings.toml").read_text())
        settings = stored["learning-rate"], stored["weight-decay"]
        assert settings == (float(row["learning-rate"]), float(row["weight-decay"]))
        assert losses.setdefault(settings, row["held_out"]) == row["held_out"]
    best = min(found, key=lambda row: float(row["held_out"]))
    assert tomllib.loads((out / "best.toml").read_text())["learning-rate"] == float(best["learning-rate"])
    code, said, _ = call("search", path, "--out", out, "--trials", 8, "--processes", 2, "--no-prune")
    assert (code, len(rows(out))) == (0, 8)


def test_a_second_search_in_one_folder_is_refused(call, tmp_path, space):
    """It would tell the first one's trials that they have failed."""
    out, path = tmp_path / "out", space({"learning-rate": [1e-2]})
    out.mkdir()
    with alone(out / ".lock", "mine"):
        code, _, err = call("search", path, "--out", out, "--trials", 1)
    assert (code, "Another process is searching in" in err, err.count("\n")) == (2, True, 1)
    assert not list(out.glob("trial-*"))


@pytest.mark.full
def test_a_search_finds_the_rate_that_learns_and_goes_on_where_it_stopped(call, tmp_path, space):
    out = tmp_path / "out"
    path = space({"learning-rate": [1e-6, 1e-2], "seed": {"low": 0, "high": 3}})
    code, said, err = call("search", path, "--out", out, "--trials", 2)
    assert code == 0, err
    assert said.startswith("2 trials finished")
    code, said, _ = call("search", path, "--out", out, "--trials", 4, "--no-prune")
    assert code == 0
    found = rows(out)
    assert [row["trial"] for row in found] == ["0", "1", "2", "3"]
    best = min(found, key=lambda row: float(row["held_out"] or "inf"))
    if {row["learning-rate"] for row in found} == {"1e-06", "0.01"}:
        assert best["learning-rate"] == "0.01"
    settings = tomllib.loads((out / "best.toml").read_text())
    assert settings["learning-rate"] == float(best["learning-rate"])
    assert settings["seed"] == int(best["seed"])
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    told = next(line for line in said.splitlines() if f"trial {best['trial']:>4}" in line)
    assert told.split()[0] == f"{float(best['held_out']):.4f}"
    code, _, err = call("search", space({"learning-rate": [1e-3]}), "--out", out)
    assert (code, "another space" in err) == (2, True)


@pytest.mark.full
def test_what_is_worse_than_most_is_stopped(tmp_path, space, monkeypatch):
    """The median of what came before decides: after good runs, one that hardly learns does not come to its end."""
    monkeypatch.setattr(job, "WARM", 1)
    monkeypatch.setattr(job, "POLL", 0.02)
    path = space({"learning-rate": [1e-2, 1e-7]}, steps=40)
    import optuna

    tried = iter([1e-2, 1e-7])
    monkeypatch.setattr(optuna.Trial, "suggest_categorical", lambda self, name, values: next(tried))
    study = job.run(job.Settings(str(path), tmp_path / "out", None, 2, 1, 0, True), lambda text: None)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]


@pytest.mark.full
def test_a_trial_whose_loss_is_no_number_fails_and_the_search_goes_on(tmp_path, space, monkeypatch):
    """It is told with its reason, and the one that learned is the best."""
    monkeypatch.setattr(job, "POLL", 0.02)
    import optuna

    tried = iter([1e6, 1e-2])
    monkeypatch.setattr(optuna.Trial, "suggest_categorical", lambda self, name, values: next(tried))
    heard, out = [], tmp_path / "out"
    path = space({"learning-rate": [1e6, 1e-2]}, steps=12)
    study = job.run(job.Settings(str(path), out, None, 2, 1, 0, True), heard.append)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    failed, learned = rows(out)
    assert re.match(r"The (loss|gradient norm) of step \d+ is (nan|inf) \(windows", failed["reason"])
    assert (failed["held_out"], learned["reason"]) == ("", "")
    assert f"trial 0: failed: {failed['reason']}" in heard
    told = job.table(study).splitlines()
    assert told[0] == "1 trials finished, 0 stopped early, 1 failed."
    assert told[1].split() == [f"{float(learned['held_out']):.4f}", "trial", "1"]
    assert re.split(r"  +", told[2]) == ["failed", "trial", "0", f"({failed['reason']})"]
    assert tomllib.loads((out / "best.toml").read_text())["learning-rate"] == 0.01


@pytest.fixture
def trying(tmp_path, monkeypatch):
    """A trial whose run is that script, which is told its folder, in the place of `parallax train`."""
    real = subprocess.Popen

    def make(script):
        def popen(words, **how):
            return real([sys.executable, "-c", script, words[-1]], **how)

        monkeypatch.setattr(job.subprocess, "Popen", popen)
        import optuna

        made = job.Trying(optuna.create_study().ask(), {}, tmp_path)
        made.process.wait(60)
        return made

    return make


BEGUN = "import os, pathlib, sys; folder = pathlib.Path(sys.argv[1]); (folder / 'settings.toml').touch(); "


def test_what_is_killed_or_held_out_in_vain_fails_for_itself(trying):
    killed = trying(BEGUN + "os.kill(os.getpid(), 9)")
    assert killed.looked_at()
    assert (killed.loss, killed.failed) == (None, "Signal 9 ended it.")
    lines = ['{"step": 1, "held_out": 2.5}', '{"step": 3, "held_out": NaN}', '{"step": 5, "held_out": 2.0}']
    vain = trying(BEGUN + f"(folder / 'log.jsonl').write_text({chr(10).join(lines)!r})")
    assert vain.looked_at()
    assert (vain.loss, vain.failed) == (None, "The held-out loss after step 3 is nan.")


def written(*numbers):
    """Lines of a log, one a step; those of whole numbers have a held-out loss."""
    kinds = [{"held_out": one} if isinstance(one, int) else {"loss": one} for one in numbers]
    return "".join(json.dumps({"step": step, **kind}) + "\n" for step, kind in enumerate(kinds))


def test_a_log_is_followed_whatever_becomes_of_it(tmp_path, monkeypatch):
    """Each line is read once, when it is whole; a log that is another one, longer or shorter, is read anew."""
    path, real, read = tmp_path / "log.jsonl", json.loads, []
    monkeypatch.setattr(json, "loads", lambda text: read.append(text) or real(text))
    log = Following(path, "held_out")
    assert log.read() == []
    longer = written(0.5, 7, 0.25, 6, 5)
    for how, text, count, held_out in (
        ("w", written(0.5, 3), 2, [3]),
        ("a", '{"step": 2, "held', 0, [3]),
        ("a", '_out": 2}\n{"step": 3}\n', 2, [3, 2]),
        ("a", "", 0, [3, 2]),
        ("w", written(0.5, 3), 2, [3]),  # as a run has it that goes on behind its checkpoint
        ("a", '{"step": 2, "held_out": 1}\n', 1, [3, 1]),
        ("w", longer, 5, [7, 6, 5]),
        ("w", longer + '{"step": 5, "held_out": 4}\n', 1, [7, 6, 5, 4]),  # the same lines, and one more
    ):
        with path.open(how) as file:
            file.write(text)
        read.clear()
        assert [line["held_out"] for line in log.read()] == held_out
        assert len(read) == count, text
    for damage in ('{"step": 6, "lo\n', "[6]\n", '{"held_out": 3}\n'):
        path.write_text(longer + damage)
        with pytest.raises(UserError, match=r"^Line 6 of .* is damaged"):
            log.read()
    path.unlink()
    assert log.read() != []


def test_what_is_refused_before_it_trains_ends_the_search(trying):
    """The next one would be refused as well."""
    refused = trying("print('parallax: There is no such setting.'); raise SystemExit(2)")
    with pytest.raises(UserError, match=r"Trial 0 failed: There is no such setting\."):
        refused.looked_at()


@pytest.mark.full
def test_a_killed_search_is_taken_up(call, tmp_path, space):
    out, path = tmp_path / "out", space({"learning-rate": [1e-3, 1e-2]}, steps=100000)
    words = [sys.executable, "-m", "common.cli", "search", str(path), "--out", str(out), "--trials", "1"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    log = out / "trial-0000" / "log.jsonl"
    until = time.monotonic() + 60
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert log.exists()
    (run,) = [one for one in psutil.Process(process.pid).children() if "train" in one.cmdline()]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert not run.is_running() or run.status() == psutil.STATUS_ZOMBIE
    assert [(row["state"], row["reason"]) for row in rows(out)] == [("fail", "ended with its search")]
    code, said, _ = call("search", path, "--out", out, "--trials", 1)
    first, failed = said.splitlines()
    assert (code, first) == (0, "0 trials finished, 0 stopped early, 1 failed.")
    assert failed.endswith("(ended with its search)")


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"learning-rate": []}, "allowed is a list of values"),
        ({"learning-rate": {"low": 1.0}}, "allowed is a list of values"),
        ({"learning-rate": {"low": 2.0, "high": 1.0}}, "allowed is a list of values"),
        ({"learning-rate": {"low": 0.0, "high": 1.0, "log": True}}, "it must be > 0"),
        ({"learning-rate": {"low": 0.1, "high": 1.0, "lag": True}}, "allowed is a list of values"),
        ({}, "no table [search]"),
        ({"learning-rat": [1e-3]}, "did you mean 'learning-rate'"),
    ],
)
def test_a_bad_space_is_refused(call, tmp_path, space, search, words):
    code, out, err = call("search", space(search), "--out", tmp_path / "out", "--trials", 1)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]


def test_what_is_no_space_is_refused(call, tmp_path):
    for name, words in (("bok", "did you mean 'book'"), (tmp_path / "no.toml", "There is no file")):
        code, _, err = call("search", name, "--out", tmp_path / "out")
        assert (code, words in err) == (2, True)
    code, _, err = call("search", "book", "--out", tmp_path / "out", "--trials", 0)
    assert (code, "--trials is 0" in err) == (2, True)


def test_the_books_space_has_its_12960_runs():
    count = 1
    for values in job.BOOK.values():
        count *= len(values)
    assert count == 4 * 3 * 3 * 3 * 4 * 2 * 3 * 5 == 12960


def test_the_books_space_is_of_its_story(data_dir):
    """F-091: the share to train on is .95, and the 270 tokens that are held out are one window."""
    fixed = job.SPACES["book"]
    assert (fixed["data"], fixed["decay"], fixed["held-out"]) == ("the-verdict", "all", 0.05)
    text, encoder = (data_dir / "the-verdict.txt").read_text(), tokenizer("gpt2", data_dir / "gpt2")
    held_out = encoder.encode(split(text, fixed["held-out"])[1])
    assert len(held_out) == 270
    assert len(Windows(held_out, fixed["length"])) == 1


def test_names_are_those_of_the_command_line_and_none_is_there_twice(tmp_path):
    path = tmp_path / "space.toml"

    def asked(text):
        path.write_text(text)
        return job.spaces(job.Settings(str(path), tmp_path, None, 1, 1, 0, True))

    found = asked("eval_every = 3\n[search]\nbatch_size = [1, 2]")
    assert found == ({"eval-every": 3}, {"batch-size": [1, 2]})
    with pytest.raises(UserError, match="sets 'batch-size' twice"):
        asked("batch-size = 3\nbatch_size = 4\n[search]\nseed = [1]")
    with pytest.raises(UserError, match="sets 'batch-size' for all trials and tries it"):
        asked("batch-size = 3\n[search]\nbatch_size = [1, 2]")
