"""A contender's process: how it is started, and what it gets ready."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.harness import timing
from benchmarks.harness.cells import DECODING, TRAIN, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.worker import Worker, WorkerFault

MODEL = "model"
CHANGING = ("train", "optimizer")  # tasks that change their model
NAMED = re.compile(r"[\w.]*(Error|Exception|Warning|Failed|Violation|Exit|Interrupt)\b")


@dataclass(frozen=True)
class Rules:
    """How long and on what: seconds and least blocks of a cell (`enough` after twice the seconds), threads, device;
    `quick` takes fewer and shorter.
    Memory is measured in all cells, or where it is drawn. `together`: contenders begin side by side, which is soon
    over; what their beginnings take are upper bounds then. `judged` is what judges have said in this run, for cells
    whose work is the same."""

    threads: int
    device: str = "cpu"
    seconds: float = 30.0
    least: int = timing.ENOUGH
    enough: int = timing.ENOUGH
    quick: bool = False
    seed: int = 0
    all_memory: bool = True
    together: bool = False
    judged: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def part(self, rounds: int) -> "Rules":
        """Those of one of so many rounds."""
        blocks = {"least": math.ceil(self.least / rounds), "enough": math.ceil(self.enough / rounds)}
        return replace(self, seconds=self.seconds / rounds, **blocks)

    @property
    def pressed(self) -> bool:
        """Whether time is short, or limited: such runs measure memory only where it is drawn."""
        return self.short or not self.all_memory

    @property
    def short(self) -> bool:
        """Whether turns are short: of quick runs, and on a GPU, which has minutes."""
        return self.quick or self.device != "cpu"


@dataclass(frozen=True)
class Beginning:
    """What it took a contender to begin: seconds, and the bytes of its process in memory after them (None where they
    are measured in another one)."""

    seconds: dict[str, float]  # "import" and "build"
    imported: int
    built: int | None


def process(one: Contender, rules: Rules, compiled: str | None = None) -> Worker:
    """A process for a contender, not yet started. What it compiles it leaves in the folder `compiled`, where others of
    the same contender find it: only who is first there compiles."""
    memory = one.options.get("allocator", "plain")
    return Worker(one.source, threads=rules.threads, device=rules.device, memory=memory, compiled=compiled)


def prepare(worker: Worker, cell: Cell) -> None:
    """Get the cell's task ready in a worker whose model is built."""
    if cell.task in CHANGING:
        worker.ask("start_training", MODEL, TRAIN)
    sampling = cell.sampling if cell.task in DECODING else None
    worker.ask("prepare", MODEL, cell.task, *cell.inputs(), sampling, cell.path)


def sentence(error: Any) -> str:
    """An error as one sentence: of a fault of ours, the line that names it in its traceback, for frameworks go on with
    advice behind it."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, WorkerFault):
        lines = [line for line in lines if NAMED.match(line)][-1:] or lines[-1:]
    return " ".join(lines)[:400]
