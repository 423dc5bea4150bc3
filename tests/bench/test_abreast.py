"""Cells that begin side by side: the same verdicts as one after the other, timed alone, and nothing is left running."""

import functools
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.harness import abreast, contest, judging, process, record
from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.groups import grouped
from benchmarks.harness.process import Rules
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.harness.summary import summarise
from benchmarks.suites import DEFAULT, SUITES, Scope
from common.config import GPTConfig

CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)
RULES = Rules(1, seconds=0.5, least=4, quick=True, all_memory=False, together=True)
ONES = tuple(Contender(name, name, f"planted_contenders:{name}_backend", name) for name in ("honest", "slow", "wrong"))
CELLS = [
    Cell("forward", "forward", name, CONFIG, 3, 8, "float32", ONES, memory=name == "second")
    for name in ("first", "second")
]
APART = [[cell] for cell in CELLS]


def alone():
    """RULES of a run of its own, in which no judge has said anything."""
    return replace(RULES, judged={})


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
    assert abreast.run(APART, alone(), kept, quiet, lambda: False, 60.0) > 0
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


def test_cells_that_share_their_contenders_share_processes(kept, monkeypatch):
    """These begin once, and each cell has what it would have by itself. Memory is asked of them by the first alone: of
    the others fresh ones tell. After the time is over the next cell is not timed, and named, also who was refused."""
    started, worker = [], contest.process
    monkeypatch.setattr(contest, "process", lambda one, *rest: started.append(one.name) or worker(one, *rest))
    fresh, measured = [], contest.footprint.measure
    monkeypatch.setattr(
        contest.footprint, "measure", lambda cell, *rest: fresh.append(cell.name) or measured(cell, *rest)
    )
    own = [replace(cell, memory=True, model=name) for cell, name in zip((*CELLS, CELLS[0]), "abc", strict=True)]
    late = iter([False] * 4 + [True, False])  # the third cell would begin too late; memory of the second does not
    abreast.run([own], alone(), kept, quiet, lambda: next(late), 60.0)
    assert sorted(started) == sorted(one.name for one in ONES)
    assert {line["cell"] for line in record.of(kept.lines, "block")} == {cell.name for cell in own[:2]}
    of_cell = {cell.name: list(record.of(kept.lines, "gate", cell=cell.name)) for cell in own[:2]}
    for one, other in zip(*of_cell.values(), strict=True):
        assert {**one, "cell": ""} == {**other, "cell": ""}
    assert fresh == [own[1].name]
    memory = [(line["cell"], line["name"]) for line in record.of(kept.lines, "memory")]
    assert sorted(memory) == [(cell.name, name) for cell in own[:2] for name in ("honest", "slow")]
    assert all(0 < line["import"] <= line["peak"] for line in record.of(kept.lines, "memory"))
    (skipped,) = record.of(kept.lines, "skipped")
    assert (skipped["what"], skipped["reason"]) == (own[2].title, "there was no time left")
    found = told(kept)
    assert [cell["blocks"] > 0 for cell in found["cells"]] == [True, True, False]
    assert not workers()


def test_every_row_names_the_kernel_of_its_own_calls(kept, monkeypatch):
    """Cells that share a process may have other shapes."""
    monkeypatch.setattr(contest, "_admitted", lambda *_: {})
    sizes = (("forward", 3, 8), ("forward", 2, 5), ("train", 2, 5))
    own = [
        replace(CELLS[0], suite=task, task=task, batch=batch, length=length, contenders=ONES[:1])
        for task, batch, length in sizes
    ]
    contest.run(own, alone(), kept, quiet, 1)
    kernels = [line["settings"]["kernel"] for line in record.of(kept.lines, "contender")]
    assert kernels == ["for (3, 8, False)", "for (2, 5, False)", "for (2, 5, True)"]
    kept.finish(None, None)


@pytest.mark.parametrize(("task", "new"), [("forward", 0), ("decode", 2)])
def test_who_tells_its_peak_has_run_the_task_alone(kept, monkeypatch, task, new):
    """JAX's cannot be reset on a GPU. Decoders show their prompts' logits first, so of them a fresh process tells."""
    asked = {}

    class Logged(process.Worker):
        def ask(self, method, *args, **options):
            asked.setdefault(self, []).append(method)
            return super().ask(method, *args, **options)

    monkeypatch.setattr(process, "Worker", Logged)
    cell = replace(CELLS[0], task=task, new=new, memory=True, contenders=ONES[:1])
    abreast.run([[cell]], alone(), kept, quiet, lambda: False, 60.0)
    (told,) = [methods for methods in asked.values() if "peak" in methods]
    assert set(told[: told.index("peak")]).isdisjoint({"prefilled", "chosen"})
    assert ("sample" in told) is (task == "forward")
    assert [line["name"] for line in record.of(kept.lines, "memory")] == ["honest"]
    kept.finish(None, None)


def test_a_judge_is_asked_once_for_the_same_work(monkeypatch):
    """By cells of one group and of others; every cell has its word."""
    asked = []

    class Counted(judging.Worker):
        def ask(self, method, *args, **options):
            asked.extend([method] * (method == "begin"))
            return super().ask(method, *args, **options)

    monkeypatch.setattr(judging, "Worker", Counted)
    rules, recipes = alone(), {CONFIG: Recipe("uneven", CONFIG)}
    first = judging.wanted_of(CELLS, recipes, rules, quiet)
    again = judging.wanted_of([replace(CELLS[0], model="third")], recipes, rules, quiet)
    assert len(asked) == 1
    assert {name for name, _ in first} == {cell.name for cell in CELLS}
    assert len({str(digest) for digest in (*first.values(), *again.values())}) == 1
    other = judging.wanted_of([replace(CELLS[0], length=7)], recipes, rules, quiet)
    assert len(asked) == 2
    assert str(*other.values()) != str(*again.values())


def test_a_judge_is_asked_again_for_any_other_work():
    cell = CELLS[0]
    others = [
        replace(cell, task="loss"),
        replace(cell, batch=4),
        replace(cell, length=9),
        replace(cell, seed=1),
        replace(cell, weights="initial"),
        replace(cell, path="model.norm"),
        replace(cell, config=CONFIG.with_(num_heads=2)),
    ]
    same = judging._same_work(cell, CONFIG)
    assert same == judging._same_work(replace(cell, model="another name", dtype="bfloat16"), CONFIG)
    found = [judging._same_work(other, CONFIG) for other in others] + [judging._same_work(cell, others[-1].config)]
    assert len({same, *found}) == len(found) + 1


@pytest.mark.full
def test_while_one_cell_is_timed_nothing_else_is_done(kept, monkeypatch):
    """All beginnings come before the first contest, then one contest after the other, each with its memory."""
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
    logged(contest.footprint, "ask")
    abreast.run(APART, alone(), kept, quiet, lambda: False, 60.0)
    assert sorted(events[:4]) == ["_admitted begins"] * 2 + ["_admitted ends"] * 2
    assert events[4:] == [*["_timed begins", "_timed ends"] * 2, "ask begins", "ask ends"]
    kept.finish(None, None)


@pytest.mark.full
def test_when_time_is_over_what_is_ready_is_not_timed(kept):
    late = iter([False, True, True])
    abreast.run(APART, alone(), kept, quiet, lambda: next(late), 60.0)
    assert {line["cell"] for line in kept.lines if "cell" in line} == {CELLS[0].name}
    assert not workers()
    kept.finish(None, None)


@pytest.mark.full
def test_when_time_is_over_memory_is_not_measured_and_that_is_told(kept):
    late = iter([False, False, True, True])
    abreast.run(APART, alone(), kept, quiet, lambda: next(late), 60.0)
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
    abreast.run(APART, alone(), kept, quiet, lambda: False, 12.0)
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
        judged = contest.wanted_of

        def first_stops(cells, *rest):
            return stops() if cells[0] == CELLS[0] else judged(cells, *rest)

        monkeypatch.setattr(contest, "wanted_of", first_stops)
    with pytest.raises(KeyboardInterrupt):
        abreast.run(APART, alone(), kept, quiet, lambda: False, 60.0)
    assert not workers()
    assert threading.active_count() == before
    kept.finish("interrupted", None)


def test_who_is_ended_by_an_interruption_is_not_refused(kept, monkeypatch):
    """Its processes are ended while they are timed, which is no fault of a contender."""
    contend = contest.contend

    def interrupted(cell, arms, *rest):
        def turn(copy, own):
            os.kill(os.getpid(), signal.SIGINT)
            while True:  # until its process is ended
                own(copy)

        return contend(cell, {name: functools.partial(turn, own=own) for name, own in arms.items()}, *rest)

    monkeypatch.setattr(contest, "contend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        abreast.run(APART[:1], alone(), kept, quiet, lambda: False, 60.0)
    assert [line["name"] for line in record.of(kept.lines, "refused")] == ["wrong"]
    kept.finish("interrupted", None)


def test_as_many_as_memory_and_cores_allow_begin_together():
    groups = list(grouped([cell for name in DEFAULT for cell in SUITES[name](Scope("cuda"))]))
    batches = list(abreast.batches(groups, lambda cell: 10, 30, 12))
    assert [group for batch in batches for group in batch] == groups
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or sum(len(group[0].contenders) for group in batch) <= 12
        assert len(batch) == 1 or not {group[0].task for group in batch} & {"compile", "start-up", "load"}
    assert max(map(len, batches)) == 3
    assert [len(batch) for batch in abreast.batches(groups[:3], lambda cell: 50, 30, 0)] == [1, 1, 1]
