"""The results on disk and on the screen: JSON, the page and the curves, each replaced as a whole."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import files
from common.config import dumps
from common.errors import UserError
from reports.compare import job, plan
from reports.compare.settings import Settings
from reports.progress import Progress

PAGE, NUMBERS, CURVES = "index.html", "compare.json", "loss.csv"


def produce(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Do the job and write its results to the output folder, which is made (or refused) before anything else."""
    from reports.compare import page

    work = plan.make(settings)
    folder = files.output_folder(settings.out)
    _check_writable(folder)
    found = job.run(work, progress)
    write(folder, found, page.render(found))
    return found


def _check_writable(folder: Path) -> None:
    """Minutes of work must not end in a folder that takes no files."""
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; give another folder for the results.")
    for name in (PAGE, NUMBERS, CURVES):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder; a file is to be written there.")


def write(folder: Path, found: Mapping[str, Any], page: str) -> None:
    """All three files; the page last, for it is what people open."""
    files.write_text(folder / NUMBERS, as_json(found))
    files.write_text(folder / CURVES, curves(found))
    files.write_text(folder / PAGE, page)


def as_json(found: Mapping[str, Any]) -> str:
    """The numbers as they are kept."""
    return dumps(found)


def curves(found: Mapping[str, Any]) -> str:
    """Loss and gradient norm of every step in both wings, and the losses' difference, as CSV."""
    text, training = io.StringIO(), found["training"]
    rows = csv.writer(text, lineterminator="\n")
    wings = found["settings"]["wings"]
    rows.writerow(["step", *(f"loss_{w}" for w in wings), "loss_difference", *(f"grad_norm_{w}" for w in wings)])
    for step, gap in enumerate(training["difference"]):
        own = [training["curves"][wing] for wing in wings]
        rows.writerow([step, *(c["loss"][step] for c in own), gap, *(c["grad_norm"][step] for c in own)])
    return text.getvalue()


def show(found: Mapping[str, Any]) -> None:
    """The table on standard output."""
    from rich.console import Console

    from reports.compare import table

    Console().print(table.build(found))
