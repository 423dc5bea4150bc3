"""The suites as tests, by pytest runs of their own: paths, selections, files of pytest-benchmark, mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import planted_suite as planted
import pytest

from benchmarks import job
from benchmarks.harness import record
from reports.perf import plugin

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = {
    "conftest.py": 'pytest_plugins = ("reports.perf.plugin",)\n\nimport planted_suite\n\nplanted_suite.plant()\n',
    "test_planted.py": "from planted_suite import pytest_generate_tests, test_something_else, test_suite\n",
}


@pytest.fixture
def call(tmp_path):
    """Run pytest on the planted suite in a folder of its own; (exit code, everything it said)."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    reachable = os.pathsep.join(filter(None, [str(ROOT), str(HERE), os.environ.get("PYTHONPATH")]))

    def run(*words, **more):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
        env = {**kept, "PYTHONPATH": reachable, "COLUMNS": "120", **more}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def measured(folder):
    """The cells of every measurement, in order."""
    log = folder / planted.LOG
    return log.read_text().splitlines() if log.exists() else []


def runs(folder):
    return sorted((folder / "out" / "perf").glob("*"))


def test_a_selection_is_measured_once_and_replayed(call, tmp_path):
    words = ("--benchmark", "test_planted.py", "-k", "one-", "--benchmark-json=found.json", "--benchmark-save=first")
    words = (*words, "--benchmark-histogram=drawn")
    code, said = call(*words)
    assert code == 0, said
    assert "2 passed, 5 deselected" in said
    one = planted.CELLS[0]
    assert measured(tmp_path) == [one.name]
    (folder,) = runs(tmp_path)
    assert "-forward-only-" in folder.name
    assert f"out/perf/{folder.name}/index.html" in said
    told = record.read(folder / record.RAW)[0]
    assert told["command"] == f"pytest -p no:cacheprovider {' '.join(words)}"
    assert told["suites"] == ["forward"]
    (drawn,) = tmp_path.glob("drawn*.svg")
    assert "one-slow" in drawn.read_text()
    found = {entry["param"]: entry for entry in json.loads((tmp_path / "found.json").read_text())["benchmarks"]}
    assert set(found) == {"one-honest", "one-slow"}
    for name, entry in found.items():
        due = [planted.seconds(name[4:], block, copy) for block in range(4) for copy in (0, 1)]
        assert entry["stats"]["data"] == pytest.approx(due)
        assert (entry["group"], entry["options"]["timer"]) == (one.title, "replay")

    code, said = call("--benchmark", "test_planted.py", "-k", "not three", "--benchmark-compare", "--benchmark-only")
    assert code == 0, said
    assert "4 passed, 3 deselected" in said
    assert "0001_first" in said
    assert measured(tmp_path)[1:] == [cell.name for cell in planted.CELLS[:2]]
    assert len(runs(tmp_path)) == 2  # and the first is still there


def test_without_the_flag_every_task_is_checked_and_none_is_timed(call, tmp_path):
    code, said = call("test_planted.py")
    assert code == 1, said
    assert "1 failed, 6 passed" in said
    assert "another result is not timed" in said
    code, said = call("test_planted.py", "-k", "one-honest", "--benchmark-only", "--benchmark-max-time=0.1")
    assert code == 0, said
    assert "1 passed" in said
    assert (measured(tmp_path), runs(tmp_path)) == ([], [])


@pytest.mark.full_for("words1", "words2")
@pytest.mark.parametrize(("words", "due"), [
    (("--benchmark-device=cuda:99",), "There is no GPU 'cuda:99' here"),
    (("--benchmark-device=tpu",), "Unknown device 'tpu'"),
    (("--benchmark-out=conftest.py",), "conftest.py is a file"),
])  # fmt: skip
def test_what_cannot_be_measured_is_an_error_of_usage(call, tmp_path, words, due):
    code, said = call("--benchmark", "test_planted.py", *words)
    assert code == 4, said
    assert f"ERROR: {due}" in said
    assert "Traceback" not in said
    assert (measured(tmp_path), runs(tmp_path)) == ([], [])


def test_a_failing_measurement_is_not_tried_again_for_every_test(call, tmp_path):
    code, said = call("--benchmark", "test_planted.py", PLANTED_FAULT="yes")
    assert code == 1, said
    assert "6 failed" in said
    assert measured(tmp_path) == [cell.name for cell in planted.CELLS]
    assert said.count("\nThe measurement failed: ZeroDivisionError: planted\n") == 5


@pytest.mark.parametrize(("chosen", "due"), [
    ({"parallax_run": False, "parallax_device": "cuda"}, "--benchmark-device says how --benchmark measures"),
    ({"parallax_run": False, "parallax_quick": True}, "--benchmark-quick says how"),
    ({"benchmark_disable": True}, "--benchmark-disable turns off"),
    ({"benchmark_cprofile": "tottime"}, "nothing to look into"),
    ({"dist": "load"}, "leave out -n"),
])  # fmt: skip
def test_options_that_do_not_go_together(chosen, due):
    option = SimpleNamespace(**{"parallax_run": True, **plugin.OWN, **chosen})
    with pytest.raises(pytest.UsageError, match=due):
        plugin._check_options(option)


def test_a_published_command_tells_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word, due in [
        ("-k", "-k"), ("a = b", "a = b"), ("benchmarks/x.py::test", "benchmarks/x.py::test"),
        (f"{tmp_path}/benchmarks/x.py::test", "benchmarks/x.py::test"),
        ("--benchmark-json=/somewhere/of/mine/x.json", "--benchmark-json=x.json"),
        (f"--out={tmp_path}/out", "--out=out"),
    ]:  # fmt: skip
        assert job.portable(word) == due
