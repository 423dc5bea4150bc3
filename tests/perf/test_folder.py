"""The report on disk: what is written, what counts as stale, and that nothing is ever half-written."""

import hashlib
import itertools
import json
import os
import re
from pathlib import Path

import made
import pytest

from benchmarks.harness import record
from benchmarks.harness.summary import summarise
from common import files
from common.errors import UserError
from reports.perf import command, ink, job, plots, series, table

TEXTS = {"summary.json", "table.md", "table.csv", "index.html", "raw.jsonl"}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def sketched(monkeypatch):
    """Plots that are drawn in no time; their numbers and stamps are real."""
    for name, plot in plots.PLOTS.items():
        quick = plot._replace(draw=lambda figure, rows, ink: figure.text(0.5, 0.5, len(rows), color=ink.jax))
        monkeypatch.setitem(plots.PLOTS, name, quick)


def test_everything_is_written_and_fresh(written):
    names = {
        f"{name}.{kind}"
        for name in ("ratio_forest", "roofline", "memory", "breakeven")
        for kind in ("csv", "svg", "png")
    }
    assert set(content(written)) == TEXTS | names
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    assert job.check(written) == []
    found = json.loads((written / "summary.json").read_text())
    assert found == summarise(record.read(written / record.RAW))
    assert (written / "index.html").read_text().count("<svg data-numbers=") == 4


def test_writing_again_gives_the_same_report(folder, written):
    """The same bytes, but for the last digit of a place in a drawing, which its layout does not always repeat."""

    def told(folder):
        return {
            name: plots.faceless(data.decode()) if name == "index.html" else plots.stamp_of(name[-3:], data) or data
            for name, data in content(folder).items()
        }

    job.write(folder, job.derive(folder))
    assert told(folder) == told(written)


@pytest.mark.parametrize("name", [
    "index.html", "summary.json", "table.md", "table.csv", "ratio_forest.csv", "ratio_forest.svg", "memory.png",
])  # fmt: skip
def test_an_edited_or_missing_file_is_stale(folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    (told,) = job.check(folder)
    assert name in told
    path.unlink()
    assert job.check(folder) == [f"{path} is missing."]


def test_a_number_changed_on_the_page_is_stale(folder):
    path = folder / "index.html"
    text = path.read_text()
    shown = re.search(r'data-form="factor">([\d.]+)<', text)
    path.write_text(text[: shown.start(1)] + "9.99" + text[shown.end(1) :])
    assert [sentence for sentence in job.check(folder) if "index.html does not follow" in sentence]


def test_a_drawing_changed_on_the_page_is_stale(folder):
    path = folder / "index.html"
    text = path.read_text()
    at = re.search(r">\d\.\d\d \(", text).start() + 1
    path.write_text(f"{text[:at]}9.99{text[at + 4 :]}")
    assert len(job.check(folder)) == 1


def test_edited_samples_make_everything_that_shows_them_stale(folder):
    lines = record.read(folder / record.RAW)
    block = next(line for line in lines if line["kind"] == "block")
    block["turns"] = [[name, copy, 1.3 * s if name == "jax" else s] for name, copy, s in block["turns"]]
    (folder / job.RAW).write_text(made.text(lines))
    told = " ".join(job.check(folder))
    for name in ("summary.json", "index.html", "table.csv", "ratio_forest.csv", "ratio_forest.svg", "ratio_forest.png"):
        assert name in told
    assert "memory" not in told


def test_a_plot_of_another_commit_is_stale(folder):
    lines = record.read(folder / record.RAW)
    lines[0]["machine"]["commit"]["changed"] = True
    (folder / job.RAW).write_text(made.text(lines))
    assert len([told for told in job.check(folder) if "shows other numbers" in told]) == 8


def test_a_drawing_of_another_matplotlib_is_not_stale(folder):
    """It draws the same numbers otherwise, and says so of itself."""
    kept = plots.stamp_of("svg", (folder / "ratio_forest.svg").read_bytes())
    page = folder / "index.html"
    old = re.search(r'<svg data-numbers="\w*" data-drawing="(\w*)"(.*?</svg>\n?)', page.read_text(), re.DOTALL)
    other = old[2].replace("<g", '<g class="other"', 1)
    page.write_text(page.read_text().replace(old[2], other).replace(old[1], plots._sha("<svg" + other)))
    path = folder / "ratio_forest.svg"
    bare = re.sub(rb"<!-- parallax .*?-->\n", b"", path.read_bytes()).replace(b"<g", b'<g class="other"', 1)
    path.write_bytes(plots._stamped("svg", bare, kept))
    assert job.check(folder) == []


def test_plots_that_have_nothing_to_draw_any_more_go(sketched, folder):
    lines = [line for line in record.read(folder / record.RAW) if line["kind"] != "memory"]
    (folder / job.RAW).write_text(made.text(lines))
    assert f"{folder / 'memory.svg'} is left from another run: these samples have nothing to draw there." in job.check(
        folder
    )
    job.write(folder, job.derive(folder))
    assert not list(folder.glob("memory.*"))
    assert job.check(folder) == []


@pytest.mark.parametrize("where", ["files", "inline"])
def test_a_failure_midway_leaves_everything_as_it_was(sketched, folder, monkeypatch, where):
    before = content(folder)
    lines = list(made.lines(7, suites=("forward",)))
    kept, calls = getattr(plots, where), []

    def breaks(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(*arguments)

    monkeypatch.setattr(plots, where, breaks)
    with pytest.raises(KeyboardInterrupt):
        job.write(folder, summarise(lines))
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def tree(folder):
    """What lies in a folder and below it, by path."""
    places = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path.relative_to(folder)): path.is_symlink() or path.read_bytes() for path in places}


class Interruption:
    """Ctrl-C before or after a call of a function that is watched: at the `stop`th of these moments."""

    def __init__(self):
        self.stop = self.seen = 0

    def moment(self):
        self.seen += 1
        if self.seen == self.stop:
            raise KeyboardInterrupt

    def watched(self, run):
        def watching(*arguments, **options):
            self.moment()
            found = run(*arguments, **options)
            self.moment()
            return found

        return watching


@pytest.mark.parametrize("exchange", [True, False])
def test_an_interruption_leaves_the_old_report_or_the_new_one(folder, monkeypatch, exchange):
    """Before and after everything that is written, taken along or renamed. Nothing else in the folder is lost, and
    nothing is left beside it."""
    monkeypatch.setattr(plots, "files", lambda name, own, footer: {"svg": b"", "png": str(own).encode()})
    monkeypatch.setattr(plots, "inline", lambda name, own: "")
    (folder / "more").mkdir()
    for place in ("README.md", "more/notes.txt"):
        (folder / place).write_text("kept")
    (folder / "link").symlink_to("README.md")
    reports = [summarise(made.lines(seed, suites=("forward",))) for seed in (7, 8)]
    own, both = {name: tree(folder)[name] for name in ("raw.jsonl", "README.md", "more/notes.txt", "link")}, []
    for found in reports:
        job.write(folder, found)
        both.append(tree(folder))
    assert own.items() <= both[0].items() & both[1].items()
    assert both[0]["index.html"] != both[1]["index.html"]
    if not exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    at, stages = Interruption(), set()
    for place, name in (*((Path, f"write_{kind}") for kind in ("bytes", "text")), (os, "link"), (os, "rename"),
                        (os, "symlink"), (files, "_exchanged")):  # fmt: skip
        monkeypatch.setattr(place, name, at.watched(getattr(place, name)))
    for at.stop in itertools.count(1):
        at.seen, before = 0, both.index(tree(folder))
        try:
            job.write(folder, reports[1 - before])
        except KeyboardInterrupt:
            stages.add(both.index(tree(folder)) == before)
            assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        else:
            break
    assert at.stop > 2 * len(both[0])
    assert stages == {True, False}


def test_a_failing_table_leaves_everything_as_it_was(folder, monkeypatch):
    before = content(folder)
    monkeypatch.setattr(table, "markdown", lambda found: 1 / 0)
    monkeypatch.setattr(plots, "files", lambda *_: {})
    monkeypatch.setattr(plots, "inline", lambda *_: "")
    with pytest.raises(ZeroDivisionError):
        job.write(folder, summarise(made.lines(7, suites=("forward",))))
    assert content(folder) == before


def test_a_partial_run_is_marked_on_disk(sketched, tmp_path):
    lines = [*list(made.lines(suites=("forward",)))[:40]]
    assert not [line for line in lines if line["kind"] == "end"]
    (tmp_path / job.RAW).write_text(made.text(lines))
    job.write(tmp_path, job.derive(tmp_path))
    assert job.check(tmp_path) == []
    assert "A partial run (not finished)" in (tmp_path / "index.html").read_text()
    assert "PARTIAL RUN" in (tmp_path / "table.md").read_text()


def test_the_command_writes_and_checks(sketched, call, folder):
    assert call(folder, "--check")[0] == 0
    (folder / "table.md").write_text("old")
    code, out, err = call("--check", folder)
    assert code == 1
    assert out == f"{folder / 'table.md'} does not follow from raw.jsonl: line 1 differs from what the samples give.\n"
    assert "1 stale" in err
    assert (folder / "table.md").read_text() == "old"
    code, out, err = call(folder)
    assert (code, out) == (0, "")
    assert str(folder / "index.html") in err
    assert call("--check", folder)[0] == 0


def test_without_folders_all_results_of_the_checkout_are_meant(call, folder, monkeypatch):
    monkeypatch.setattr(command, "HERE", folder.parent)
    (folder.parent / "no-samples").mkdir()
    code, _, err = call("--check")
    assert code == 0
    assert err == f"All of {folder} follows from the raw samples.\n"


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda raw: raw.unlink(), "has no raw.jsonl"),
    (lambda raw: raw.write_text(""), "is empty"),
    (lambda raw: raw.write_text('{"kind": "run"}\n{"ki'), "Line 2 of"),
    (lambda raw: raw.write_text("[]\n"), "is no line of a record"),
    (lambda raw: raw.write_bytes(b"\xff\xfe"), "no UTF-8 text"),
    (lambda raw: raw.write_text('{"kind": "end"}\n'), "cannot be summarised"),
])  # fmt: skip
def test_bad_input_gets_one_sentence(call, folder, spoil, words):
    spoil(folder / job.RAW)
    before = content(folder)
    for more in ([], ["--check"]):
        code, out, err = call(folder, *more)
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.strip().splitlines()) == 1
    assert content(folder) == before


def lines_with(kind, **changes):
    """raw.jsonl as text with values of the first line of a kind changed, or taken out where they are None."""
    lines = list(made.lines(suites=("forward",)))
    number = next(number for number, line in enumerate(lines) if line["kind"] == kind)
    lines[number] = {key: value for key, value in (lines[number] | changes).items() if value is not None}
    return made.text(lines)


@pytest.mark.parametrize(("text", "words"), [
    ('{"kind": "run"}\n', "its schema is none, and 1 is known here"),
    (lines_with("run", schema=7), "its schema is 7, and 1 is known here"),
    (made.text(list(made.lines())[:1]), "ends after its first line: nothing was measured"),
    (lines_with("run", machine=None, threads=None), "(run) lacks machine, threads"),
    (lines_with("run", machine="here"), "does not say which machine"),
    (lines_with("peak", value=None), "Line 2 of"),
    (lines_with("cell", title=None), "(cell) lacks title"),
    (lines_with("contender", settings=None, wing=None), "(contender) lacks wing, settings"),
])  # fmt: skip
def test_a_record_of_something_else_gets_one_sentence(call, folder, text, words):
    (folder / job.RAW).write_text(text)
    for more in ([], ["--check"]):
        code, out, err = call(folder, *more)
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.strip().splitlines()) == 1


def test_the_checksum_is_that_of_the_file(written, tmp_path):
    raw = (written / job.RAW).read_bytes()
    assert job.derive(written)["raw_sha256"] == hashlib.sha256(raw).hexdigest()
    (tmp_path / job.RAW).write_bytes(raw.replace(b'": ', b'":'))  # the same lines, other bytes
    assert job.derive(tmp_path)["raw_sha256"] == hashlib.sha256(raw.replace(b'": ', b'":')).hexdigest()


def test_places_that_are_none(call, tmp_path, monkeypatch):
    assert "is not a folder" in call(tmp_path / "absent")[2]
    monkeypatch.setattr(command, "HERE", tmp_path)
    code, _, err = call("--check")
    assert code == 2
    assert "has raw.jsonl; measure with" in err


def test_the_current_folder_is_not_exchanged(folder, call, monkeypatch):
    before = tree(folder)
    monkeypatch.chdir(folder)
    code, out, err = call(".")
    assert (code, out) == (2, "")
    assert (
        err.strip() == "parallax: . is the current folder, or holds it, and is exchanged as a whole; call from outside."
    )
    assert call(".", "--check")[0] == 0
    assert tree(folder) == before


def test_a_folder_in_a_files_place_is_refused(folder, tmp_path):
    (folder / "memory.png").unlink()
    (folder / "memory.png").mkdir()
    with pytest.raises(UserError, match=r"memory\.png is a folder"):
        job.write(folder, job.derive(folder))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        job.write(tmp_path / "taken", job.derive(folder))


def test_every_plot_is_drawn_in_both_colours(whole):
    for name, rows in series.series(whole).items():
        own = [row for row in rows if row["cell"] == rows[0]["cell"]]
        inline = plots.inline(name, own)
        assert "#aa00" not in inline
        for wing in ("torch", "jax"):
            assert (f"var(--{wing})" in inline) == any(wing in row.values() for row in own), (name, wing)
        assert plots.faceless(inline) == plots.numbers_only(name, own)
    files = plots.files("depth", series.depth(whole), "where")
    assert {kind: plots.stamp_of(kind, data) for kind, data in files.items()} == dict.fromkeys(
        ("svg", "png"), series.stamp(series.depth(whole), "where")
    )
    assert b"#1d4ed8" in files["svg"]
    assert files["png"].startswith(b"\x89PNG")


def test_labels_move_apart_but_keep_their_order():
    places = ink.apart([0.5, 0.52, 0.1, 0.99, 1.0], 0.1)
    assert sorted(range(5), key=lambda i: places[i]) == [2, 0, 1, 3, 4]
    ordered = sorted(places)
    assert min(b - a for a, b in itertools.pairwise(ordered)) > 0.0999
    assert max(places) <= 1
    assert 1 in ink.ratio_ticks(0.9, 1.1)
    assert ink.ratio_ticks(0.02, 30) == [0.1, 1, 10]
