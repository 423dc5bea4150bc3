"""From what was asked for to a record and its report: what can be refused is refused before anything is timed."""

import itertools
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import contest, fresh, machine
from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.contest import Rules
from benchmarks.harness.record import RAW, Record, now
from benchmarks.harness.worker import Worker, WorkerFault, usable_cores
from benchmarks.suites import SUITES, Scope
from common import files
from common.accounting import activations, counters, memory, peaks
from common.config import PRESETS
from common.errors import UserError, unknown

OVERHEAD = 400 << 20  # bytes of a process with its framework
SLACK = 1.3
INTERRUPTED = "interrupted"
SECONDS = {False: 30.0, True: 2.0}
LEAST = {False: 5, True: 4}


@dataclass(frozen=True)
class Settings:
    """What was asked for; no suites mean all of them."""

    suites: tuple[str, ...] = ()
    device: str = "cpu"
    quick: bool = False
    model: str | None = None
    threads: int | None = None
    seconds: float | None = None
    minutes: float | None = None
    out: Path = Path("out/perf")

    def command(self) -> str:
        """The command that does this again."""
        words = ["parallax bench", *(f"--suite {name}" for name in self.suites)]
        words += [f"--device {self.device}"] if self.device != "cpu" else []
        words += [f"--model {self.model}"] if self.model else []
        words += [f"--threads {self.threads}"] if self.threads else []
        words += [f"--seconds {self.seconds:g}"] if self.seconds is not None else []
        words += [f"--minutes {self.minutes:g}"] if self.minutes is not None else []
        return " ".join(words + (["--quick"] if self.quick else []))


@dataclass(frozen=True)
class Work:
    """What is to be done, checked."""

    asked: Settings
    device: dict[str, str]
    rules: Rules
    cells: tuple[Cell, ...]
    folder: Path


Report = Callable[[str, float], None]


def only(pairs: Sequence[tuple[Cell, Contender]]) -> tuple[Cell, ...]:
    """The cells of these pairs, each with its chosen contenders alone."""
    chosen: dict[str, tuple[Cell, list[Contender]]] = {}
    for cell, one in pairs:
        chosen.setdefault(cell.name, (cell, []))[1].append(one)
    return tuple(replace(cell, contenders=tuple(ones)) for cell, ones in chosen.values())


def prepare(asked: Settings, cells: tuple[Cell, ...] | None = None) -> Work:
    """Check suites, model, threads, device, memory and the folder for results; `cells` in place of the suites'. Raises
    UserError."""
    for name in asked.suites:
        if name not in SUITES:
            raise unknown("suite", name, SUITES)
    if asked.model is not None and asked.model not in PRESETS:
        raise unknown("preset", asked.model, PRESETS)
    cores = len(usable_cores())
    if asked.threads is not None and not 1 <= asked.threads <= cores:
        raise UserError(f"{asked.threads} threads are asked for; this process may use 1 to {cores} cores.")
    if asked.seconds is not None and not 0 < asked.seconds <= 3600:
        raise UserError(f"{asked.seconds:g} seconds are asked for each cell; allowed is a number in (0, 3600].")
    if asked.minutes is not None and not asked.minutes > 0:
        raise UserError(f"{asked.minutes:g} minutes are asked for; allowed is a number > 0.")
    device = _device(asked.device, asked.threads or cores)
    scope = Scope(asked.device, asked.quick, asked.model or Scope.model)
    if cells is None:
        cells = tuple(itertools.chain.from_iterable(SUITES[name](scope) for name in asked.suites or SUITES))
    for group in grouped(cells):
        _check_memory(group, asked.device)
    seconds = SECONDS[asked.quick] if asked.seconds is None else asked.seconds
    rules = Rules(asked.threads or cores, asked.device, seconds, LEAST[asked.quick], asked.quick)
    return Work(asked, device, rules, cells, files.output_folder(asked.out) / device["slug"])


def _device(name: str, threads: int) -> dict[str, str]:
    """{kind, name, slug} of the device; a GPU that is not there is refused with what is."""
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise unknown("device", name, ("cpu", "cuda", "cuda:0"))
    if kind == "cpu":
        title = machine.cpu_model()
        return {"kind": kind, "name": title, "slug": _slug(f"cpu {title} {threads} threads")}
    found = machine.gpus()
    index = int(name.partition(":")[2] or 0) if name.partition(":")[2].isdigit() or ":" not in name else len(found)
    if index >= len(found):
        there = ", ".join(gpu["name"] for gpu in found) or "none"
        raise UserError(f"There is no GPU {name!r} here (GPUs that the driver lists: {there}); use --device cpu.")
    return {"kind": kind, "name": found[index]["name"], "slug": _slug(found[index]["name"])}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def grouped(cells: Sequence[Cell], alone: bool = False) -> Iterator[list[Cell]]:
    """Neighbours that share model, precision and contenders, so that models are built once; beginnings stand alone, and
    so do all where the clock is looked at in between."""

    def key(cell: Cell) -> Any:
        own = cell.name if alone or cell.task in FRESH else ""
        return own, cell.model, cell.config, cell.dtype, cell.contenders

    return (list(group) for _, group in itertools.groupby(cells, key))


def need(cell: Cell) -> int:
    """Bytes that all contenders of a cell hold at once: estimated from closed forms, before anything is built."""
    weights = memory.weights(cell.config)
    each = weights
    if cell.task in ("train", "optimizer", "compile", "gradients"):
        each = 4 * weights + sum(activations.saved(cell.config, cell.batch, cell.length, cell.dtype).values())
    logits = 4 * cell.batch * cell.length * cell.config.vocab_size
    each += 3 * logits if cell.task in ("train", "gradients", "loss") else logits
    if cell.task == "decode":
        each += memory.kv_cache(cell.config, cell.batch, cell.length + cell.new, cell.dtype)
    count = 1 if cell.task in FRESH else len(cell.contenders)
    return int(count * (SLACK * each + OVERHEAD))


def _check_memory(cells: Sequence[Cell], device: str) -> None:
    """Against the host's free memory, where weights are made, and a GPU's too if its driver tells."""
    worst = max(cells, key=need)
    count, needed = len(worst.contenders), need(worst)
    places = {"": psutil.virtual_memory().available}
    if device != "cpu":
        index = device.partition(":")[2]
        places[f" on {device}"] = machine.free_gpu_bytes(int(index or 0))
    for where, there in places.items():
        if there is not None and needed > there:
            raise UserError(
                f"{worst.title} needs about {needed / 1e9:.0f} GB for its {count} contenders at once,"
                f" and {there / 1e9:.0f} GB are free{where}; choose a smaller --model, or other suites."
            )


def produce(work: Work, report: Report, write: Callable[[Path], object]) -> tuple[Path, str | None]:
    """Measure everything and have `write` add the pages to the record's folder; (folder, None or why it is partial).

    Whatever ends the run, what was measured is kept and marked partial; it never takes the place of a complete record,
    but stands beside it.
    """
    work.folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{work.folder.name}.", dir=work.folder.parent))
    try:
        record, failure = Record(temporary), None
        record.add("run", **_about(work))
        try:
            partial = measure(work, record, report)
        except BaseException as error:
            failure, partial = error, _why(error)
        record.finish(partial, machine.load_average())
        kept = work.folder
        if partial and (work.folder / RAW).exists():
            kept = work.folder.with_name(f"{work.folder.name}-partial")
        if failure is not None and not any(line["kind"] == "block" for line in record.lines):
            raise failure  # nothing was measured, so there is nothing to keep
        write(temporary)
        files.take_place(temporary, kept)
        if failure is not None and not isinstance(failure, KeyboardInterrupt):
            raise failure
        return kept, partial
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _about(work: Work) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": work.asked.command(),
        "started": now(),
        "device": work.device,
        "machine": machine.describe(),
        "threads": work.rules.threads,
        "load": machine.load_average(),
        "quick": work.asked.quick,
        "suites": list(work.asked.suites or SUITES),
    }


def _why(failure: BaseException) -> str:
    if isinstance(failure, KeyboardInterrupt):
        return INTERRUPTED
    return f"failed: {type(failure).__name__}: {failure}"[:300]


def measure(work: Work, record: Record, report: Report) -> str | None:
    """Peaks, then every group of cells while there is time; why some are left out, if so."""
    begun, limit = time.monotonic(), work.asked.minutes
    report("What this machine can do", 0.0)
    _peaks(work, record)
    groups = list(grouped(work.cells, alone=limit is not None))
    for number, group in enumerate(groups):
        if limit is not None and time.monotonic() - begun > 60 * limit:
            left = [cell.title for group in groups[number:] for cell in group]
            left += ["FLOPs as they are counted"]
            record.add("skipped", what=f"{len(left)} parts", reason=f"{limit:g} minutes were over: {'; '.join(left)}")
            return f"{limit:g} minutes were over"

        def told(what: str, share: float, number=number) -> None:
            report(what, (number + share) / len(groups))

        if group[0].task in FRESH:
            fresh.run(group[0], work.rules, record, told)
        else:
            contest.run(group, work.rules, record, told)
    report("FLOPs as they are counted", 1.0)
    _flops(work, record)
    return None


def _flops(work: Work, record: Record) -> None:
    """The closed form of every cell that has one beside the frameworks' own counts."""
    sizes: dict[Any, list[Cell]] = {}
    for cell in work.cells:
        if cell.task in counters.TASKS and cell.dtype == "float32":
            sizes.setdefault((cell.config, cell.batch, cell.length), []).append(cell)
    for same in sizes.values():
        with Worker("torch", threads=work.rules.threads, device=work.rules.device) as worker:
            try:
                worker.ask("start")
                rows = worker.ask("counted", same[0].config, same[0].batch, same[0].length, work.rules.device)
            except (UserError, WorkerFault) as error:
                record.add("skipped", what=f"FLOPs of {same[0].title}", reason=contest.sentence(error))
                continue
        for cell in same:
            for row in rows:
                if row["task"] == cell.task:
                    record.add("flops", cell=cell.name, **row)


def _peaks(work: Work, record: Record) -> None:
    for wing in ("torch", "jax"):
        with Worker(wing, threads=work.rules.threads, device=work.rules.device) as worker:
            worker.ask("start")
            for found in worker.ask("peaks", work.rules.device, work.rules.quick):
                record.add("peak", wing=wing, **found)
    sheet = peaks.peak(work.device["name"])
    if sheet is not None:
        record.add(
            "peak", what="sheet", value={"name": work.device["name"], **sheet.flops, "bandwidth": sheet.bandwidth}
        )
    if work.device["kind"] == "cpu" and not machine.gpus():
        record.add("skipped", what="GPU", reason="this machine has none")
