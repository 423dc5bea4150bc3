"""`parallax curves`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options


def curves(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs: one, or several on the same axes.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the plots (default: that of the first run).")] = None,
) -> None:
    """Draw what runs logged: loss, accuracy, margins, learning rate, gradient norm, tokens per second; and what their
    classifiers confuse."""
    from common.files import output_folder, replacing
    from reports.curves import plots

    folders = {plots.label(folder, run): folder for folder in dict.fromkeys(run)}
    runs = {name: plots.read(folder) for name, folder in folders.items()}
    matrices = {name: found for name, folder in folders.items() if (found := plots.confusion(folder))}
    sizes = {plots.counted(folder) for folder in folders.values()}
    folder = output_folder(out or run[0])
    for kind, data in plots.drawn(runs, matrices, sizes.pop() if len(sizes) == 1 else None).items():
        with replacing(folder / f"curves.{kind}") as temporary:
            temporary.write_bytes(data)
    for name, lines in runs.items():
        held_out = [line["held_out"] for line in lines if "held_out" in line]
        best = f", lowest held-out loss {min(held_out):.4f}" if held_out else ""
        accuracy = [line["accuracy"] for line in lines if "accuracy" in line]
        best += f", held-out accuracy {accuracy[-1]:.1%}" if accuracy else ""
        print(f"{name}: {lines[-1]['step'] + 1} steps, loss {lines[-1]['loss']:.4f}{best}")
    options.show(f"Plots: {folder / 'curves.png'}, curves.svg")
