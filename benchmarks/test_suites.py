"""Every suite by cell and contender: `pytest --benchmark` times them, plain pytest checks them once."""

import pytest

from benchmarks.suites import DEFAULT, SUITES, Scope

SLOW = {"compiled", "kept"}  # compilers that take most of a minute; in other memory the same is computed
QUICK = (
    "forward",
    "train",
    "decode",
    "random",
)  # suites of which plain pytest checks float32 without `full`, not the sweeps


def pytest_generate_tests(metafunc):
    option = metafunc.config.option
    scope = Scope(option.parallax_device, option.parallax_quick or not option.parallax_run)
    named = " ".join([option.keyword, *map(str, metafunc.config.args)])
    suites = [name for name in SUITES if name in DEFAULT or name in named or not option.parallax_run]
    pairs = [(cell, one) for name in suites for cell in SUITES[name](scope) for one in cell.contenders]
    marked = []
    for cell, one in pairs:
        quick = (
            cell.suite in QUICK
            and cell.dtype_of(one) == "float32"
            and not (SLOW & set(one.mode.split("+")))
            and not cell.axis
            and not ((one.lower_bound or one.mode == "scan") and cell.task == "train")
            and not (one.name == "torch fast" and cell.task == "decode")  # compiled too: its step as a whole
        )
        slow = not (option.parallax_run or quick)
        marks = [pytest.mark.full] if slow else []
        marked.append(pytest.param((cell, one), id=f"{cell.name}-{one.name}".replace(" ", "_"), marks=marks))
    metafunc.parametrize("pair", marked)


def test_suite(pair, contest):
    contest(*pair)
