"""`pytest --benchmark`: the suites as tests. With the flag they are timed in turns, and the samples of every contender
are replayed into pytest-benchmark, whose tables, groups, JSON and comparisons then show interleaved data; without it
every test runs its task once and holds its result against the judge.

Loaded by the conftest.py at the root, because options must be known there whatever path is given.
"""

import shlex
from pathlib import Path

import pytest

OWN = {"parallax_quick": False, "parallax_device": "cpu", "parallax_out": "out/perf"}
CLASHES = {
    "benchmark_disable": "--benchmark-disable turns off what it times",
    "benchmark_skip": "--benchmark-skip leaves out what it times",
    "benchmark_cprofile": "--benchmark-cprofile has nothing to look into: contenders run in processes of their own",
}


class Clock:
    """Virtual time: only replayed samples move it. pytest-benchmark shows the name as the timer."""

    __name__ = "replay"

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def pytest_addoption(parser):
    group = parser.getgroup("benchmark")
    group.addoption(
        "--benchmark",
        action="store_true",
        dest="parallax_run",
        help="Time PyTorch and JAX against each other in turns and write a report.",
    )
    group.addoption(
        "--benchmark-quick", action="store_true", dest="parallax_quick", help="The small model, few and short samples."
    )
    group.addoption(
        "--benchmark-device", default=OWN["parallax_device"], dest="parallax_device", help="cpu, cuda or cuda:N."
    )
    group.addoption(
        "--benchmark-out",
        default=OWN["parallax_out"],
        dest="parallax_out",
        help="Folder for reports, each in a folder of its device and kind (default: out/perf). Write it with = if it is"
        " outside of this checkout, or pytest takes it for a place with tests.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """pytest-benchmark reads its own options after this."""
    option = config.option
    _check_options(option)
    if not hasattr(option, "benchmark_disable"):  # -p no:benchmark
        config.addinivalue_line("markers", "benchmark: how pytest-benchmark times a test (not installed here)")
        if option.parallax_run:
            raise pytest.UsageError("--benchmark needs pytest-benchmark, which is not loaded here.")
    elif option.parallax_run:
        option.benchmark_enable, option.benchmark_disable = True, False
    elif not (option.benchmark_only or option.benchmark_enable):
        option.benchmark_disable = True
    config.parallax = Run(config)


def _check_options(option):
    """Refuse what cannot go with --benchmark, and its own options without it."""
    if not option.parallax_run:
        for name, default in OWN.items():
            if getattr(option, name) != default:
                said = name.replace("parallax_", "--benchmark-")
                raise pytest.UsageError(f"{said} says how --benchmark measures; give both, or neither.")
        return
    for name, words in CLASHES.items():
        if getattr(option, name, None):
            raise pytest.UsageError(f"{words}; leave it out, or --benchmark.")
    if getattr(option, "dist", "no") != "no":
        raise pytest.UsageError("--benchmark takes turns on the whole machine; leave out -n.")


def pytest_collection_modifyitems(config, items):
    """With --benchmark only benchmarks run. Only the closest `benchmark` mark counts, so ours is complete."""
    timer = {"timer": CLOCK} if config.option.parallax_run else {}
    for item in filter(_timed, items):
        if hasattr(config.option, "benchmark_disable") and "benchmark" not in item.fixturenames:
            item.fixturenames.append("benchmark")  # `contest` asks for it: so --benchmark-only knows
        cell, _ = item.callspec.params["pair"]
        item.add_marker(pytest.mark.benchmark(group=cell.title, **timer), append=False)
    if config.option.parallax_run:
        config.hook.pytest_deselected(items=[item for item in items if not _timed(item)])
        items[:] = filter(_timed, items)


def pytest_collection_finish(session):
    """Refuse what cannot be measured before anything is."""
    option = session.config.option
    chosen = [item.callspec.params["pair"] for item in session.items if _timed(item)]
    if option.parallax_run and chosen and not option.collectonly:
        session.config.parallax.prepare(chosen)


def pytest_terminal_summary(terminalreporter, config):
    if config.parallax.told:
        terminalreporter.section("report")
        terminalreporter.write_line(config.parallax.told)


def _timed(item) -> bool:
    return "pair" in getattr(getattr(item, "callspec", None), "params", {}) and "contest" in item.fixturenames


class Run:
    """What `--benchmark` measures: all chosen cells at once when the first test asks for its samples."""

    def __init__(self, config):
        self.config, self.told = config, ""
        self._summary = self._failure = None

    def prepare(self, chosen) -> None:
        """Check everything that is to be measured."""
        from benchmarks import job
        from common.errors import UserError

        option = self.config.option
        call = shlex.join(["pytest", *(job.portable(str(word)) for word in self.config.invocation_params.args)])
        try:
            asked = job.Settings(
                device=option.parallax_device, quick=option.parallax_quick, out=Path(option.parallax_out), call=call
            )
            self._work = job.prepare(asked, cells=job.only(chosen))
        except UserError as error:
            raise pytest.UsageError(str(error)) from error

    def contender(self, cell, one) -> dict:
        """The summary's entry of a contender in a cell; measured once, whether that succeeds or not."""
        from common.errors import UserError

        if self._summary is None and self._failure is None:
            try:
                self._summary = self._measured()
            except Exception as error:
                notes = getattr(error, "__notes__", [])
                self._failure = f"{type(error).__name__}: {error}"
                self.told = " ".join([f"The measurement failed ({self._failure}).", *notes])
                if not isinstance(error, UserError):
                    raise
        if self._failure is not None:
            pytest.fail(f"The measurement failed: {self._failure}", pytrace=False)
        found = next((c for c in self._summary["cells"] if c["cell"] == cell.name), {"contenders": []})
        return next((c for c in found["contenders"] if c["name"] == one.name), {"refused": "it was not measured"})

    def samples(self, cell, one) -> list[float]:
        """Seconds per call of its turns, in order."""
        lines = [line for line in self._lines if line["kind"] == "block" and line["cell"] == cell.name]
        return [seconds for line in lines for name, _, seconds in line["turns"] if name == one.name]

    def _measured(self) -> dict:
        from benchmarks import job
        from benchmarks.harness import record
        from reports.perf import job as pages

        capture = self.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            folder, partial = job.produce(self._work, self._say, pages.rewrite)
        self._lines = record.read(folder / record.RAW)
        self.told = f"{folder / pages.PAGE}" + (f" (partial: {partial})" if partial else "")
        if partial == job.INTERRUPTED:
            raise KeyboardInterrupt
        return pages.derive(folder)

    def _say(self, what: str, share: float) -> None:
        reporter = self.config.pluginmanager.getplugin("terminalreporter")
        reporter.write(f"\n{share:4.0%} {what}" if what else "")


@pytest.fixture
def contest(request):
    """A function from (cell, contender) to nothing: replays what the contest measured, or runs the task once."""
    plugin = hasattr(request.config.option, "benchmark_disable")
    bench = request.getfixturevalue("benchmark") if plugin else None

    def run(cell, one):
        if bench is None or not request.config.option.parallax_run:
            from benchmarks.once import check

            (bench or (lambda function: function()))(lambda: check(cell, one))
            return
        found = request.config.parallax.contender(cell, one)
        if found["refused"] or not found["seconds"]:
            pytest.fail(found["refused"] or "it was not timed", pytrace=False)
        samples = iter(request.config.parallax.samples(cell, one))

        def step():
            CLOCK.now += next(samples)

        bench.pedantic(step, rounds=found["seconds"]["samples"], iterations=1)
        shown = ("per_second", "mfu_full", "mbu", "self_ratio", "settings", "phases", "memory")
        bench.extra_info.update({name: found[name] for name in shown})

    return run
