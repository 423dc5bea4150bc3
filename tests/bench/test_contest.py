"""The harness refuses what it must not time, tells contenders apart, and keeps what was measured."""

import json
import os
import time
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import job
from benchmarks.harness import contest, fresh, gate, record, service
from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.process import Rules, sentence
from benchmarks.harness.record import Record
from benchmarks.harness.summary import summarise
from benchmarks.harness.together import at_once
from benchmarks.harness.worker import WorkerFault
from common.config import Execution, GPTConfig
from common.errors import UserError

HERE = Path(__file__).parent
CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)


def contender(name, copy=""):
    return Contender(name + copy, name, f"planted_contenders:{name}_backend", name)


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    """Workers find the planted contenders."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))


def measured(tmp_path, *contenders, seconds=1.0, task="forward", new=0):
    cell = Cell(task, task, "tiny", CONFIG, 3, 8, "float32", tuple(contenders), new)
    kept = Record(tmp_path)
    kept.add("run", schema=1, device={"kind": "cpu"}, load=None)
    contest.run([cell], Rules(1, seconds=seconds, least=4, quick=True), kept, lambda what, share: None)
    kept.finish(None, None)
    (found,) = summarise(record.read(tmp_path / record.RAW))["cells"]
    return found, {one["name"]: one for one in found["contenders"]}


def test_honest_contenders_pass_the_gate_and_are_timed_in_pairs(tmp_path):
    """What the clock says is another matter: verdicts are tested on drawn times, in tests/compare."""
    cell, found = measured(tmp_path, contender("honest"), contender("slow"), contender("honest", " again"))
    assert [one["refused"] for one in found.values()] == [None] * 3
    assert all(gate["passed"] and gate["least"] <= gate["error"] for one in found.values() for gate in one["gate"])
    assert {one["seconds"]["samples"] for one in found.values()} == {4 * cell["blocks"]}
    assert cell["blocks"] >= 4
    named = [(pair["first"], pair["second"]) for pair in cell["pairs"]]
    assert named == [("honest", "slow"), ("honest", "honest again"), ("slow", "honest again")]
    assert all(pair["low"] <= pair["high"] and pair["floor"] > 0 for pair in cell["pairs"])


def test_with_one_process_each_a_second_round_has_others_and_all_else_is_told_once(tmp_path):
    """Who is refused in the first round is so in the second, and not told again."""
    contenders = contender("honest"), contender("slow"), contender("wrong")
    cell = Cell("forward", "forward", "tiny", CONFIG, 3, 8, "float32", contenders, memory=True)
    kept = Record(tmp_path)
    kept.add("run", schema=1, device={"kind": "cpu"}, load=None)
    rules = Rules(1, seconds=1.0, least=8, enough=4, quick=True, all_memory=False)
    contest.run([cell], rules, kept, lambda what, share: None, 1, rounds=2)
    lines = kept.lines
    assert [line["name"] for line in lines if line["kind"] == "contender"] == ["honest", "slow", "wrong"]
    for kind, due in (("cell", 1), ("phase", 3), ("refused", 1), ("memory", 2)):
        assert sum(line["kind"] == kind for line in lines) == due
    blocks = [line for line in lines if line["kind"] == "block"]
    assert [line["block"] for line in blocks] == list(range(len(blocks)))
    assert all("others" in line for line in blocks)
    copies = [{copy for _, copy, _ in line["turns"]} for line in blocks]
    assert copies == sorted(copies, key=min)
    assert copies.count({0, 1}) >= 2
    assert copies.count({2, 3}) >= 2
    (found,) = summarise(lines)["cells"]
    assert found["rounds"] == 2
    assert {one["name"]: one["seconds"] and one["seconds"]["samples"] for one in found["contenders"]} == {
        "honest": 4 * len(blocks),
        "slow": 4 * len(blocks),
        "wrong": None,
    }
    kept.finish(None, None)


@pytest.mark.parametrize(("task", "spent"), [("start-up", 40_000_000), ("load", 0)])
def test_a_beginnings_peak_memory_is_measured_from_the_import_on(tmp_path, task, spent):
    """Of starting up, what the first call takes for a moment is in it; of loading, which makes none, it is not."""
    cell = Cell(task, task, "tiny", CONFIG, 3, 8, "float32", (contender("spending"), contender("wrong")))
    kept = Record(tmp_path)
    fresh.run(cell, Rules(1, seconds=0.1, least=1), kept, lambda what, share: None)
    first, _ = (line for line in kept.lines if line["kind"] == "contender")
    assert first["settings"]["kernel"] == "for (3, 8, False)"
    (found,) = (line for line in kept.lines if line["kind"] == "memory")  # who is refused has none
    assert found["name"] == "spending"
    assert found["import"] > 10_000_000
    assert spent < found["peak"] - found["import"] < spent + 30_000_000


MISTAKES = {
    "wrong": "another result is not timed",
    "silent": "another result is not timed",
    "too_precise": "computes in another precision than its row says",
    "half": "another result is not timed",
    "recompiling": "It compiled while it was timed",
    "compiling_late": "It compiled while it was timed",
    "specialised": "It compiled while it was timed",
    "late": "not waited for is not timed",
    "lazy": "not waited for is not timed",
    "promise": "may be a promise",
    "threaded": "not waited for is not timed",
    "tiring": "tiring, after it was timed: its logits is",
}


@pytest.mark.parametrize(
    "mistakes",
    [
        pytest.param(("wrong", "too_precise", "recompiling", "promise"), id="four at once"),
        *(pytest.param((name,), id=name, marks=pytest.mark.full) for name in MISTAKES),
    ],
)
def test_mistakes_are_refused_and_the_others_are_timed(tmp_path, mistakes):
    cell, found = measured(tmp_path, contender("honest"), *map(contender, mistakes))
    assert found["honest"]["refused"] is None
    assert found["honest"]["seconds"]["samples"] >= 4
    for name in mistakes:
        assert found[name]["refused"] is not None
        assert MISTAKES[name] in found[name]["refused"]
    assert not cell["pairs"]


@pytest.mark.full_for("half")
@pytest.mark.parametrize(("mistake", "words"), [("half", "prompt's logits is"), ("too_precise", "another precision")])
def test_who_decodes_in_another_precision_is_refused_though_the_tokens_are_right(tmp_path, mistake, words):
    _, found = measured(tmp_path, contender("honest"), contender(mistake), task="decode", new=4)
    assert found["honest"]["refused"] is None
    assert found["honest"]["seconds"]["samples"] >= 4
    assert words in found[mistake]["refused"]
    first = found[mistake]["gate"][0]
    assert (first["what"], first["passed"]) == ("choice of tokens", True)


@pytest.mark.full
def test_who_trains_no_more_after_some_steps_is_refused(tmp_path):
    _, found = measured(tmp_path, contender("training"), contender("resting"), task="train")
    assert found["training"]["refused"] is None
    assert found["training"]["seconds"]["samples"] >= 4
    assert "it has stopped working" in found["resting"]["refused"]


def test_a_judge_that_cannot_judge_refuses_everybody_in_that_cell_alone(tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("no memory")

    monkeypatch.setattr(contest, "_verdicts", fails)
    _, found = measured(tmp_path, contender("honest"))
    assert found["honest"]["refused"] == "there is nobody to judge it: no memory"


def test_a_fault_is_told_by_the_line_that_names_it():
    """What a framework says behind it, as advice, tells nothing."""
    advice = "Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace"
    named = "torch._dynamo.exc.InternalTorchDynamoError: IndexError: tuple index out of range"
    fault = WorkerFault(
        f"in the worker of torch:\nTraceback:\n  File x\n{named}\n\nfrom user code:\n  gpt.py\n\n{advice}"
    )
    assert sentence(fault) == named
    assert sentence(WorkerFault("in the worker of torch:\nno name at all")) == "no name at all"
    assert sentence(UserError("Two\nlines.")) == "Two lines."


def test_an_interruption_drops_what_has_not_begun():
    done = []

    def stops():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at_once({"a": [stops], "b": [lambda n=n: (time.sleep(0.05), done.append(n)) for n in range(50)]}, 1)
    assert len(done) < 50


def test_who_computes_with_other_threads_is_refused(tmp_path):
    cell = Cell("forward", "forward", "tiny", CONFIG, 3, 8, "float32", (contender("honest"),))
    kept = Record(tmp_path)
    kept.add("run", schema=1, device={"kind": "cpu"}, load=None)
    contest.run([cell], Rules(2, seconds=0.1, least=1), kept, lambda what, share: None)
    (line,) = record.of(kept.lines, "refused")
    assert line["reason"] == "it computes with 1 threads where 2 are asked for."


def test_what_a_killed_run_left_gets_its_name_once_nobody_writes_it(tmp_path):
    """A last line that was cut short is dropped; what is being written stays."""
    kept = Record(tmp_path)
    kept.add("run", schema=1, device={"kind": "cpu"}, load=None)
    kept.add("skipped", what="x", reason="y")
    with pytest.raises(UserError, match="is being measured right now"):
        record.revive(tmp_path)
    kept._file.write('{"kind": "blo')
    kept._file.close()
    assert record.revive(tmp_path)
    assert [line["kind"] for line in record.read(tmp_path / record.RAW)] == ["run", "skipped"]
    assert summarise(record.read(tmp_path / record.RAW))["partial"] == "not finished"
    assert not record.revive(tmp_path)
    assert not record.revive(tmp_path / "nowhere")


def test_more_than_the_machine_can_do_is_not_published(tmp_path):
    measured(tmp_path, contender("honest"))
    lines = record.read(tmp_path / record.RAW)
    work = next(line for line in lines if line["kind"] == "cell")["flops_full"]
    for peak, refused in ((work / 1e-3, False), (work / 10, True)):
        more = [*lines, {"kind": "peak", "what": "gemm", "wing": "torch", "dtype": "float32", "size": 1, "value": peak}]
        (cell,) = summarise(more)["cells"]
        found = cell["contenders"][0]
        assert (found["refused"] is not None) is refused
        assert (0 < found["mfu_full"] <= 1) is not refused


def work_of(tmp_path, cells):
    rules = Rules(1, seconds=0.5, least=2, quick=True)
    return job.Work(
        job.Settings(), {"kind": "cpu", "name": "here", "slug": "here"}, rules, tuple(cells), tmp_path / "here"
    )


@pytest.mark.full
def test_an_interrupted_run_is_kept_and_marked_and_never_replaces_a_whole_one(tmp_path, monkeypatch):
    cell = Cell("forward", "forward", "tiny", CONFIG, 3, 8, "float32", (contender("honest"), contender("slow")))
    work = work_of(tmp_path, [cell])
    monkeypatch.setattr(job.beside, "peaks", lambda *_: None)
    folder, partial = job.produce(work, lambda what, share: None, lambda place: None)
    assert partial is None
    whole = (folder / record.RAW).read_bytes()

    def cut(cells, rules, kept, report, *how, run=contest.run):
        run(cells, rules, kept, report, *how)
        raise KeyboardInterrupt

    monkeypatch.setattr(contest, "run", cut)
    other, partial = job.produce(work, lambda what, share: None, lambda place: None)
    assert partial == "interrupted"
    assert other != folder
    assert (folder / record.RAW).read_bytes() == whole
    lines = record.read(other / record.RAW)
    assert summarise(lines)["partial"] == "interrupted"
    assert any(line["kind"] == "block" for line in lines)
    assert not list(tmp_path.glob(".*"))


def test_what_there_is_no_time_for_is_listed_and_the_rest_is_kept(tmp_path, monkeypatch):
    cells = [
        Cell("forward", "forward", name, CONFIG, 3, 8, "float32", (contender("honest"), contender("slow")))
        for name in ("one", "two")
    ]
    work = replace(work_of(tmp_path, cells), asked=job.Settings(minutes=1e-3))
    monkeypatch.setattr(job.beside, "peaks", lambda *_: None)
    monkeypatch.setattr(job.beside, "known", lambda *_: None)
    clock = iter((0.0, 0.0, 1.0))
    monkeypatch.setattr(job.time, "monotonic", lambda: next(clock))

    def run(cells, rules, kept, report, *how):
        kept.add("cell", **cells[0].line())
        kept.add("block", cell=cells[0].name, turns=[])

    monkeypatch.setattr(contest, "run", run)
    folder, partial = job.produce(work, lambda what, share: None, lambda place: None)
    assert partial == "0.001 minutes were over"
    (skipped,) = record.of(record.read(folder / record.RAW), "skipped")
    assert skipped["what"] == "2 parts"
    assert cells[1].title in skipped["reason"]
    assert cells[0].title not in skipped["reason"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"suites": ("forwad",)}, "did you mean 'forward'"),
        ({"device": "cuda"}, "There is no GPU 'cuda' here"),
        ({"device": "tpu"}, "did you mean|device"),
        ({"threads": 0}, "this process may use 1 to"),
        *(({"seconds": number}, "allowed is a number in (0, 3600]") for number in (0, 3601, inf, nan)),
        *(({"minutes": number}, "allowed is a number in (0, 10080]") for number in (0, 1e12, inf, nan)),
        ({"model": "gpt2-12m"}, "did you mean 'gpt2-124m'"),
        ({"model": "gpt2-124m"}, "--quick measures the small model alone, nano"),
        ({"device": "cpu:0"}, "There is no device 'cpu:0'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_begins(tmp_path, asked, words, monkeypatch):
    monkeypatch.setattr(job.gpu, "gpus", list)
    with pytest.raises(UserError) as refused:
        job.prepare(job.Settings(out=tmp_path, **{"quick": True, **asked}))
    assert any(word in str(refused.value) for word in words.split("|"))
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(UserError, match=r"needs about \d+\.\d GB for its \d .*, and \d+\.\d GB are free"):
        job.prepare(job.Settings(suites=("train",), model="gpt2-1558m", out=tmp_path))


def test_a_record_survives_a_crash_line_by_line(tmp_path):
    kept = Record(tmp_path)
    kept.add("run", schema=1)
    kept.add("skipped", what="x", reason="y")
    written = (tmp_path / record.UNFINISHED).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in written] == ["run", "skipped"]
    assert not (tmp_path / record.RAW).exists()


def test_a_number_of_numpys_ends_no_run(tmp_path):
    kept = Record(tmp_path)
    kept.add("gate", passed=np.bool_(True), error=np.float32(0.5), shape=np.int64(3))
    kept.finish(None, None)
    line = record.read(tmp_path / record.RAW)[0]
    assert line == {"kind": "gate", "passed": True, "error": 0.5, "shape": 3}
    assert line["passed"] is True


def test_what_a_library_computes_worse_is_allowed_by_name_alone():
    cell = Cell("train", "train", "tiny", CONFIG, 3, 8, "float32", (contender("honest"),))
    want = {name: gate.digest(np.array(2.0)) for name in ("loss", "grad_norm", "grad_norm 2")}
    off = {name: gate.digest(np.array(2.0 * (1 + 1e-3))) for name in want}
    loose = replace(contender("honest"), allowed={"grad_norm": 1e-2})
    for one, passed in ((contender("honest"), [False, False, False]), (loose, [False, True, True])):
        assert [verdict.passed for verdict in contest.verdicts(cell, one, off, want)] == passed


class Ticking:
    """A clock that a task turns on: its first call takes ten seconds, the others what is said."""

    def __init__(self, seconds):
        self.now, self.seconds, self.calls = 0.0, seconds, 0

    def __call__(self):
        self.now += 10.0 if self.calls == 0 else self.seconds
        self.calls += 1


@pytest.mark.parametrize(("seconds", "calls"), [(2.0, 2), (0.4, 4), (0.01, 11)])
def test_warming_up_does_not_count_the_first_call(seconds, calls, monkeypatch):
    """Which may compile; what takes long is called once more, what is short as often as asked."""
    clock, worker = Ticking(seconds), service.Service("none")
    monkeypatch.setattr(service.time, "perf_counter", lambda: clock.now)
    worker.timed["model", "task"], worker.models["model"] = clock, SimpleNamespace(execution=Execution())
    assert worker.warm("model", "task", 1.0, 3, 10) == pytest.approx(seconds)
    assert clock.calls == calls
