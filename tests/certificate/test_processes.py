"""A certificate that several processes share: the same as of one, whatever becomes of them."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import handful
import mortal
import psutil
import pytest

from common.errors import UserError
from common.parity import conversion, planted, power, semantics, workers
from common.parity.pieces import Parcel, Piece
from common.parity.rows import exact
from common.parity.run import run
from common.parity.trial import Session, subjects
from reports.parity import job


def told(findings):
    """Everything but times."""
    rows = [(*row.key, row.passed, dict(row.errors), row.note) for row in findings.rows]
    mutants = [{**entry, "seconds": 0} for entry in findings.exhibits.get("mutants", [])]
    return json.dumps([rows, {**findings.exhibits, "mutants": mutants}])


@pytest.mark.parametrize("wings", [("torch",), pytest.param(("torch", "jax"), marks=pytest.mark.full)], ids="-".join)
def test_two_processes_find_what_one_finds(wings):
    session = Session(subjects(wings), ("exact", "float64"), ("mlp", "layer_norm"), quick=True)
    claims, shares = [conversion, semantics, handful], []
    one = run(session, claims)
    two = run(session, claims, lambda what, share: shares.append(share), processes=2)
    assert told(one) == told(two)
    assert list(one.exhibits) == list(two.exhibits)
    assert [entry["id"] for entry in two.exhibits["mutants"]] == ["diagonal", "future"]
    (stale,) = two.failures
    assert stale.what == "raised/stale"
    assert stale.note.startswith("UserError, 1 comparisons not made: This edit of torch_impl.masks is stale")
    assert shares == sorted(shares)
    assert len(shares) > 6
    assert multiprocessing.active_children() == []


@pytest.mark.full
def test_a_process_that_dies_takes_with_it_what_it_tried_and_nothing_else():
    session = Session(subjects(("torch",)), cases=("layer_norm", "mlp", "rms_norm"))
    found = run(session, [mortal], processes=2)
    assert {(row.case, row.what): row.passed for row in found.rows} == {
        ("layer_norm", "alive"): True,
        ("mlp", "lost"): False,
        ("rms_norm", "alive"): True,
        ("", "first"): True,
        ("", "lost/last"): False,
    }
    assert {row.note for row in found.failures} == {
        f"C1 {name} was not finished: the process was ended by SIGKILL, as happens where memory runs out"
        for name in ("mlp", "last")
    }
    assert multiprocessing.active_children() == []


def parted(parts, declared):
    """A claim in parts that yields their rows."""
    return SimpleNamespace(
        NAME="C1",
        TITLE="parted",
        for_case=lambda trial: iter(()),
        declared=lambda trial: set(),
        parts=lambda session: list(parts),
        once=lambda session, part: (exact("C1", "", what, {"torch": 0}) for what in parts[part]),
        declared_once=lambda session, part="": {(w, "exact") for w in (parts[part] if part else declared)},
    )


@pytest.mark.parametrize(
    ("parts", "what", "note"),
    [
        ({"a": ["1"], "b": ["2"]}, "3", "is in no part"),
        ({}, "3", "is in no part"),
        ({"a": ["1", "3"], "b": ["2", "3"]}, "declared", "several parts: [('3', 'exact')]"),
        ({"a": ["1", "3", "3"], "b": ["2"]}, "declared/a", "came twice"),
    ],
)
def test_what_is_cut_badly_fails(session, parts, what, note):
    found = run(session, [parted(parts, "123")])
    assert what in {row.what for row in found.failures}
    assert note in next(row for row in found.failures if row.what == what).note


def test_what_is_cut_well_passes(session):
    assert run(session, [parted({"a": ["1", "3"], "b": ["2"]}, "123")]).passed


def test_an_interruption_keeps_the_parts_that_are_finished(session):
    def stops(what, share):
        if what == "C1 b":
            raise KeyboardInterrupt

    found = run(session, [parted({"a": ["1", "3"], "b": ["2"]}, "123")], stops)
    assert found.interrupted
    assert [(row.what, row.passed) for row in found.rows] == [("1", True), ("3", True), ("interrupted", False)]


def test_the_parts_of_c6_are_all_that_it_declares(monkeypatch):
    mutants = planted.load_mutants()  # takes seconds
    monkeypatch.setattr(planted, "load_mutants", lambda: mutants)
    session = Session(subjects(("torch", "jax")))
    parts = power.parts(session)
    found = [pair for part in parts if part != power.FIELDS for pair in power._dockets(session)[part]]
    assert found == list(power.chosen(session))
    assert all(1 <= len(pairs) <= power.TOGETHER for pairs in power._dockets(session).values())
    declared = [power.declared_once(session, part) for part in parts]
    assert set().union(*declared) == power.declared_once(session)
    assert sum(map(len, declared)) == len(power.declared_once(session))


def test_what_takes_longest_comes_first():
    parcels = [Parcel((Piece(0, name),)) for name in ("mlp", "gpt", "gpt_wide")]
    parcels += [Parcel((Piece(1),)), *(Parcel((Piece(2, part=part),), size) for part, size in (("a", 3), ("b", 20)))]
    order = [parcel.pieces[0] for parcel in workers.longest_first(parcels)]
    assert [piece.case or piece.part for piece in order] == ["", "gpt_wide", "gpt", "mlp", "b", "a"]


def test_a_mistake_that_a_worker_finds_is_the_users(monkeypatch):
    session = Session(subjects(("torch",)), cases=("layer_norm", "mlp"))
    recipe = workers.Recipe(("no such backend",), (), {})
    monkeypatch.setattr(workers.Recipe, "of", lambda session, claims: recipe)
    with pytest.raises(UserError, match="Unknown backend 'no such backend'"):
        run(session, [mortal], processes=2)
    assert multiprocessing.active_children() == []


def test_the_default_is_a_core_each_as_far_as_memory_goes_and_one_process_beside_an_accelerator(monkeypatch):
    monkeypatch.setattr("common.cores.usable_cores", lambda: list(range(16)))
    for free, limit, fit in ((64e9, None, job.MOST), (64e9, 8e9, 2), (1e9, None, 1)):
        monkeypatch.setattr("benchmarks.room.room", lambda device, found={"": free, "container": limit}: found)
        assert job.processes(None, "cpu") == fit
    assert job.processes(None, "cuda") == job.processes(None, "cuda:1") == 1
    assert job.processes(7, "cuda") == 7


def children(process):
    return [child for child in process.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.full
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_command(tmp_path, way):
    """Ctrl-C reaches a whole group of processes, the others the command alone."""
    words = [sys.executable, "-m", "common.cli", "parity", "--claim", "C2", "--processes", "2"]
    done = subprocess.Popen(
        [*words, "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        next(line for line in done.stderr if "C2" in line)
        own = children(psutil.Process(done.pid))
        assert len(own) == 2
        os.killpg(done.pid, way) if way == signal.SIGINT else done.send_signal(way)
        _, said = done.communicate(timeout=60)
    finally:
        done.kill()
    assert "Traceback" not in said
    assert done.returncode == (-way if way == signal.SIGKILL else 130)
    assert psutil.wait_procs(own, timeout=20)[1] == []
    kept = tmp_path / "out-interrupted"
    assert kept.exists() is (way != signal.SIGKILL)
    if kept.exists():
        notes = {row["note"] for row in json.loads((kept / job.NUMBERS).read_text())["rows"] if not row["passed"]}
        assert notes == {f"not {what}: the run was interrupted" for what in ("tried", "finished")}
