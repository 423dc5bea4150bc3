"""From raw samples to the report and back: everything is made beside its place, and can be derived anew."""

import json
import os
import shutil
from pathlib import Path

from benchmarks.harness import record
from benchmarks.harness.summary import SCHEMA, summarise
from common import files
from common.config import dumps
from common.errors import UserError
from reports.perf import page, plots, series, table
from reports.perf import wording as say
from reports.perf.numbers import Found, plain

RAW, SUMMARY, PAGE = record.RAW, "summary.json", "index.html"
DRAWN = ("svg", "png")
RESTORE = "measure again, or restore the file"
KEYS = {  # by the kind of a line: what the report cannot do without
    "run": ("command", "started", "device", "machine", "threads", "quick", "suites"),
    "resumed": ("started", "load"),
    "done": ("cell",),
    "peak": ("what", "value"),
    "cell": (
        "cell", "suite", "task", "title", "model", "batch", "length", "dtype", "unit", "work", "flops_full",
        "flops_causal", "bytes", "ideal", "axis", "group", "own", "cached",
    ),
    "contender": ("cell", "name", "title", "wing", "mode", "lower_bound", "settings"),
    "phase": ("cell", "name", "import", "build", "trace", "compile", "first"),
    "gate": ("cell", "name", "against", "what", "error", "bound", "passed"),
    "block": ("cell", "turns"),
    "memory": ("cell", "name", "import", "build", "peak", "how", "planned", "planned_how", "device"),
    "flops": ("cell",),
    "refused": ("cell", "name", "reason"),
    "skipped": ("what", "reason"),
    "end": ("finished", "partial", "load"),
}  # fmt: skip


def derive(folder: Path) -> Found:
    """The summary that follows from a folder's raw samples."""
    path = folder / RAW
    lines = record.read(path)
    _check_lines(path, lines)
    try:
        return json.loads(json.dumps(summarise(lines, record.sha256(path))))
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} cannot be summarised ({told}); {RESTORE}.") from error


def _check_lines(path: Path, lines: list[record.Line]) -> None:
    """Refuse what is no record of this version, or lacks what the report shows."""
    head = lines[0]
    if head["kind"] != "run":
        raise UserError(f"{path} cannot be summarised: its first line is no run; {RESTORE}.")
    if head.get("schema") != SCHEMA:
        told = head.get("schema", "none")
        raise UserError(f"{path} cannot be read: its schema is {told}, and {SCHEMA} is known here; measure again.")
    for number, line in enumerate(lines, 1):
        lacks = [name for name in KEYS.get(line["kind"], ()) if name not in line]
        if lacks:
            raise UserError(f"Line {number} of {path} ({line['kind']}) lacks {', '.join(lacks)}; {RESTORE}.")
    if not (isinstance(head["machine"], dict) and isinstance(head["device"], dict) and "name" in head["device"]):
        raise UserError(f"Line 1 of {path} does not say which machine and device this was; {RESTORE}.")
    if len(lines) == 1:
        raise UserError(f"{path} ends after its first line: nothing was measured; measure again.")


def rewrite(folder: Path) -> list[Path]:
    """Write the report that follows from a folder's raw samples."""
    return write(folder, derive(folder))


def texts(found: Found, drawn: dict[str, str], rows: dict[str, list]) -> dict[str, str]:
    """Every file of the report that is text, by name; `drawn` are the page's plots."""
    return {
        SUMMARY: dumps(found),
        "table.md": table.markdown(found),
        "table.csv": table.csv(found),
        **{f"{name}.csv": series.as_csv(own) for name, own in rows.items()},
        PAGE: page.render(found, drawn),
    }


def write(folder: Path, summary: Found) -> list[Path]:
    """Write the whole report and take away plots of an older one. Until all of it is made nothing there changes; then
    a folder with it, and with whatever else was there, takes the place of the old one at once."""
    folder = files.output_folder(folder)
    _check_free(folder)
    found = json.loads(json.dumps(summary))
    rows = series.series(found)
    with files.replacing_folder(folder.resolve()) as temporary:
        made = _write_plots(temporary, found, rows)
        drawn = {name: plots.inline(name, own) for name, own in rows.items()}
        for name, text in texts(found, drawn, rows).items():
            (temporary / name).write_text(text, encoding="utf-8")
            made.append(name)
        _take_along(folder, temporary, _possible() | set(made))
    return [folder / name for name in made]


def _take_along(folder: Path, other: Path, but: set[str]) -> None:
    """Put what lies in a folder into another, too: raw samples, and whatever a report does not make."""

    def left(place: str, names: list[str]) -> set[str]:
        return but & set(names) if Path(place) == folder else set()

    try:
        shutil.copytree(folder, other, symlinks=True, ignore=left, copy_function=_same, dirs_exist_ok=True)
    except shutil.Error as error:
        path, _, why = error.args[0][0]
        raise UserError(f"{path} cannot be kept beside the report ({why}); nothing was changed.") from error


def _same(file: str, place: str) -> None:
    """The file under a second name; a copy where a file system has no such names."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copy2(file, place)


def _write_plots(folder: Path, found: Found, rows: dict[str, list]) -> list[str]:
    made, footer = [], plain(found, say.footer(found))
    for name, own in rows.items():
        for kind, data in plots.files(name, own, footer).items():
            (folder / f"{name}.{kind}").write_bytes(data)
            made.append(f"{name}.{kind}")
    return made


def _possible() -> set[str]:
    """Every file that a report may have for its plots."""
    return {f"{name}.{kind}" for name in plots.PLOTS for kind in (*DRAWN, "csv")}


def _check_free(folder: Path) -> None:
    for name in (SUMMARY, PAGE, "table.md", "table.csv", *sorted(_possible())):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder; a file is to be written there.")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} is the current folder, or holds it, and is exchanged as a whole; call from outside.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; give another folder for the results.")


def check(folder: Path) -> list[str]:
    """Derive everything anew from raw.jsonl, and say in a sentence each which files do not follow from it."""
    found = derive(folder)
    rows = series.series(found)
    drawn = {name: plots.numbers_only(name, own) for name, own in rows.items()}
    wrong = [_compare(folder / name, text) for name, text in texts(found, drawn, rows).items()]
    due = {name: series.stamp(own, plain(found, say.footer(found))) for name, own in rows.items()}
    wrong += [_drawing(folder / f"{name}.{kind}", kind, stamp) for name, stamp in due.items() for kind in DRAWN]
    made = {f"{name}.{kind}" for name in rows for kind in (*DRAWN, "csv")}
    left = [name for name in sorted(_possible() - made) if (folder / name).exists()]
    wrong += [f"{folder / name} is left from another run: these samples have nothing to draw there." for name in left]
    return [sentence for sentence in wrong if sentence]


def _compare(path: Path, due: str) -> str:
    text = _content(path)
    if text is None:
        return f"{path} is missing."
    stored = text.decode("utf-8", "replace")
    if path.name == PAGE:
        stored = plots.faceless(stored)
    if stored == due:
        return ""
    pairs = zip([*stored.splitlines(), ""], [*due.splitlines(), ""], strict=False)
    line = next((n for n, (one, two) in enumerate(pairs, 1) if one != two), 0)
    return f"{path} does not follow from {RAW}: line {line} differs from what the samples give."


def _drawing(path: Path, kind: str, due: str) -> str:
    data = _content(path)
    if data is None:
        return f"{path} is missing."
    stamp = plots.stamp_of(kind, data)
    if stamp is None:
        return f"{path} is not as it was drawn: it was edited, or made by something else."
    return "" if stamp == due else f"{path} shows other numbers, or another run, than {RAW} does."


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
