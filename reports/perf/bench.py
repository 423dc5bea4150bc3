"""`parallax bench`"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from common.commands import options


def bench(
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Only this suite (may be given again); by default all that take turns: see README."),
    ] = None,
    device: options.Device = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="The small model alone, few and short samples: to try it out.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Preset of the large model (default: gpt2-124m).")] = None,
    threads: options.Threads = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of sampling for each cell (default: 20, quick 2).")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Begin nothing new after so many minutes: suites take turns, and what is left out is named."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for results. A run goes into a folder of its device in it; a quick one, one of some suites or"
            " of another model into a folder of that kind, as in …-decode-quick."
        ),
    ] = Path("out/perf"),
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder, which was ended: the cells that it has measured whole stay. What"
            " it was asked for holds again; --minutes may be others."
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the suites and their cells, and measure nothing.")
    ] = False,
) -> None:
    """Time both wings against each other: speed, memory, compile time, with intervals and noise floor."""
    from benchmarks import job
    from benchmarks import resume as again
    from common.errors import UserError
    from reports.perf import job as pages
    from reports.perf import table, view
    from reports.progress import Shown

    asked = job.Settings(tuple(suite or ()), device, quick, model, threads, seconds, minutes, out)
    if resume is None:
        work = job.prepare(asked)
    elif asked == job.Settings(minutes=minutes):
        work = again.prepare(resume, minutes)
    else:
        raise UserError("--resume does what that run was asked for; leave out all other options but --minutes.")
    if list_:
        for cell in work.left:
            print(f"{cell.suite:<10} {cell.title}: {', '.join(one.name for one in cell.contenders)}")
        return
    try:
        with Shown() as progress, progress.steps() as report:
            folder, partial = job.produce(work, report, pages.rewrite)
    except (UserError, KeyboardInterrupt) as error:  # others show their notes themselves
        for note in getattr(error, "__notes__", ()):
            options.show(note)
        raise
    found = pages.derive(folder)
    table.show(found)
    options.show(f"The report: {folder / 'index.html'}")
    if partial:
        options.show(f"Partial ({partial}): what was measured is in the report.")
        options.show(f"To go on with it: parallax bench --resume {shlex.quote(str(folder))}")
    if partial == job.INTERRUPTED:
        raise typer.Exit(130)
    if not any(one.timed for cell in view.cells(found) for one in cell.contenders):
        options.show("Not a single contender was timed; the report says why.")
        raise typer.Exit(1)
