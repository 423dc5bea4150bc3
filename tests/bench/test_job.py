"""From settings to a folder: what is refused, what is kept of a run that ends early, and whose place it takes."""

import os
import signal
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from planted_suite import CELLS, seconds

from benchmarks import job
from benchmarks.harness import machine, record, timing
from benchmarks.harness.process import Rules
from benchmarks.harness.record import RAW
from benchmarks.harness.worker import Worker
from benchmarks.suites import DEFAULT
from common import cli, files
from common.cores import usable_cores
from common.errors import UserError
from common.stopping import STOPS, stoppable
from reports.perf import job as pages

POINT = EntryPoint("bench", "reports.perf.bench:bench", "parallax.commands")
SLUG = "cpu-some-processor-1-threads"


def silent(what, share):
    """Progress that nobody sees."""


def measuring(cells, error=None):
    """In the place of `job.measure`: one block of each of these cells, and an error if there is to be one."""

    def measure(work, kept, report):
        for cell in cells:
            kept.add("block", cell=cell.name, block=0, calls={"honest": 1}, turns=[["honest", 0, 0.1]])
        if error is not None:
            raise error

    return measure


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of these cells in `tmp_path`; what `job.produce` gives."""
    rules = Rules(1, seconds=0.5, least=2, quick=True)
    work = job.Work(job.Settings(), {"kind": "cpu", "name": "x"}, rules, CELLS, tmp_path / "here")

    def produce(cells=CELLS, error=None, write=lambda folder: None, measure=None):
        monkeypatch.setattr(job, "measure", measure or measuring(cells, error))
        return job.produce(work, silent, write)

    return produce


@pytest.mark.parametrize(("quick", "due"), [(False, (20.0, 12)), (True, (2.0, 6))])
def test_rules_of_a_run_and_of_one_of_its_rounds(quick, due):
    """Short turns in a quick run alone, on a CPU."""
    rules = job.prepare(job.Settings(("forward",), "cpu", quick)).rules
    assert (rules.seconds, rules.least) == due
    assert rules.enough == timing.ENOUGH
    assert rules.quick is rules.short is quick
    part = rules.part(timing.ROUNDS)
    assert (part.seconds, part.least, part.enough) == (due[0] / 2, due[1] / 2, timing.ENOUGH / 2)
    assert part.judged is rules.judged
    assert Rules(1, "cuda:0").short


def test_who_has_one_process_has_two_rounds(run, monkeypatch):
    """Unless time is short."""
    asked = []
    for name in ("known", "peaks", "flops"):
        monkeypatch.setattr(job.beside, name, lambda *_: None)
    monkeypatch.setattr(job.contest, "run", lambda cells, rules, kept, report, *how: asked.append(how))
    for there, more in ((1, {}), (2, {}), (2, {"quick": True}), (2, {"minutes": 9.0})):
        monkeypatch.setattr(job, "processes", lambda group, device, there=there: there)
        work = job.Work(job.Settings(**more), {"kind": "cpu"}, Rules(1), CELLS[:1], Path())
        job.measure(work, SimpleNamespace(lines=[]), silent)
    assert asked == [(1, timing.ROUNDS), (2, 1), (1, 1), (1, 1)]


def blocks(folder):
    return [line["cell"] for line in record.of(record.read(folder / RAW), "block")]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [UserError("no font"), ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
def test_what_was_measured_outlives_pages_that_cannot_be_made(tmp_path, run, error):
    def fails(folder):
        raise error

    with pytest.raises(type(error)) as raised:
        run(write=fails)
    assert str(tmp_path / "here") in raised.value.__notes__[-1]
    assert names(tmp_path) == ["here"]
    assert len(blocks(tmp_path / "here")) == 3
    assert next(record.of(record.read(tmp_path / "here" / RAW), "end"))["partial"] is None
    run(CELLS[:2], write=lambda folder: (folder / "index.html").touch())
    with pytest.raises(type(error)):
        run(write=fails)
    assert names(tmp_path) == ["here", "here-partial"]
    assert (len(blocks(tmp_path / "here")), len(blocks(tmp_path / "here-partial"))) == (2, 3)
    assert (tmp_path / "here" / "index.html").exists()


def test_what_was_measured_stays_where_it_is_if_it_cannot_be_moved(tmp_path, run, monkeypatch):
    def fails(temporary, target):
        raise OSError("no")

    monkeypatch.setattr(files, "take_place", fails)
    with pytest.raises(OSError, match="no") as raised:
        run()
    (kept,) = tmp_path.iterdir()
    assert raised.value.__notes__ == [f"What was measured is kept in {kept}."]
    assert len(blocks(kept)) == 3


def test_a_fault_while_measuring_keeps_what_there_is(tmp_path, run):
    with pytest.raises(ZeroDivisionError) as raised:
        run(CELLS[:1], ZeroDivisionError("x"))
    assert str(tmp_path / "here") in raised.value.__notes__[0]
    assert next(record.of(record.read(tmp_path / "here" / RAW), "end"))["partial"] == "failed: ZeroDivisionError: x"
    with pytest.raises(ZeroDivisionError):
        run((), ZeroDivisionError("nothing was measured"))
    assert names(tmp_path) == ["here"]


@pytest.fixture
def usual():
    """Signals as a process has them that was just started."""
    before = {name: signal.signal(getattr(signal, name), signal.SIG_DFL) for name in STOPS}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_ends_a_run_as_an_interruption_does(tmp_path, run, usual, name):
    number, blocked = getattr(signal, name), measuring(CELLS)

    def strike():
        assert signal.getsignal(number) != signal.SIG_DFL  # or it would end this process
        signal.raise_signal(number)

    def measure(work, kept, report):
        blocked(work, kept, report)
        strike()

    folder, partial = run(measure=measure, write=lambda folder: strike())  # the second one breaks nothing
    assert partial == job.INTERRUPTED
    assert len(blocks(folder)) == 3
    assert signal.getsignal(number) == signal.SIG_DFL
    assert names(tmp_path) == ["here"]


def test_ignored_signals_stay_ignored(usual):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with stoppable():
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_workers_are_not_stopped_by_what_stops_the_parents_group():
    with Worker("numpy", threads=1) as worker:
        assert os.getpgid(worker.process.pid) == worker.process.pid


def test_a_partial_run_takes_the_place_of_no_more_than_itself(tmp_path, run):
    stop = KeyboardInterrupt
    assert run(CELLS[:1], stop())[0].name == "here"
    assert run(CELLS[:2], stop())[0].name == "here"
    assert run(CELLS[:1], stop())[0].name == "here-partial"
    assert run(CELLS[1:], stop())[0].name == "here-partial-2"
    assert run()[0].name == "here"
    assert run(CELLS[:2], stop())[0].name == "here-partial"
    assert [len(blocks(tmp_path / name)) for name in names(tmp_path)] == [3, 2, 2]
    assert run((), None) == (tmp_path / "here-partial-3", job.NOBODY)  # of no cell anything was timed


@pytest.fixture
def here(monkeypatch):
    """A machine without a name of its own, with memory for everything."""
    monkeypatch.setattr(machine, "cpu_model", lambda: "Some Processor")
    monkeypatch.setattr(machine, "instructions", lambda: ["avx2"])
    monkeypatch.setattr(job, "check_memory", lambda *_: None)


@pytest.mark.parametrize(("asked", "due"), [
    ({}, SLUG),
    ({"suites": DEFAULT, "model": "gpt2-124m"}, SLUG),
    ({"quick": True}, f"{SLUG}-quick"),
    ({"quick": True, "model": "nano"}, f"{SLUG}-quick"),
    ({"suites": ("train", "forward", "train")}, f"{SLUG}-forward-train"),
    ({"suites": ("decode",), "quick": True}, f"{SLUG}-decode-quick"),
    ({"model": "nano"}, f"{SLUG}-nano"),
    ({"model": "gpt2-355m", "suites": ("load",)}, f"{SLUG}-gpt2-355m-load"),
])  # fmt: skip
def test_every_kind_of_run_has_a_folder_of_its_own(tmp_path, here, asked, due):
    work = job.prepare(job.Settings(threads=1, out=tmp_path, **asked))
    assert work.folder == tmp_path / due
    assert len({cell.name for cell in work.cells}) == len(work.cells)
    assert list(dict.fromkeys(cell.suite for cell in work.cells)) == list(dict.fromkeys(asked.get("suites", DEFAULT)))


@pytest.mark.parametrize(("flags", "more"), [
    (["avx2", "avx512f"], ""), (["avx2", "avx512_bf16"], "avx512-bf16-"), (["avx512_bf16", "amx_bf16"], "amx-bf16-"),
])  # fmt: skip
def test_processors_of_one_name_that_differ_in_16_bits_have_folders_of_their_own(
    tmp_path, here, flags, more, monkeypatch
):
    monkeypatch.setattr(machine, "instructions", lambda: flags)
    work = job.prepare(job.Settings(threads=1, out=tmp_path))
    assert work.folder.name == f"cpu-some-processor-{more}1-threads"
    assert work.device["name"] == ", ".join(["Some Processor", *filter(None, [more.replace("-", "_").strip("_")])])


def test_a_selection_has_a_folder_of_its_own(tmp_path, here):
    asked = job.Settings(threads=1, out=tmp_path, quick=True)
    cells = [cell for cell in job.prepare(asked).cells if cell.suite == "forward"]
    pairs = [(cell, one) for cell in cells for one in cell.contenders]
    found = [job.prepare(asked, job.only(chosen)).folder.name for chosen in (pairs, pairs[1:], pairs[:1], pairs[:1])]
    assert found[0] == f"{SLUG}-forward-quick"
    assert all(name.startswith(f"{SLUG}-forward-only-") and name.endswith("-quick") for name in found[1:])
    assert len(set(found)) == 3
    assert found[2] == found[3]


def test_cells_of_one_name_are_a_fault(tmp_path, here):
    with pytest.raises(RuntimeError, match="several cells have one name: forward/one/3x8/float32"):
        job.prepare(job.Settings(out=tmp_path), cells=(CELLS[0], CELLS[1], CELLS[0]))


@pytest.fixture
def call(here, monkeypatch, capsys):
    """Run `parallax bench …`; (exit code, stdout, stderr)."""
    monkeypatch.setattr(cli, "entry_points", lambda group: [POINT])
    monkeypatch.setattr(pages, "rewrite", lambda folder: None)

    def bench(*words):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["bench", "--threads", "1", "--suite", "load", *map(str, words)])
        return stopped.value.code, *capsys.readouterr()

    return bench


def refused(work, kept, report):
    """In the place of `job.measure`: nobody passes the gate."""
    for cell in work.cells:
        kept.add("cell", **cell.line())
        for one in cell.contenders:
            kept.add("contender", cell=cell.name, **one.line({}, {}))
            kept.add("refused", cell=cell.name, name=one.name, reason="No.")


def timed(work, kept, report):
    """In the place of `job.measure`: everybody was timed."""
    for cell in work.cells:
        kept.add("cell", **cell.line())
        for one in cell.contenders:
            kept.add("contender", cell=cell.name, **one.line({}, {}))
        for block in range(4):
            turns = [[one.name, copy, seconds("honest", block, copy)] for one in cell.contenders for copy in (0, 1)]
            kept.add("block", cell=cell.name, block=block, calls={}, turns=turns)


def test_a_run_in_which_nobody_was_timed_exits_with_1_and_replaces_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "measure", timed)
    assert call("--out", tmp_path)[0] == 0
    before = (tmp_path / f"{SLUG}-load" / RAW).read_bytes()
    monkeypatch.setattr(job, "measure", refused)
    code, out, err = call("--out", tmp_path)
    assert code == 1
    assert "Not a single contender was timed" in err
    assert "No." in out
    assert (tmp_path / f"{SLUG}-load" / RAW).read_bytes() == before
    assert names(tmp_path) == [f"{SLUG}-load", f"{SLUG}-load-partial"]


def one_sentence(said, words):
    code, out, err = said
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_a_place_where_nothing_can_be_written_is_refused_before_measuring(call, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "measure", lambda *_: pytest.fail("it began"))
    (tmp_path / f"{SLUG}-load").write_text("mine")
    one_sentence(call("--out", tmp_path), f"{SLUG}-load is a file; the folder of this run is to be there.")
    assert names(tmp_path) == [f"{SLUG}-load"]
    one_sentence(call("--out", tmp_path / ("x" * 300)), "File name too long")

    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", denied)
    one_sentence(call("--out", tmp_path), "Permission denied")


def test_where_the_samples_are_is_told_when_the_pages_fail(call, tmp_path, monkeypatch):
    def fails(folder):
        raise UserError("No font.")

    monkeypatch.setattr(job, "measure", timed)
    monkeypatch.setattr(pages, "rewrite", fails)
    code, out, err = call("--out", tmp_path)
    assert (code, out) == (2, "")
    assert "No font." in err
    assert f"parallax report {tmp_path / f'{SLUG}-load'}" in err


def test_the_environment_and_the_packages_are_those_of_the_workers(tmp_path, run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run()
    told = record.read(tmp_path / "here" / RAW)[0]["machine"]
    due = {"OMP_NUM_THREADS": "1", "NPROC": "1", "GOMP_SPINCOUNT": "30000", "JAX_PLATFORMS": "cpu"}
    assert {name: told["environment"].get(name) for name in due} == due
    assert "PYTHONPATH" not in told["environment"]
    monkeypatch.setattr(metadata, "version", lambda name: {"transformers": "5.0"}.get(name) or missing(name))
    assert machine.versions() == {"transformers": "5.0"}


def test_seeds_cores_checksums_and_gpus_at_both_ends_are_on_record(tmp_path, run, monkeypatch):
    states = iter([[{"clock": "345 MHz"}], [{"clock": "1980 MHz"}]])
    monkeypatch.setattr(job.gpu, "state", lambda: next(states))
    run()
    first, *_, last = record.read(tmp_path / "here" / RAW)
    assert first["seeds"] == {"weights and inputs": [0], "turns": 0}
    assert first["machine"]["affinity"] == usable_cores()
    assert set() < set(first["machine"]["wheels"]) <= set(machine.WHEELS)  # of packages that an installer recorded
    assert [line["gpu_state"][0]["clock"] for line in (first, last)] == ["345 MHz", "1980 MHz"]
    assert pages.derive(tmp_path / "here")["gpu_state"] == {"start": first["gpu_state"], "end": last["gpu_state"]}


def test_the_same_wheel_has_the_same_checksum_wherever_it_is_installed(monkeypatch):
    """Scripts name the place of their Python, and installers leave notes; files that differ are another wheel."""
    files = ["numpy/a.py,sha256=one,1", '"numpy/a,b.py",sha256=two,2']
    notes = ["../../../bin/f2py,sha256=here,3", "numpy-2.dist-info/INSTALLER,sha256=pip,4", "numpy/a.pyc,,"]
    records = {"here": files + notes, "there": files[::-1], "other": [files[0], files[1].replace("two", "2")]}
    found = {}
    for place, lines in (*records.items(), ("none", None)):
        told = SimpleNamespace(read_text={"RECORD": lines and "\n".join(lines)}.get)
        monkeypatch.setattr(
            metadata, "distribution", lambda name, told=told: told if name == "numpy" else missing(name)
        )
        found[place] = machine.wheels()
    assert found["here"] == found["there"] != found["other"]
    assert set(found["here"]) == set(found["other"]) == {"numpy"}
    assert len(found["here"]["numpy"]) == 64
    assert found["none"] == {}


def missing(name):
    raise metadata.PackageNotFoundError(name)


def test_the_command_says_where_the_results_went(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out, due in [
        ("out/perf", ""), (tmp_path / "out" / "perf", ""), ("a b", " --out 'a b'"), (tmp_path / "x", " --out x"),
        ("../x", " --out ../x"), ("/somewhere/of/mine", " --out mine"),
    ]:  # fmt: skip
        asked = job.Settings(suites=("load",), quick=True, out=Path(out))
        assert asked.command() == f"parallax bench --suite load{due} --quick"
