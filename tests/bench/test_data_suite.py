"""What lies around a model, ours and other libraries': all give the same, and a wrong one is refused."""

import functools

import numpy as np
import pytest

from benchmarks import once
from benchmarks.harness.cells import Cell
from benchmarks.outside import data as outside
from benchmarks.suites import SUITES, Scope

CELLS = list(SUITES["data"](Scope(quick=True)))
PAIRS = [pytest.param(cell, one, id=f"{cell.task}-{one.name}") for cell in CELLS for one in cell.contenders]


@pytest.mark.parametrize(("cell", "one"), PAIRS)
def test_every_contender_gives_what_the_judge_gives(cell, one):
    once.check(cell, one)


def test_every_task_has_a_rival_and_says_how_much_it_does():
    assert {cell.task for cell in CELLS} == set(outside.parallax.tasks)
    for cell in CELLS:
        assert len(cell.contenders) > 1
        line = cell.line()
        assert (line["unit"], line["work"] > 1000) == ("bytes", True)


@pytest.mark.parametrize("task", [cell.task for cell in CELLS])
def test_one_number_that_differs_is_refused(task, monkeypatch):
    (cell,) = (cell for cell in CELLS if cell.task == task)
    real = outside.parallax.tasks[task]

    def wrong(own, inputs):
        run = real(own, inputs)

        def changed():
            found = {name: np.array(value) for name, value in run().items()}
            next(iter(found.values())).reshape(-1)[-1] += 1
            return found

        return changed

    monkeypatch.setitem(outside.parallax.tasks, task, functools.wraps(real)(wrong))
    with pytest.raises(AssertionError, match="another result is not timed"):
        once.check(cell, cell.contenders[0])


def test_the_whole_text_is_longer():
    whole = {cell.task: cell for cell in SUITES["data"](Scope())}
    for cell in CELLS:
        if cell.task != "checkpoint":
            assert whole[cell.task].length > cell.length
            assert len(cell.inputs()[0]) == cell.length
    assert isinstance(CELLS[0], Cell)


def test_the_long_row_is_a_megabyte_and_8000_merges():
    whole = {cell.task: cell for cell in SUITES["data"](Scope())}["learn_long"]
    assert (whole.length, outside.merges_of(whole.length)) == (2**20, 8000)
    assert whole.name == "data/8,000 merges learnt/pydoc and library/1x1048576/float32"
    assert outside.text_of(whole.inputs()[0]).startswith(outside.text_of(CELLS[0].inputs()[0]))
