"""From what was asked for to a record and its report: what can be refused is refused before anything is timed."""

import hashlib
import itertools
import re
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import beside
from benchmarks.harness import abreast, contest, fresh, machine, timing
from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.groups import Group, grouped, in_turn
from benchmarks.harness.process import Rules
from benchmarks.harness.record import RAW, Line, Record, now, of, read
from benchmarks.harness.worker import environment
from benchmarks.room import check_memory, least, need, processes, room
from benchmarks.suites import DEFAULT, SUITES, Scope
from common import files, gpu
from common.config import PRESETS
from common.cores import usable_cores
from common.errors import UserError, unknown
from common.stopping import stoppable

INTERRUPTED = "interrupted"
NOBODY = "not a single contender could be timed"
SECONDS = {False: 20.0, True: 2.0}
LEAST = {False: 12, True: 6}
WEEK = 7 * 24 * 60  # minutes
MANY = 1  # processes for each core that begin at once: with more, imports and compilations hold each other up


@dataclass(frozen=True)
class Settings:
    """What was asked for; no suites mean all of them. `call` is the command that asked, if not `parallax bench`."""

    suites: tuple[str, ...] = ()
    device: str = "cpu"
    quick: bool = False
    model: str | None = None
    threads: int | None = None
    seconds: float | None = None
    minutes: float | None = None
    out: Path = Path("out/perf")
    call: str = ""

    def command(self) -> str:
        """The command that does this again."""
        if self.call:
            return self.call
        words = ["parallax bench", *(f"--suite {name}" for name in self.suites)]
        words += [f"--device {self.device}"] if self.device != "cpu" else []
        words += [f"--model {self.model}"] if self.model else []
        words += [f"--threads {self.threads}"] if self.threads else []
        words += [f"--seconds {self.seconds:g}"] if self.seconds is not None else []
        words += [f"--minutes {self.minutes:g}"] if self.minutes is not None else []
        out = portable(str(self.out))
        words += [f"--out {shlex.quote(out)}"] if out != str(Settings.out) else []
        return " ".join(words + (["--quick"] if self.quick else []))

    def told(self) -> dict[str, Any] | None:
        """What a record keeps of this, so that the run can go on (`resume`); None of who has a command of its own."""
        return None if self.call else {name: own for name, own in asdict(self).items() if name not in ("out", "call")}


def portable(word: str) -> str:
    """A word of a command that is published: of this machine's folders it tells those below the current one alone, of
    a path elsewhere the last part."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path, here = Path(value), Path.cwd()
    if not path.is_absolute():
        return word
    return f"{option}{equals}{path.relative_to(here) if path.is_relative_to(here) else path.name}"


@dataclass(frozen=True)
class Work:
    """What is to be done, checked; of a run that goes on, its lines `before`, and the folder where it lies."""

    asked: Settings
    device: dict[str, str]
    rules: Rules
    cells: tuple[Cell, ...]
    folder: Path
    before: tuple[Line, ...] = ()
    origin: Path | None = None

    @property
    def left(self) -> list[Cell]:
        """The cells that have not been measured whole."""
        done = {line["cell"] for line in of(list(self.before), "done")}
        return [cell for cell in self.cells if cell.name not in done]


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
    suites = tuple(dict.fromkeys(asked.suites or DEFAULT))
    if asked.model is not None and asked.model not in PRESETS:
        raise unknown("preset", asked.model, PRESETS)
    if asked.quick and asked.model not in (None, Scope.small):
        raise UserError(
            f"--quick measures the small model alone, {Scope.small}; leave out --quick, or --model {asked.model}."
        )
    cores = len(usable_cores())
    if asked.threads is not None and not 1 <= asked.threads <= cores:
        raise UserError(f"{asked.threads} threads are asked for; this process may use 1 to {cores} cores.")
    if asked.seconds is not None and not 0 < asked.seconds <= 3600:
        raise UserError(f"{asked.seconds:g} seconds are asked for each cell; allowed is a number in (0, 3600].")
    if asked.minutes is not None and not 0 < asked.minutes <= WEEK:
        raise UserError(f"{asked.minutes:g} minutes are asked for; allowed is a number in (0, {WEEK}], up to a week.")
    device = _device(asked.device, asked.threads or cores)
    scope = Scope(asked.device, asked.quick, asked.model or Scope.model)
    every = tuple(itertools.chain.from_iterable(SUITES[name](scope) for name in suites))
    cells = every if cells is None else cells
    twice = [name for name, times in Counter(cell.name for cell in cells).items() if times > 1]
    if twice:
        raise RuntimeError(f"several cells have one name: {', '.join(twice)}")
    check_memory(grouped(cells), asked.device)
    seconds = SECONDS[asked.quick] if asked.seconds is None else asked.seconds
    hasty = asked.quick or asked.minutes is not None
    together = asked.minutes is not None and asked.device != "cpu"
    rules = Rules(
        asked.threads or cores,
        asked.device,
        seconds,
        least=LEAST[asked.quick],
        quick=asked.quick,
        all_memory=not hasty,
        together=together,
    )
    folder = files.output_folder(asked.out) / "-".join([device["slug"], *_kind(asked, cells, every)])
    _check_place(folder)
    return Work(asked, device, rules, cells, folder)


def _kind(asked: Settings, cells: Sequence[Cell], every: Sequence[Cell]) -> list[str]:
    """What a run is that is not the usual suites of the usual models at full length, as parts of its folder's name:
    each kind has a folder of its own, so none takes the place of a run that measured more.
    """
    found = [asked.model] if asked.model not in (None, Scope.small if asked.quick else Scope.model) else []
    own = {cell.suite for cell in cells}
    found += [name for name in SUITES if name in own] if own != set(DEFAULT) else []
    if set(cells) != {cell for cell in every if cell.suite in own}:  # a selection of cells or contenders
        names = sorted(f"{cell.name} {one.name}" for cell in cells for one in cell.contenders)
        found.append(f"only-{hashlib.sha256(repr(names).encode()).hexdigest()[:6]}")
    return found + (["quick"] if asked.quick else [])


def _check_place(folder: Path) -> None:
    """Refuse a place where nothing can be written before hours go into what is to stand there."""
    files.folder_beside(folder).rmdir()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; the folder of this run is to be there.")


def _device(name: str, threads: int) -> dict[str, str]:
    """{kind, name, slug} of the device; a GPU that is not there is refused with what is."""
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise unknown("device", name, ("cpu", "cuda", "cuda:0"))
    if kind == "cpu" and name != kind:
        raise UserError(f"There is no device {name!r}: all cores are one device; use --device cpu, and --threads.")
    if kind == "cpu":
        title = ", ".join(filter(None, (machine.cpu_model(), machine.narrow())))
        return {"kind": kind, "name": title, "slug": _slug(f"cpu {title} {threads} threads")}
    found = gpu.gpus()
    index = int(name.partition(":")[2] or 0) if name.partition(":")[2].isdigit() or ":" not in name else len(found)
    if index >= len(found):
        there = ", ".join(one["name"] for one in found) or "none"
        raise UserError(f"There is no GPU {name!r} here (GPUs that the driver lists: {there}); use --device cpu.")
    return {"kind": kind, "name": found[index]["name"], "slug": _slug(found[index]["name"])}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def produce(work: Work, report: Report, write: Callable[[Path], object]) -> tuple[Path, str | None]:
    """Measure everything and have `write` add the pages to the record's folder; (folder, None or why it is partial).

    Whatever ends the run, what was measured is kept. If it is not the whole, or has no pages, it never takes the place
    of anything that is more, but stands beside it. An error that is raised has a note that says where.
    """
    temporary = files.folder_beside(work.folder)
    with stoppable():
        record, failure = Record(temporary), None
        try:
            _begin(work, record)
            partial = measure(work, record, report)
        except BaseException as error:
            failure, partial = error, _why(error)
        if not _timed(record.lines):
            if failure is not None:  # there is nothing to keep
                shutil.rmtree(temporary, ignore_errors=True)
                raise failure
            partial = partial or NOBODY
        kept, unwritten = temporary, None
        try:
            if failure is not None:
                left_out(work, record, partial)
            record.finish(partial, machine.load_average(), gpu.state())
            try:
                write(temporary)
            except BaseException as error:
                unwritten = error
            place = _place(work, record.lines, partial is None and unwritten is None)
            files.take_place(temporary, place)
            kept = place
        except BaseException as error:
            error.add_note(f"What was measured is kept in {kept}.")
            raise
    if failure is not None and not isinstance(failure, KeyboardInterrupt):
        failure.add_note(f"What was measured until then is kept in {kept}.")
        raise failure
    if unwritten is not None:
        unwritten.add_note(f"What was measured is kept in {kept}; `parallax report {kept}` writes its pages.")
        raise unwritten
    return kept, partial


def _timed(lines: Sequence[Line]) -> set[tuple[str, str]]:
    """Cell and name of every contender that took a turn."""
    return {(line["cell"], turn[0]) for line in lines if line["kind"] == "block" for turn in line["turns"]}


def _place(work: Work, lines: Sequence[Line], whole: bool) -> Path:
    """Where a run goes: a whole one into its folder, one that went on and is none yet where it was before, any other
    beside all that measured something else."""
    folder = work.folder
    if whole:
        return folder
    if work.origin is not None and not work.origin.name.startswith("."):  # as those are called that were killed
        return work.origin
    partial = f"{folder.name}-partial"
    names = itertools.chain((folder.name, partial), (f"{partial}-{number}" for number in itertools.count(2)))
    return next(place for place in map(folder.with_name, names) if _holds_no_more(place, _timed(lines)))


def _holds_no_more(place: Path, own: set[tuple[str, str]]) -> bool:
    """Whether nothing lies there, or just a partial run of no more than this."""
    if not place.exists():
        return True
    try:
        lines = read(place / RAW)
        end = next(of(lines, "end"), {"partial": "not finished"})
        return end["partial"] is not None and _timed(lines) <= own
    except (UserError, KeyError, IndexError, TypeError):  # it is something else
        return False


def _begin(work: Work, record: Record) -> None:
    """The first line of a run; of one that goes on, all that it keeps, and when and in which mood it goes on."""
    about = describe(work)
    if not work.before:
        record.add("run", **about)
        return
    for line in work.before:
        record.add(**line)
    record.add("resumed", **{name: about[name] for name in ("started", "load", "gpu_state")})


def describe(work: Work) -> dict[str, Any]:
    """What a run says of itself before it begins: its command, device and machine, and how they are now."""
    return {
        "schema": 1,
        "command": work.asked.command(),
        "asked": work.asked.told(),
        "started": now(),
        "device": work.device,
        "machine": machine.describe(environment(work.rules.threads, work.rules.device)),
        "threads": work.rules.threads,
        "load": machine.load_average(),
        "gpu_state": gpu.state(),
        "seeds": {"weights and inputs": sorted({cell.seed for cell in work.cells}), "turns": work.rules.seed},
        "quick": work.asked.quick,
        "together": work.rules.together,
        "suites": list(dict.fromkeys(cell.suite for cell in work.cells)),
    }


def _why(failure: BaseException) -> str:
    if isinstance(failure, KeyboardInterrupt):
        return INTERRUPTED
    return f"failed: {type(failure).__name__}: {failure}"[:300]


def measure(work: Work, record: Record, report: Report) -> str | None:
    """Peaks, every group of cells while there is time, and peaks once more, for a shared machine has better hours; why
    some are left out, if so."""
    begun, limit = time.monotonic(), work.asked.minutes
    report("What this machine can do", 0.0)
    if not work.before:
        beside.known(work.device, record)
    beside.peaks(work.device, work.rules, record)
    batches, ahead = _batches(work), 0.0

    def late() -> bool:
        """Whether nothing new begins: time is over, or would be before anything is timed."""
        return limit is not None and time.monotonic() - begun + ahead > 60 * limit

    def over() -> str | None:
        """Why nothing new begins, if so; what is left is named."""
        if not late():
            return None
        why = f"{limit:g} minutes were over"
        left_out(work, record, why)
        return why

    for number, batch in enumerate(batches):
        if why := over():
            return why
        ahead = 0.0

        def told(what: str, share: float, number=number) -> None:
            report(what, (number + share) / len(batches))

        group = batch[0]
        if group[0].task in FRESH:
            fresh.run(group[0], work.rules, record, told)
        elif work.rules.together:
            patience = (60 * limit - (time.monotonic() - begun)) / 2
            ahead = abreast.run(batch, work.rules, record, told, late, patience)
        else:
            hasty = work.asked.quick or limit is not None
            each = 1 if hasty else processes(group, work.asked.device)
            contest.run(group, work.rules, record, told, each, 1 if hasty or each > 1 else timing.ROUNDS)
        _done(itertools.chain.from_iterable(batch), record)
    ahead = 0.0
    if why := over():
        return why
    report("What this machine can do, once more", 1.0)
    beside.peaks(work.device, work.rules, record)
    report("FLOPs as they are counted", 1.0)
    beside.flops(work.cells, work.rules, record)
    return None


def _batches(work: Work) -> list[list[Group]]:
    """Groups of cells in their order, those together that begin side by side: without a limit of minutes each is by
    itself, on a CPU with one each cell."""
    if work.asked.minutes is None:
        return [[group] for group in grouped(work.left)]
    if not work.rules.together:
        return [[group] for group in in_turn([cell] for cell in work.left)]
    _, there = least(room(work.asked.device))
    turns = in_turn(grouped(work.left), "bfloat16")
    return list(abreast.batches(turns, need, there // 2, MANY * len(usable_cores())))


def _done(cells: Iterable[Cell], record: Record) -> None:
    """Mark the cells that need not be measured again: somebody was timed, and neither that nor memory had no time, for
    which they would be named as skipped."""
    told = {line["what"] for line in of(record.lines, "skipped")}
    timed = {line["cell"] for line in of(record.lines, "block")}
    for cell in cells:
        if cell.name in timed and told.isdisjoint((cell.title, f"memory in {cell.title}")):
            record.add("done", cell=cell.name)


def left_out(work: Work, record: Record, why: str) -> None:
    """Name the cells of which nothing was measured, and the FLOPs if none were counted."""
    begun = {line["cell"] for line in record.lines if line["kind"] in ("block", "refused")}
    told = {line["what"] for line in record.lines if line["kind"] == "skipped"}
    left = [cell.title for cell in work.cells if cell.name not in begun and cell.title not in told]
    left += [] if any(line["kind"] == "flops" for line in record.lines) else ["FLOPs as they are counted"]
    if left:
        record.add("skipped", what=f"{len(left)} parts", reason=f"{why}: {'; '.join(left)}")
