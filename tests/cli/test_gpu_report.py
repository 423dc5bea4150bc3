"""`make gpu-report` in a shell, with a Python that only plays its part: what ends it, and what does not."""

import os
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from common.cases import CASES

ROOT = Path(__file__).parents[2]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["parallax.commands"]
FAKE = """#!/bin/sh
echo "$3 $*" >> "$CALLS"
case "$3" in
  parity) sleep "${PARITY_SLEEP:-0}"; exit "${PARITY_CODE:-0}" ;;
  bench) exit "${BENCH_CODE:-0}" ;;
esac
"""
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("make", "timeout", "sh"))), reason="needs make and a shell with timeout"
)


@pytest.fixture
def report(tmp_path):
    """report(PARITY_CODE=…, …): (exit code, what was told, the commands that were called)."""
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)

    def run(*words, **environment):
        calls = tmp_path / "calls"
        env = {**os.environ, "CALLS": str(calls), **environment}
        command = ["make", "gpu-report", f"PYTHON={python}", f"GPU_OUT={tmp_path}/out", *words]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr, [line.split() for line in calls.read_text().splitlines()]

    return run


@pytest.mark.parametrize(
    ("parity", "bench", "called", "told"),
    [
        ("0", "0", ["parity", "bench"], None),
        ("1", "0", ["parity", "bench"], "Error 1"),  # a claim failed
        ("124", "0", ["parity", "bench"], "Error 124"),  # out of time
        ("130", "0", ["parity", "bench"], "Error 130"),  # out of time, as the command itself says it
        ("137", "0", ["parity", "bench"], "Error 137"),  # out of time, and deaf to SIGINT
        ("139", "0", ["parity", "bench"], "Error 139"),  # it crashed
        ("127", "0", ["parity"], "Error 127"),  # no such Python
        ("2", "0", ["parity"], "Error 2"),  # no GPU, say: there is nothing to measure
        ("0", "130", ["parity", "bench"], "Error 130"),
        ("124", "3", ["parity", "bench"], "Error 3"),
    ],
)
def test_what_ends_it(report, parity, bench, called, told):
    code, words, calls = report(PARITY_CODE=parity, BENCH_CODE=bench)
    assert [call[0] for call in calls] == called
    assert (code == 0) is (told is None)
    assert told is None or told in words
    assert ("not finished in 170 seconds" in words) is (parity in ("124", "130", "137", "139"))


def test_a_certificate_that_takes_too_long_is_stopped_and_the_benchmarks_run(report):
    code, words, calls = report("PARITY_SECONDS=1", PARITY_SLEEP="30")
    assert [call[0] for call in calls] == ["parity", "bench"]
    assert code != 0
    assert "Error 124" in words
    assert "not finished in 1 seconds" in words


def test_both_commands_get_the_device_and_a_folder(report):
    _, _, calls = report("DEVICE=cuda:1")
    for call in calls:
        assert call[call.index("--device") + 1] == "cuda:1"
        assert call[call.index("--out") + 1].endswith(f"/out/{'parity' if call[0] == 'parity' else 'perf'}")


def test_all_suites_are_measured_while_there_is_time(report):
    _, _, (_, bench) = report()
    assert "--suite" not in bench
    assert 300 < float(bench[bench.index("--minutes") + 1]) * 60 <= 470


def test_benchmarks_have_the_time_that_is_left(report):
    _, _, (_, bench) = report("GPU_SECONDS=206", "PAGES=80", PARITY_SLEEP="4")
    assert float(bench[bench.index("--minutes") + 1]) in (1.9, 2.0)


def parsed(name, words):
    """The options that a command would get from such words, by its own parser; it is not called."""
    module, function = COMMANDS[name].split(":")
    tool = typer.Typer()
    tool.command(name)(getattr(import_module(module), function))
    return get_command(tool).make_context(name, list(words)).params


def test_the_commands_understand_what_they_are_told(report):
    """The Python here runs nothing, so the words it got go to the parsers of the commands that they are for."""
    _, _, calls = report()
    proof, measuring = (parsed(first, call[call.index(first, 1) + 1 :]) for first, *call in calls)
    assert (proof["device"], proof["quick"], proof["processes"]) == ("cuda", True, 8)
    assert set(proof["claim"]) == {"C0", "C1", "C2", "C3", "C4"}
    assert len(proof["case"]) > 5
    assert set(proof["case"]) <= set(CASES)
    assert (measuring["device"], measuring["seconds"]) == ("cuda", 4.0)
    assert not measuring["suite"]  # all usual ones
