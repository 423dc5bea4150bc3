"""A summary to look at, and a folder with its report; both made once, and copied where a test changes them."""

import copy
import shutil
from importlib.metadata import EntryPoint

import made
import pytest

from benchmarks.harness.summary import summarise
from common import cli
from reports.perf import job

POINT = EntryPoint("report", "reports.perf.command:report", "parallax.commands")
JAX_SCAN = ("forward/gpt2-124m/4x256/bfloat16", "jax scan")


@pytest.fixture(scope="session")
def whole():
    """Several suites: training is noisy, compiling has too few samples, one contender is refused."""
    return summarise(made.lines(few=("compile",), refused=[JAX_SCAN]))


@pytest.fixture
def summary(whole):
    return copy.deepcopy(whole)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A small run's folder with all of its report."""
    folder = tmp_path_factory.mktemp("perf") / "cpu-some"
    folder.mkdir()
    lines = list(made.lines(suites=("forward", "train"), refused=[JAX_SCAN]))
    (folder / job.RAW).write_text(made.text(lines), encoding="utf-8")
    job.write(folder, summarise(lines))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "cpu-some")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `parallax report …`; (exit code, stdout, stderr)."""
    monkeypatch.setattr(cli, "entry_points", lambda group: [POINT])

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", *map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    return run
