"""Cells that begin side by side: the same verdicts as one after the other, timed alone, and nothing is left running."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from benchmarks.harness import abreast, contest, record
from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.process import Rules
from benchmarks.harness.record import Record
from benchmarks.harness.summary import summarise
from benchmarks.suites import DEFAULT, SUITES, Scope
from common.config import GPTConfig

CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)
RULES = Rules(1, seconds=0.5, least=4, together=True)
ONES = tuple(Contender(name, name, f"planted_contenders:{name}_backend", name) for name in ("honest", "slow", "wrong"))
CELLS = [
    Cell("forward", "forward", name, CONFIG, 3, 8, "float32", ONES, memory=name == "second")
    for name in ("first", "second")
]


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    """Workers find the planted contenders."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))


@pytest.fixture
def kept(tmp_path):
    found = Record(tmp_path)
    found.add("run", schema=1, device={"kind": "cpu"}, load=None, together=True)
    return found


def quiet(what, share):
    pass


def workers():
    own = psutil.Process().children(recursive=True)
    return [one for one in own if any("benchmarks.harness.service" in word for word in one.cmdline())]


def told(kept):
    kept.finish(None, None)
    return summarise(record.read(kept.folder / record.RAW))


def test_everybody_is_judged_and_timed_as_alone(kept):
    assert abreast.run(CELLS, RULES, kept, quiet, lambda: False, 60.0) > 0
    found = told(kept)
    assert found["together"]
    for cell in found["cells"]:
        refused = {one["name"]: one["refused"] for one in cell["contenders"]}
        assert [refused["honest"], refused["slow"]] == [None, None]
        assert "another result is not timed" in refused["wrong"]
        assert cell["blocks"] >= 4
        assert [(pair["first"], pair["second"]) for pair in cell["pairs"]] == [("honest", "slow")]
    memory = {(line["cell"], line["name"]) for line in record.of(kept.lines, "memory")}
    assert memory == {(CELLS[1].name, name) for name in ("honest", "slow")}
    assert not workers()


@pytest.mark.full
def test_while_one_cell_is_timed_nothing_else_is_done(kept, monkeypatch):
    """All beginnings come before the first contest, one contest after the other, and memory last."""
    events = []

    def logged(module, name):
        run = getattr(module, name)

        def logs(*args):
            events.append(f"{name} begins")
            found = run(*args)
            events.append(f"{name} ends")
            return found

        monkeypatch.setattr(module, name, logs)

    logged(contest, "_admitted")
    logged(contest, "_timed")
    logged(contest.footprint, "measure")
    abreast.run(CELLS, RULES, kept, quiet, lambda: False, 60.0)
    assert sorted(events[:4]) == ["_admitted begins"] * 2 + ["_admitted ends"] * 2
    assert events[4:] == [*["_timed begins", "_timed ends"] * 2, "measure begins", "measure ends"]
    kept.finish(None, None)


@pytest.mark.full
def test_when_time_is_over_what_is_ready_is_not_timed(kept):
    late = iter([False, True])
    abreast.run(CELLS, RULES, kept, quiet, lambda: next(late), 60.0)
    assert {line["cell"] for line in kept.lines if "cell" in line} == {CELLS[0].name}
    assert not workers()
    kept.finish(None, None)


@pytest.mark.full
def test_when_time_is_over_memory_is_not_measured_and_that_is_told(kept):
    late = iter([False, False, True])
    abreast.run(CELLS, RULES, kept, quiet, lambda: next(late), 60.0)
    (skipped,) = record.of(kept.lines, "skipped")
    assert (skipped["what"], skipped["reason"]) == (f"memory in {CELLS[1].title}", "there was no time left")
    assert not list(record.of(kept.lines, "memory"))
    kept.finish(None, None)


@pytest.mark.full
def test_who_is_not_ready_in_time_is_dropped_and_the_others_are_timed(kept, monkeypatch):
    """Its processes end before anybody is timed, and nothing of it stands in the record but that."""
    first, held = contest._first_calls, threading.Event()

    def late(cell, own, *rest):
        if cell == CELLS[0]:
            while own["honest"][0].process.poll() is None:
                held.wait(0.05)
        return first(cell, own, *rest)

    monkeypatch.setattr(contest, "_first_calls", late)
    abreast.run(CELLS, RULES, kept, quiet, lambda: False, 12.0)
    (skipped,) = record.of(kept.lines, "skipped")
    assert skipped["what"] == CELLS[0].title
    assert skipped["reason"].startswith("it was not ready after 12 s")
    assert {line["cell"] for line in kept.lines if "cell" in line} == {CELLS[1].name}
    assert any(line["kind"] == "block" for line in kept.lines)
    assert not workers()
    told(kept)


@pytest.mark.full_for("timed", "begins")
@pytest.mark.parametrize("when", ["begins", "is timed", "is measured"])
def test_an_interruption_leaves_no_process(kept, monkeypatch, when):
    def stops(*_):
        raise KeyboardInterrupt

    before = threading.active_count()
    if when == "is timed":
        monkeypatch.setattr(contest, "contend", stops)
    elif when == "is measured":  # by processes that threads of its thread have started
        planned = contest.footprint._planned

        once = iter([signal.SIGINT])

        def stays(worker, cell):
            for number in once:
                os.kill(os.getpid(), number)
            while worker.process.poll() is None:
                threading.Event().wait(0.05)
            return planned(worker, cell)

        monkeypatch.setattr(contest.footprint, "_planned", stays)
    else:
        judged = contest._judged

        def first_stops(cells, *rest):
            return stops() if cells[0] == CELLS[0] else judged(cells, *rest)

        monkeypatch.setattr(contest, "_judged", first_stops)
    with pytest.raises(KeyboardInterrupt):
        abreast.run(CELLS, RULES, kept, quiet, lambda: False, 60.0)
    assert not workers()
    assert threading.active_count() == before
    kept.finish("interrupted", None)


def test_as_many_as_memory_and_cores_allow_begin_together():
    cells = [cell for name in DEFAULT for cell in SUITES[name](Scope("cuda"))]
    batches = list(abreast.batches(cells, lambda cell: 10, 30, 12))
    assert [cell for batch in batches for cell in batch] == cells
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or sum(len(cell.contenders) for cell in batch) <= 12
        assert len(batch) == 1 or not {cell.task for cell in batch} & {"compile", "start-up", "load"}
    assert max(map(len, batches)) == 3
    assert [len(batch) for batch in abreast.batches(cells[:3], lambda cell: 50, 30, 0)] == [1, 1, 1]
