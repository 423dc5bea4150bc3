"""A suite of two cells for pytest, and a measurement that takes no time: what it gives was drawn. A third cell has a
contender that is wrong, for the check that times nothing."""

import os
from pathlib import Path

import pytest

from benchmarks import job
from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from common.config import GPTConfig
from reports.perf import job as pages

CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)
SECONDS = {"honest": 0.004, "slow": 0.008, "wrong": 0.002}
LOG = Path("measured")  # a line for every cell of every measurement


def contender(name):
    return Contender(name, name, f"planted_contenders:{name}_backend", name)


def cell(model, *names):
    return Cell("forward", "forward", model, CONFIG, 3, 8, "float32", tuple(map(contender, names)))


CELLS = (cell("one", "honest", "slow"), cell("two", "honest", "slow"), cell("three", "honest", "wrong"))


def seconds(name, block, copy):
    return SECONDS[name] * (1 + block / 100 + copy / 1000)


def measure(work, kept, report):
    """Four blocks of every cell; fails if the environment says so."""
    with LOG.open("a") as log:
        log.writelines(f"{cell.name}\n" for cell in work.cells)
    if "PLANTED_FAULT" in os.environ:
        raise ZeroDivisionError("planted")
    for cell in work.cells:
        names = [one.name for one in cell.contenders]
        kept.add("cell", **cell.line())
        for one in cell.contenders:
            kept.add("contender", cell=cell.name, **one.line({}, {}))
        for block in range(4):
            turns = [[name, copy, seconds(name, block, copy)] for name in names for copy in (0, 1)]
            kept.add("block", cell=cell.name, block=block, calls=dict.fromkeys(names, 1), turns=turns)


def plant():
    """Put the measurement in the place of the real one, and draw nothing."""
    job.measure, job.check_memory, pages.rewrite = measure, lambda *_: None, lambda folder: None


def pytest_generate_tests(metafunc):
    if "pair" in metafunc.fixturenames:
        pairs = [(cell, one) for cell in CELLS for one in cell.contenders]
        metafunc.parametrize("pair", [pytest.param(pair, id=f"{pair[0].model}-{pair[1].name}") for pair in pairs])


def test_suite(pair, contest):
    contest(*pair)


def test_something_else():
    """Not a benchmark: with --benchmark it does not run."""
