"""Shared by the tests of `parallax diverge`: copies of a wing with a line replaced, comparisons, the command."""

import shutil
from pathlib import Path

import pytest

from common.cli import main
from common.parity.diverge import inputs
from common.parity.diverge.run import Settings
from common.parity.diverge.run import diverge as compare
from common.parity.diverge.sides import resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def port(tmp_path):
    """port(wing, file, find, replace) -> folder: a copy of a wing in which one place, found once, is changed."""

    def make(wing, file, find, replace):
        folder = tmp_path / "my_port"
        shutil.copytree(ROOT / f"{wing}_impl", folder, ignore=shutil.ignore_patterns("__pycache__"))
        source = (folder / file).read_text(encoding="utf-8")
        assert source.count(find) == 1, f"{find!r} stands {source.count(find)} times in {file}"
        (folder / file).write_text(source.replace(find, replace), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def diverge():
    """diverge(a, b, case, rows, **settings) -> Report; random ids unless rows are given."""

    def run(a, b, case=None, rows=None, **settings):
        chosen = inputs.model(None, None, case, None, 0)
        subject = inputs.random_rows(chosen, None, None, 0) if rows is None else inputs.given_rows(chosen, rows)
        return compare(resolve(str(a)), resolve(str(b)), subject, Settings(**settings))

    return run


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of `parallax diverge`."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["diverge", *map(str, arguments)])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call
