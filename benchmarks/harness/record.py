"""The record of a run: one JSON object a line, written as it comes; what was measured before a failure is kept."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import replacing

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

RAW = "raw.jsonl"
UNFINISHED = "raw.unfinished.jsonl"
KINDS = (
    "run", "resumed", "peak", "cell", "contender", "phase", "gate", "block", "memory", "done", "flops", "refused",
    "skipped", "end",
)  # fmt: skip
OURS = "give a folder that `parallax bench` wrote"

Line = dict[str, Any]


class Record:
    """Lines of a run, in memory and in `folder`/raw.unfinished.jsonl; `finish` gives that file its name.

    An earlier raw.jsonl stays as it is until then.
    """

    def __init__(self, folder: Path):
        self.folder, self.lines, self._adding = folder, [], threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / UNFINISHED, "w", encoding="utf-8")  # noqa: SIM115  (closed in `finish`)
        _hold(self._file)

    def add(self, kind: str, **values: Any) -> Line:
        """Append a line of that kind."""
        if kind not in KINDS:
            raise ValueError(f"a record has no lines of kind {kind!r}")
        line = {"kind": kind, **values, **_by_the_device(values)}
        text = written(line)
        with self._adding:
            self.lines.append(line)
            self._file.write(text)
            self._file.flush()
        return line

    def finish(self, partial: str | None, load: list[float] | None, gpu_state: Any = None) -> Path:
        """Write the end; the path of the finished record. Nothing but a whole record ever has that name."""
        self.add("end", finished=now(), partial=partial, load=load, gpu_state=gpu_state)
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.folder / UNFINISHED, self.folder / RAW)
        return self.folder / RAW


class Again:
    """A record for a round that is not the first: turns, and who is refused for the first time. All else is told."""

    def __init__(self, record: Record):
        self._record = record

    @property
    def lines(self) -> list[Line]:
        return self._record.lines

    def add(self, kind: str, **values: Any) -> None:
        if kind == "refused" and any(of(self.lines, kind, cell=values["cell"], name=values["name"])):
            return
        if kind in ("block", "refused"):
            self._record.add(kind, **values)


def written(line: Line) -> str:
    """A line as it stands in the file; NumPy's numbers and truths are written as Python's."""
    return json.dumps(line, allow_nan=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a record has no place for {type(value).__name__}")


def _by_the_device(values: dict[str, Any]) -> Line:
    """{device_ms}: what the device's events say of every turn of a block, in order; nothing where no turn has any."""
    found = [getattr(seconds, "device_ms", None) for _, _, seconds in values.get("turns", ())]
    return {"device_ms": found} if any(told is not None for told in found) else {}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.fromtimestamp(int(time.time()), UTC).isoformat()


def revive(folder: Path) -> bool:
    """Give the record of a run that was killed its name, without a last line that was cut short; whether there was one.
    Its summary says that it is not finished."""
    left = folder / UNFINISHED
    if (folder / RAW).is_file() or not left.is_file():
        return False
    with open(left, "r+b") as file:
        if not _hold(file):
            raise UserError(f"{folder} is being measured right now; wait until that run has ended.")
        whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return False
        with replacing(folder / RAW) as temporary:
            temporary.write_bytes(whole + b"\n")
            read(temporary)
    left.unlink()
    return True


def _hold(file: Any) -> bool:
    """Whether nobody else writes this file: it is ours until it is closed, or its process is gone (on POSIX)."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def read(path: Path) -> list[Line]:
    """The lines of a record; a damaged one is refused with the number of its line."""
    try:
        lines = _bytes(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"Cannot read {path}: it is no UTF-8 text; {OURS}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"Line {number} of {path} is no JSON; measure again, or restore the file.") from error
        if not isinstance(found[-1], dict) or found[-1].get("kind") not in KINDS:
            raise UserError(f"Line {number} of {path} is no line of a record; measure again, or restore the file.")
    if not found:
        raise UserError(f"{path} is empty; measure again, or restore the file.")
    return found


def sha256(path: Path) -> str:
    """The checksum of the file, as `sha256sum` gives it."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; {OURS}.") from error


def of(lines: list[Line], kind: str, **where: Any) -> Iterator[Line]:
    """The lines of a kind whose values are these."""
    return (line for line in lines if line["kind"] == kind and all(line.get(k) == v for k, v in where.items()))
