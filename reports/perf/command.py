"""`parallax report`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options

HERE = Path(__file__).parent


def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders with raw.jsonl (default: all of this checkout's reports/perf).")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 naming what is stale.")] = False,
    agree: Annotated[
        bool,
        typer.Option("--agree", help="Write nothing; hold the folders, runs of the same cells, against each other."),
    ] = False,
) -> None:
    """The benchmark report from its raw samples: written anew, checked against them, or held against other runs."""
    from reports.perf import job

    if agree:
        _agree(folders or [], check)
        return
    for folder in (chosen := _chosen(folders or [], check)):
        if not check:
            job.rewrite(folder)
            options.show(f"The page: {folder / job.PAGE}    the numbers: {folder / job.SUMMARY}")
    if not check:
        return
    wrong = [sentence for folder in chosen for sentence in job.check(folder)]
    for sentence in wrong:
        print(sentence)
    if wrong:
        options.show(f"{len(wrong)} stale. `parallax report` writes them anew from the raw samples.")
        raise typer.Exit(1)
    options.show(f"All of {', '.join(map(str, chosen))} follows from the raw samples.")


def _agree(folders: list[Path], check: bool) -> None:
    """Print what several runs say of the same pairs; exit 1 if they contradict each other."""
    from common.errors import UserError
    from reports.perf import agree, job
    from reports.perf import wording as say
    from reports.perf.numbers import plain

    if check:
        raise UserError("--check and --agree are two questions; ask one at a time.")
    if len(folders) < 2:
        raise UserError("--agree needs at least two folders: runs of the same cells.")
    names = agree.names_of(_chosen(folders, check=True))
    runs = {name: job.derive(folder) for folder, name in names.items()}
    devices = {say.device(found) for found in runs.values()}
    if len(devices) > 1:
        options.show(f"These runs are of different devices ({'; '.join(sorted(devices))}).")
    held = agree.hold(runs)
    print(agree.table(held, list(runs)))
    tally = agree.counts(held)
    told = (f"{number} {what} ({agree.MEANING[what]})" for what, number in tally.items() if number)
    options.show(f"Of {len(held)} pairs: {'; '.join(told)}.")
    options.show(
        f"Intervals were held against each other {agree.comparisons(held):,} times; they hold 99 %, so two that are"
        " right lie apart by chance once in 3,700 times."
    )
    for name, found in runs.items():
        if beside := say.disturbed(found):
            options.show(f"{name}: {plain(found, beside)}")
    if not agree.comparable(held):
        options.show("Nothing could be compared: measure again on a quieter machine, or for longer (--seconds).")
    if tally[agree.CONTRADICT] or not agree.comparable(held):
        raise typer.Exit(1)


def _chosen(folders: list[Path], check: bool) -> list[Path]:
    """The folders asked for, or all results of this checkout; each must have raw samples. What a killed run left gets
    its name, unless it is only to be checked."""
    from benchmarks.harness import record
    from common.errors import UserError
    from reports.perf.job import RAW

    if not folders:
        folders = sorted(path.parent for path in HERE.glob(f"*/{RAW}"))
        if not folders:
            raise UserError(f"No folder in {HERE} has {RAW}; measure with `parallax bench`, or name a folder.")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give one that `parallax bench` wrote.")
        if not check and record.revive(folder):
            options.show(f"{folder} was left by a run that was killed; what it had measured is partial, and kept.")
        if not (folder / RAW).is_file():
            raise UserError(f"{folder} has no {RAW}; give a folder that `parallax bench` wrote.")
    return folders
