"""From what was asked for to a certificate: everything that can be refused is refused before anything long begins."""

import itertools
import os
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from common import files
from common.cases import CASES
from common.config import mode as mode_of
from common.errors import UserError, unknown
from common.parity import certificate
from common.parity.claims import claims as claims_of
from common.parity.run import Report, run
from common.parity.trial import TIERS, Session, Trial, check_choice, subjects
from common.stopping import stoppable
from reports.parity import matrix

MOST = 4  # processes, unless more are asked for
MEMORY = 3_500_000_000  # bytes of each: two frameworks and what they compiled; 2.7 GB were seen
NUMBERS, MATRIX, PAGE = "certificate.json", "mutants.csv", "index.html"


@dataclass(frozen=True)
class Settings:
    """What was asked for; empty tuples mean everything. `modes` are texts such as "jax=scan"."""

    cases: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("torch", "jax")
    device: str = "cpu"
    modes: tuple[str, ...] = ()
    quick: bool = False
    out: Path = Path("out/parity")
    processes: int = 1


@dataclass(frozen=True)
class Work:
    """What is to be done, checked."""

    session: Session
    claims: list[ModuleType]
    hashes: dict[str, str]
    out: Path
    asked: Settings = field(repr=False, default=Settings())


def prepare(asked: Settings) -> Work:
    """Check everything: names, vectors, output folder, and that every backend can build a model here in its mode."""
    cases = check_choice("case", asked.cases, tuple(CASES))
    tiers = check_choice("tier", asked.tiers, TIERS)
    modules = claims_of(asked.claims)
    modes = _modes(asked)
    hashes = certificate.check_vectors(cases)
    out = _writable(asked.out)
    session = Session(_subjects(asked.backends), tiers, cases, asked.device, modes, asked.quick)
    first = Trial(session, CASES[cases[0]])
    for name in session.subjects:
        first.build(name, next((tier for tier in tiers if tier != "exact"), "float64"))
    return Work(session, modules, hashes, out, asked)


def produce(work: Work, report: Report, matrix_only: bool = False) -> dict[str, Any]:
    """Try the claims and write certificate, matrix and page, or the matrix alone; the certificate.

    Of a run that is interrupted, what was tried is written beside the folder, so that it takes the place of nothing
    that is more, and then KeyboardInterrupt is raised with a note that says where.
    """
    from benchmarks.harness import machine
    from reports.parity import page

    with stoppable():
        findings = run(work.session, work.claims, report, processes=work.asked.processes)
    if findings.interrupted:
        work = replace(work, out=_beside(work.out))
    told = command(work.asked)
    made = certificate.make(findings, work.session, work.claims, machine.describe(), work.hashes, told)
    if not matrix_only:
        certificate.write(made, work.out / NUMBERS)  # first: what took minutes is kept, whatever the page does
    if matrix.of(made):
        files.write_text(work.out / MATRIX, matrix.csv(made))
    if not matrix_only:
        files.write_text(work.out / PAGE, page.render(made))
    if findings.interrupted:
        stopped = KeyboardInterrupt()
        if any(work.out.iterdir()):
            stopped.add_note(f"What was tried until then is kept in {work.out}.")
        raise stopped
    return made


def processes(asked: int | None, device: str) -> int:
    """How many processes share the work: what was asked for, or one for each core up to MOST, as far as memory goes;
    what is no CPU has one memory for all, and gets one."""
    from benchmarks.room import room
    from common.cores import usable_cores

    if asked is None:
        fit = int(min(free for free in room("cpu").values() if free is not None) // MEMORY)
        return max(1, min(MOST, len(usable_cores()), fit)) if device == "cpu" else 1
    if asked < 1:
        raise UserError(f"--processes is {asked}; allowed is a whole number > 0.")
    return asked


def _beside(out: Path) -> Path:
    """A new folder beside the one for results, for a run that was interrupted."""
    out = out.resolve()
    names = itertools.chain(("interrupted",), (f"interrupted-{number}" for number in itertools.count(2)))
    place = next(place for name in names if not (place := out.with_name(f"{out.name}-{name}")).exists())
    return files.output_folder(place)


def command(asked: Settings) -> str:
    """The command that does this again."""
    words = ["parallax parity"]
    given = {"case": asked.cases, "tier": asked.tiers, "claim": asked.claims, "mode": asked.modes}
    words += [f"--{option} {value}" for option, values in given.items() for value in values]
    words += [f"--backends {','.join(asked.backends)}"] if asked.backends != Settings.backends else []
    words += [f"--device {asked.device}"] if asked.device != "cpu" else []
    return " ".join(words + (["--quick"] if asked.quick else []))


def places(found: dict[str, Any], out: Path, matrix_only: bool = False) -> str:
    """Where the results are."""
    told = [] if matrix_only else [f"The page: {out / PAGE}", f"the certificate: {out / NUMBERS}"]
    told += [f"planted bugs: {out / MATRIX}"] if matrix.of(found) else []
    return "    ".join(told)


def _subjects(names: tuple[str, ...]) -> dict[str, Any]:
    """The backends; one whose packages are missing is answered with what to install."""
    if len(set(names)) < len(names):
        raise UserError(f"A backend is named twice in {','.join(names)}; once is enough.")
    for name in names:
        try:
            subjects((name,))
        except UserError as error:
            missing = error.__cause__
            if not isinstance(missing, ImportError):
                raise
            extras = _extras()
            advice = f"`pip install 'parallax[{name}]'`" if name in extras else "its packages"
            raise UserError(f"Backend {name!r} is not installed ({missing}); install {advice}.") from error
    return subjects(names)


def _extras() -> list[str]:
    """What the installed project can be installed with besides; nothing where it is not installed."""
    try:
        return metadata.metadata("parallax").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def _modes(asked: Settings) -> dict[str, str]:
    out: dict[str, str] = {}
    for text in asked.modes:
        name, equals, mode = text.partition("=")
        if not equals:
            raise UserError(f"--mode {text} names no backend; write NAME=MODE, as in jax=scan.")
        if name not in asked.backends:
            raise unknown("backend in --mode", name, asked.backends)
        if mode_of(mode, name).get("rng") == "native":  # unknown ones are refused there
            raise UserError(f"--mode {text} draws other numbers than the oracle does, so there is nothing to prove.")
        if name in out:
            raise UserError(f"--mode gives {name} two modes, {out[name]} and {mode}; a run has one of each.")
        out[name] = mode
    return out


def _writable(path: Path) -> Path:
    """Minutes of work must not end in a folder that takes no files."""
    folder = files.output_folder(path)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; give another folder for the results.")
    for name in (NUMBERS, MATRIX, PAGE):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder; a file is to be written there.")
    return folder
