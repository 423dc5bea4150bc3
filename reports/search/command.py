"""`parallax search`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options


def search(
    space: Annotated[str, typer.Argument(help="TOML file: settings of train and a table [search]; or book.")],
    out: Annotated[Path, typer.Option(help="Folder: a run for each trial, the study, the report.")] = Path(
        "out/search"
    ),
    data: Annotated[str | None, typer.Option(help="Text to train on, in the place of what the space names.")] = None,
    trials: Annotated[int, typer.Option(help="Runs to try, those of an earlier call counted in.")] = 20,
    processes: Annotated[int, typer.Option(help="Runs at the same time; they share the cores.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of what is tried.")] = 0,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Stop runs that are worse than most.")] = True,
) -> None:
    """Look for the settings with the lowest held-out loss; stop whenever you like, and call again to go on."""
    from reports.search import job

    found = job.run(job.Settings(space, out, data, trials, processes, seed, prune), options.show)
    print(job.table(found), end="")
    options.show(f"Trials: {out / 'trials.csv'}; curves of the best: {out / 'curves.png'}; their settings: best.toml")
