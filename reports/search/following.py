"""Logs of runs that go on in other processes."""

import json
from pathlib import Path
from typing import Any

from common.run import damaged


class Following:
    """The lines with that number in a log that another process writes: what was read is not read again, unless the log
    has become another one, as that of a run that goes on does."""

    def __init__(self, path: Path, number: str):
        self.path, self.number = path, number
        self._anew()

    def _anew(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._at, self._read, self._last = 0, 0, b""  # where what was read ends, how many lines that is, the last one

    def read(self) -> list[dict[str, Any]]:
        """All that stand there by now as whole lines; a damaged one is named."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return self.lines
        with file:
            file.seek(self._at - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._anew()
                file.seek(0)
            new = file.read()
        for line in new[: new.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                entry = json.loads(line)
                entry["step"] + 1
            except (ValueError, KeyError, TypeError) as error:
                raise damaged(self.path, self._read + 1) from error
            self._at, self._read, self._last = self._at + len(line), self._read + 1, line
            if self.number in entry:
                self.lines.append(entry)
        return self.lines
