"""In which order cells are measured."""

import pytest

from benchmarks.harness.cells import FRESH
from benchmarks.harness.groups import grouped, in_turn
from benchmarks.harness.process import CHANGING
from benchmarks.suites import DEFAULT, SUITES, Scope

CELLS = [cell for name in DEFAULT for cell in SUITES[name](Scope("cuda"))]


def test_without_a_limit_they_keep_their_order_and_neighbours_share_their_models():
    groups = list(grouped(CELLS))
    assert [cell for group in groups for cell in group] == CELLS
    assert len(groups) < len(CELLS)
    for group in groups:
        assert len({(cell.model, cell.config, cell.dtype, cell.contenders) for cell in group}) == 1


@pytest.mark.parametrize("name", SUITES)
def test_what_changes_its_model_leaves_it_to_nobody(name):
    """The next cell would be computed with weights that its judge does not have."""
    for group in grouped(list(SUITES[name](Scope()))):
        assert len(group) == 1 or not {cell.task for cell in group} & set(CHANGING)


def test_within_a_limit_every_suite_comes_before_one_comes_twice():
    groups = list(grouped(CELLS))
    assert sorted(group[0].name for group in in_turn(groups)) == sorted(group[0].name for group in groups)
    turns = [cell for group in in_turn([cell] for cell in CELLS) for cell in group]
    assert sorted(cell.name for cell in turns) == sorted(cell.name for cell in CELLS)
    late = {cell.suite for cell in CELLS if cell.task in FRESH}
    early = [name for name in DEFAULT if name not in late]
    assert [cell.suite for cell in turns[: len(early)]] == early
    assert turns[0].model == Scope.model
    assert [cell.task in FRESH for cell in turns] == sorted(cell.task in FRESH for cell in turns)


def test_a_precision_may_come_first():
    for dtype in ("float32", "bfloat16"):
        forward = next(cell for (cell,) in in_turn([[cell] for cell in CELLS], dtype) if cell.suite == "forward")
        assert (forward.model, forward.dtype) == (Scope.model, dtype)
