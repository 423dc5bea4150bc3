"""`parallax finetune`, with the commands of its own that draw and tabulate."""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import groups, options
from common.commands.finetune import finetune

_HOW = groups.How()
Larger = Annotated[Path | None, typer.Option(help="Larger weights, for the experiments that take them.")]


@groups.grouped
def experiments(
    weights: Annotated[Path, typer.Option(help="The weights (or the run) that most experiments start from.")],
    weights_medium: Larger = None,
    weights_large: Larger = None,
    weights_xl: Larger = None,
    data: Annotated[str, typer.Option(help="Texts with classes, as for `parallax finetune classify`.")] = "sms-spam",
    out: Annotated[Path, typer.Option(help="Folder: a run for each experiment, the table, the plot.")] = Path(
        "out/experiments"
    ),
    only: Annotated[str | None, typer.Option(help="Numbers of experiments, as in 1,5,11 (default: all).")] = None,
    backend: options.Backend = "torch",
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    epochs: Annotated[int | None, typer.Option(help="Times that all texts are seen (default: 5).")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, in place of epochs.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of all experiments (default: 5e-5).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of those that name none (default: 8).")] = None,
    length: Annotated[str | None, typer.Option(help="Of texts, where none is named (default: the longest).")] = None,
    dropout: Annotated[float | None, typer.Option(help="One rate for all three places.")] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 50,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of new weights, data order and dropout.")] = 0,
    how: groups.How = _HOW,
) -> None:
    """Run the book's 19 experiments on classification, and put them into one table; stop whenever you like, and call
    again to go on."""
    from common.errors import UserError
    from common.layout import processes
    from reports.finetune import experiments as job
    from reports.finetune import plots, table

    if processes()[1] > 1:
        raise UserError("Experiments start the processes of their runs themselves: call this once, without torchrun.")
    how.execution(backend)  # refused here, not in the first run
    shared = {
        "data": data,
        "backend": backend,
        "tokenizer": tokenizer,
        "vocab": vocab,
        "epochs": epochs,
        "steps": steps,
        "learning-rate": learning_rate,
        "batch-size": batch_size,
        "length": length,
        "dropout": dropout,
        "eval-every": eval_every,
        "save-every": save_every,
        "seed": seed,
        "device": how.device,
        "dtype": how.dtype,
        "mode": how.mode,
        "set": how.more,
        "attention": how.attention,
        "compile": how.compile,
        "layers": how.layers,
        "threads": how.threads,
        "layout": how.layout,
    }
    sizes = {"small": weights, "medium": weights_medium, "large": weights_large, "xl": weights_xl}
    asked = job.Settings(out, sizes, {name: value for name, value in shared.items() if value not in (None, [])}, only)
    found = job.run(asked, options.show, lambda found: table.write(out, found, asked.shared))
    for kind, content in plots.experiments(found).items():
        plots.write(out / f"experiments.{kind}", content)
    print(table.text(found), end="")
    options.show(f"Table: {out / 'experiments.md'} and .json; plot: {out / 'experiments.png'} and .svg")


def report(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs that are done.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, the plot and the numbers.")] = Path("out/report"),
    about: Annotated[str, typer.Option(help="A sentence that stands at the head of the page.")] = "",
    prepared: Annotated[
        list[str] | None,
        typer.Option(help="A command by which the runs' data were made, as the page has it (may be given again)."),
    ] = None,
) -> None:
    """Put what several runs found out onto one page; its numbers are kept beside it, and the page follows from them."""
    import json

    from jinja2 import TemplateError

    from common.errors import UserError
    from common.files import output_folder, write_text
    from reports.finetune import collect, page

    kept = [one for one in run if one.name == collect.FILE]
    if kept and (len(run) > 1 or about or prepared):
        raise UserError(f"{kept[0]} is a page's numbers already; give it alone, to draw that page anew.")
    if kept:
        try:
            found, folder = json.loads(kept[0].read_text(encoding="utf-8")), kept[0].parent
        except (OSError, ValueError) as error:
            raise UserError(f"{kept[0]} cannot be read ({error}).") from error
    else:
        found, folder = collect.collected(run, about, prepared or ()), output_folder(out)
        write_text(folder / collect.FILE, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    try:
        page.write(folder, found)
    except (LookupError, TypeError, AttributeError, ValueError, TemplateError) as error:
        if not kept:
            raise
        raise UserError(f"{kept[0]} does not hold what a report keeps there; make it anew from its runs.") from error
    options.show(f"Page: {folder / page.PAGE}; its numbers: {folder / collect.FILE}")


for command in (experiments, report):
    finetune.command()(command)
