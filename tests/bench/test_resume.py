"""A run that was ended goes on: what it measured whole stays to the letter, and nothing else does."""

import json
from importlib.metadata import EntryPoint

import pytest
from planted_suite import CELLS, seconds

from benchmarks import job, resume
from benchmarks.harness import machine, record
from benchmarks.harness.record import RAW, UNFINISHED
from benchmarks.harness.summary import summarise
from common import cli
from common.errors import UserError
from reports.perf import job as pages
from reports.perf import page
from reports.perf import wording as say
from reports.perf.numbers import plain

POINT = EntryPoint("bench", "reports.perf.bench:bench", "parallax.commands")
NEVER = "no such cell"


def silent(what, share):
    """Progress that nobody sees."""


@pytest.fixture
def ending(monkeypatch):
    """ending(name): from now on cells are measured in no time, until the one of that name, in the middle of which the
    run ends; a list of those that were measured."""
    measured = []
    monkeypatch.setattr(
        job, "SUITES", {"forward": lambda scope: iter(CELLS[:2]), "train": lambda scope: iter(CELLS[2:])}
    )
    monkeypatch.setattr(job, "DEFAULT", ("forward", "train"))
    monkeypatch.setattr(job, "check_memory", lambda *_: None)
    monkeypatch.setattr(job.beside, "known", lambda device, kept: kept.add("skipped", what="GPU", reason="none"))
    monkeypatch.setattr(job.beside, "peaks", lambda *_: None)
    monkeypatch.setattr(job.beside, "flops", lambda *_: None)

    def until(name):
        def run(cells, rules, kept, report, *how):
            for cell in cells:
                names = [one.name for one in cell.contenders]
                kept.add("cell", **cell.line())
                for one in cell.contenders:
                    kept.add("contender", cell=cell.name, **one.line({}, {}))
                for block in range(6):
                    turns = [[who, copy, seconds(who, block, copy)] for who in names for copy in (0, 1)]
                    kept.add("block", cell=cell.name, block=block, calls=dict.fromkeys(names, 1), turns=turns)
                kept.add("skipped", what=f"memory of {names[0]} in {cell.title}", reason="planted")
                if cell.name == name:
                    raise KeyboardInterrupt
                measured.append(cell.name)

        monkeypatch.setattr(job.contest, "run", run)
        return measured

    return until


@pytest.fixture
def ended(tmp_path, ending):
    """The folder of a run of three cells that ended in the second, and what it measured."""
    measured = ending(CELLS[1].name)
    folder, partial = job.produce(job.prepare(job.Settings(threads=1, out=tmp_path)), silent, lambda folder: None)
    assert partial == job.INTERRUPTED
    assert measured == [CELLS[0].name]
    return folder, measured


def lines(folder):
    return (folder / RAW).read_text(encoding="utf-8").splitlines()


def test_what_was_measured_whole_stays_and_the_rest_is_measured(ended, ending):
    folder, measured = ended
    before = lines(folder)
    ending(NEVER)
    work = resume.prepare(folder)
    assert work.left == list(CELLS[1:])
    place, partial = job.produce(work, silent, lambda folder: None)
    assert (place, partial) == (folder, None)
    assert measured == [cell.name for cell in CELLS]
    after = lines(folder)
    end = next(number for number, line in enumerate(before) if '"done"' in line) + 1
    assert after[:end] == before[:end]
    kinds = [json.loads(line)["kind"] for line in after[end:]]
    assert kinds[0] == "resumed"
    assert kinds.count("cell") == kinds.count("done") == 2
    assert not {"run", "resumed", "end"} & set(kinds[1:-1])
    found = summarise(record.read(folder / RAW))
    assert [cell["cell"] for cell in found["cells"]] == measured
    assert {cell["blocks"] for cell in found["cells"]} == {6}
    assert found["partial"] is None
    assert [line["what"] for line in found["skipped"]].count("GPU") == 1
    assert len(found["skipped"]) == 4


def test_a_run_may_end_and_go_on_again_and_again(ended, ending):
    folder, measured = ended
    for number, cell in enumerate(CELLS[1:], 2):
        ending(CELLS[2].name if cell is CELLS[1] else NEVER)
        folder, partial = job.produce(resume.prepare(folder), silent, lambda folder: None)
        assert len(measured) == number
        assert (partial is None) is (number == 3)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(list(record.of(record.read(folder / RAW), "resumed"))) == 2


def test_a_run_that_was_killed_goes_on(ended, ending):
    """It has the name of an unfinished one, and its last line is cut short."""
    folder, _ = ended
    text = (folder / RAW).read_text(encoding="utf-8")
    (folder / RAW).unlink()
    (folder / UNFINISHED).write_text(text[:-20], encoding="utf-8")
    ending(NEVER)
    assert job.produce(resume.prepare(folder), silent, lambda folder: None)[1] is None


def test_what_had_no_time_is_measured_when_a_run_goes_on(tmp_path, ending):
    """Cells that were not ready, and those whose memory was not measured; nothing of having been left out stays."""
    ending(NEVER)
    first, second, third = CELLS
    asked = job.Settings(threads=1, out=tmp_path, minutes=5.0)

    def measure(work, kept, report):
        kept.add("skipped", what=third.title, reason="it was not ready after 9 s")
        job.contest.run([first], None, kept, silent)
        job.contest.run([second], None, kept, silent)
        kept.add("skipped", what=f"memory in {second.title}", reason="there was no time left")
        job._done(CELLS, kept)
        job.left_out(work, kept, "time was over")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "measure", measure)
        folder, _ = job.produce(job.prepare(asked), silent, lambda folder: None)
    work = resume.prepare(folder, minutes=7.0)
    assert work.left == [second, third]
    assert work.asked.minutes == 7.0
    job.produce(work, silent, lambda folder: None)
    found = summarise(record.read(folder / RAW))
    assert {cell["cell"] for cell in found["cells"]} == {cell.name for cell in CELLS}
    assert all(line["what"].startswith("memory of ") for line in found["skipped"])
    refused(folder, "is whole")


def test_who_goes_on_and_is_ended_stays_where_it_was(ended, ending, tmp_path):
    """Also if nothing more was measured."""
    folder, _ = ended
    place = folder.rename(folder.with_name(f"{folder.name}-partial"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job.beside, "peaks", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        again, partial = job.produce(resume.prepare(place), silent, lambda folder: None)
    assert (again, partial) == (place, job.INTERRUPTED)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert resume.prepare(place).left == list(CELLS[1:])


def test_days_are_told(ended, ending):
    folder, _ = ended
    ending(NEVER)
    job.produce(resume.prepare(folder), silent, lambda folder: None)
    found = summarise(record.read(folder / RAW))
    assert len(found["resumed"]) == 1
    other = {**found, "started": "2026-01-01T10:00:00+00:00", "resumed": ["2026-01-02T11:00:00+00:00"]}
    assert "2026-01-01 and 2026-01-02" in plain(other, say.footer(other))
    assert "gone on with at 2026-01-02T11:00:00+00:00" in page.render(other, {})
    assert pages.derive(folder)["resumed"] == found["resumed"]


def refused(folder, words, **options):
    with pytest.raises(UserError, match=words):
        resume.prepare(folder, **options)


def test_only_what_is_measured_by_the_same_goes_on(ended, monkeypatch):
    folder, _ = ended
    refused(folder, "Leave out --minutes", minutes=5.0)
    for name, value, words in (
        ("code", "0" * 64, "another code"),
        ("versions", {"torch": "1.0"}, "another versions of packages"),
        ("cpu_model", "Another Processor", "of another device"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(machine, name, lambda value=value: value)
            refused(folder, words)
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag=1")
    refused(folder, "another environment")


def test_what_cannot_go_on_says_so(tmp_path, ended, ending):
    folder, _ = ended
    refused(tmp_path / "nowhere", "is not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "Cannot read")
    text = (folder / RAW).read_text(encoding="utf-8")
    asked = json.dumps(json.loads(text.splitlines()[0])["asked"])
    (folder / RAW).write_text(text.replace(f'"asked": {asked}', '"asked": null'), encoding="utf-8")
    refused(folder, "does not say what it was asked for")
    (folder / RAW).write_text(text, encoding="utf-8")
    ending(NEVER)
    job.produce(resume.prepare(folder), silent, lambda folder: None)
    refused(folder, "is whole")


@pytest.mark.parametrize("more", [("--quick",), ("--suite", "train"), ("--out", "elsewhere"), ("--seconds", "3")])
def test_the_command_takes_nothing_else(ended, monkeypatch, capsys, more):
    folder, _ = ended
    monkeypatch.setattr(cli, "entry_points", lambda group: [POINT])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--resume", str(folder), *more])
    assert stopped.value.code == 2
    assert "leave out all other options but --minutes" in capsys.readouterr().err


def test_the_command_lists_what_is_left(ended, monkeypatch, capsys):
    folder, _ = ended
    monkeypatch.setattr(cli, "entry_points", lambda group: [POINT])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--resume", str(folder), "--list"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert [cell.title in told for cell in CELLS] == [False, True, True]
