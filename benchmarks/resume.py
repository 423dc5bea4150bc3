"""A run that was ended goes on: the cells that it has measured whole stay as they are, the others are measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import job
from benchmarks.harness import record
from benchmarks.harness.record import RAW, Line, of
from common.errors import UserError

SHORT = 80  # characters of what differs, up to which a sentence shows it
SAME = {  # of a machine: what must not have changed, as a sentence names it
    "cpu": "processor", "instructions": "instructions", "usable_cores": "number of cores", "python": "Python",
    "versions": "versions of packages", "wheels": "files of packages", "environment": "environment",
    "code": "code", "gpus": "GPUs",
}  # fmt: skip


def prepare(folder: Path, minutes: float | None = None) -> job.Work:
    """What is left to do of the run in a folder, by what was asked for then; with `minutes` for a run that had them,
    the same by default. The whole goes where that run would have gone. Raises UserError where nothing is left, where
    the folder has no such run, and where cells of today would not be measured as those of then."""
    lines = _lines(folder)
    work = job.prepare(_asked(folder, lines[0], minutes))
    _check_same(folder, lines[0], job.describe(work))
    work = replace(work, before=tuple(kept(lines)), origin=folder)
    if next(of(lines, "end"), {"partial": "not finished"})["partial"] is None and not work.left:
        raise UserError(f"The run in {folder} is whole; there is nothing to go on with.")
    return work


def kept(lines: Sequence[Line]) -> list[Line]:
    """The lines that stay: of cells that are done, of the machine, and of when the run began and went on. What had no
    time will have, so of what was left out there stay a GPU that is not there, and memory of cells that are done."""
    done = {line["cell"] for line in of(lines, "done")}
    titles = {line["title"] for line in of(lines, "cell") if line["cell"] in done}

    def stays(line: Line) -> bool:
        if line["kind"] in ("end", "flops"):
            return False
        if line["kind"] == "skipped":  # "memory of … in <title>"
            return line["what"] == job.beside.GPU or any(line["what"].endswith(f" in {title}") for title in titles)
        return "cell" not in line or line["cell"] in done

    return [line for line in lines if stays(line)]


def _lines(folder: Path) -> list[Line]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that `parallax bench` wrote.")
    record.revive(folder)
    lines = record.read(folder / RAW)
    if lines[0]["kind"] != "run":
        raise UserError(f"{folder / RAW} begins with no run; {record.OURS}.")
    return lines


def _asked(folder: Path, head: Line, minutes: float | None) -> job.Settings:
    if not isinstance(head.get("asked"), Mapping):
        raise UserError(
            f"The run in {folder} ({head.get('command')}) cannot go on: it does not say what it was asked for, or was"
            " no run of whole suites; measure again."
        )
    told = dict(head["asked"])
    if minutes is not None and told.get("minutes") is None:
        raise UserError(
            f"The run in {folder} has no limit of minutes, and one with it measures otherwise. Leave out --minutes."
        )
    try:
        told |= {"suites": tuple(told["suites"]), "minutes": told["minutes"] if minutes is None else minutes}
        return job.Settings(**told, out=folder.resolve().parent)
    except (KeyError, TypeError) as error:
        raise UserError(f"The run in {folder} is of another version of this program; measure again.") from error


def _check_same(folder: Path, then: Line, today: Mapping[str, Any]) -> None:
    """Refuse to put cells together that are not comparable."""
    if then["device"] != today["device"]:
        raise UserError(f"The run in {folder} is of another device, {then['device'].get('name')}; measure again.")
    for name, word in SAME.items():
        was, now = (_told(one["machine"], name) for one in (then, today))
        if was != now:
            told = f": {was}, here {now}" if len(was + now) < SHORT else ""
            raise UserError(f"The run in {folder} has another {word}{told}; measure again.")


def _told(machine: Mapping[str, Any], name: str) -> str:
    """What a machine is there, in words; of its environment all but which GPUs it sees, for their kind is told."""
    value = machine.get(name)
    if name == "environment" and value is not None:
        value = {key: own for key, own in sorted(value.items()) if not key.endswith("_VISIBLE_DEVICES")}
    return str(value)
