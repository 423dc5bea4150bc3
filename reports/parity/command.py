"""`parallax parity`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options

ACTIONS = ("run", "verify", "mutants")


def parity(
    action: Annotated[str, typer.Argument(help="run, verify (a certificate), or mutants (the planted bugs).")] = "run",
    file: Annotated[Path | None, typer.Argument(help="The certificate, for verify and mutants.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only this case (may be given again).")] = None,
    tier: Annotated[
        list[str] | None, typer.Option(help="Only this tier: exact, float64, float32, bfloat16 (may be given again).")
    ] = None,
    claim: Annotated[list[str] | None, typer.Option(help="Only this claim, C0 to C7 (may be given again).")] = None,
    backends: Annotated[str, typer.Option(help="The implementations to judge.")] = "torch,jax",
    device: options.Device = "cpu",
    mode: Annotated[
        list[str] | None,
        typer.Option(help="How one executes, as in jax=scan, torch=fast or jax=fast+eager: see --mode of train."),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Threads for computing in each process; more do not help models this small.")
    ] = 1,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes that share the work, each with its own models (default: on cpu up to 4, else 1)."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes long; bounds stay as they are.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON instead of the table.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the certificate, the matrix and the page.")] = Path(
        "out/parity"
    ),
) -> None:
    """The proof that the implementations compute the same: every claim tried, judged, and written down."""
    from common.errors import UserError, unknown

    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if action == "run" and file is not None:
        raise UserError(f"`parallax parity run` takes no file ({file} was given); --out names the folder for results.")
    if action == "verify":
        _verify(file)
    if action == "mutants" and file is not None:
        _matrix(file, json)
        return
    kept = any("kept" in text.partition("=")[2].split("+") for text in mode or ())
    options.execution("torch", device, "float32", "plain", None, threads, mode="kept" if kept else "default")

    from common.parity import certificate
    from reports.parity import job, table
    from reports.progress import Shown

    claims = tuple(claim or ()) or (("C6",) if action == "mutants" else ())
    names = tuple(name.strip() for name in backends.split(",") if name.strip())
    several = job.processes(processes, device)
    asked = job.Settings(
        tuple(case or ()), tuple(tier or ()), claims, names, device, tuple(mode or ()), quick, out, several
    )
    work = job.prepare(asked)
    try:
        with Shown() as progress, progress.steps() as report:
            found = job.produce(work, report, matrix_only=action == "mutants")
    except KeyboardInterrupt as stopped:
        for note in getattr(stopped, "__notes__", ()):
            options.show(note)
        raise
    if json:
        print(certificate.dumps(found), end="")
    else:
        table.show(found)
    options.show(job.places(found, out, matrix_only=action == "mutants"))
    if not found["passed"]:
        raise typer.Exit(1)


def _verify(file: Path | None) -> None:
    """Ends the command: 0 if all follows and all holds, else 1."""
    from common.errors import UserError
    from common.parity import verify

    if file is None:
        raise UserError("Name the certificate: parallax parity verify out/parity/certificate.json.")
    found = verify.load(file)
    wrong = verify.faults(found)
    print(verify.told(found, wrong))
    raise typer.Exit(int(bool(wrong) or not found["passed"]))


def _matrix(file: Path, json: bool) -> None:
    from common.config import dumps
    from common.errors import UserError
    from common.parity import verify
    from reports.parity import matrix

    found = verify.load(file)
    if not matrix.of(found):
        raise UserError(f"{file} has no planted bugs: it was made without claim C6.")
    print(dumps(matrix.of(found)) if json else matrix.csv(found), end="")
