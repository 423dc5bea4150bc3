"""What a person sees while a job runs: on a terminal a bar, elsewhere one line for each phase. On standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

Report = Callable[[float], None]


class Progress(Protocol):
    """Phases one after the other; `phase` gives a function that takes the share done."""

    def phase(self, title: str) -> contextlib.AbstractContextManager[Report]: ...


Step = Callable[[str, float], None]  # what is being done now, and the share of the whole that is done


class Silent:
    """Shows nothing."""

    @contextlib.contextmanager
    def phase(self, title: str) -> Iterator[Report]:
        yield lambda share: None


class Shown:
    """Shows phases with their time on standard error; use as a context."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(file=sys.stderr)
        text = TextColumn("{task.description:<44}")
        columns = (SpinnerColumn(finished_text="[green]✓"), text, BarColumn(bar_width=24), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console)

    def __enter__(self) -> "Shown":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    @contextlib.contextmanager
    def phase(self, title: str) -> Iterator[Report]:
        if self._console.is_terminal:
            task = self._bars.add_task(title, total=1.0)
            yield lambda share: self._bars.update(task, completed=min(share, 0.999))
            self._bars.update(task, completed=1.0)
            return
        begun = time.perf_counter()
        yield lambda share: None
        print(f"{title} … {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def steps(self) -> Iterator[Step]:
        """A whole of many small steps: one bar that says which is under way; elsewhere a line when a step has ended."""
        task = self._bars.add_task("", total=1.0) if self._console.is_terminal else None
        current: list = ["", time.perf_counter()]

        def report(what: str, share: float) -> None:
            if task is not None:
                self._bars.update(task, description=what[:44], completed=min(share, 0.999))
                return
            now = time.perf_counter()
            if current[0] and now - current[1] >= 1:
                print(f"{current[0]} … {now - current[1]:.0f} s", file=sys.stderr, flush=True)
            current[:] = [what, now]

        yield report
        report("done", 1.0)
        if task is not None:
            self._bars.update(task, completed=1.0)
