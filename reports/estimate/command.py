"""`parallax estimate`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options


def estimate(
    model: Annotated[str | None, typer.Argument(help="Preset: nano, gpt2-124m, book-124m, …")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The model as JSON instead: a config's fields, or a checkpoint's config.json.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A field of the model, as in embed_dim=4096 or attention.num_kv_heads=4 (may be given again)."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="The model with other layers, beside it: 'NAME: KIND SETTING=VALUE … + KIND …', as in"
            " 'local: 5*grouped_query window=1024 + grouped_query' (may be given again)."
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens: 1024, or several as in 1024,4096, or 1024:131072:2 (doubled again and again); may be given"
            " again (default: the model's context)."
        ),
    ] = None,
    batch: Annotated[list[str] | None, typer.Option(help="Rows: 1, or several, as in --context (default: 1).")] = None,
    dtype: options.Dtype = "float32",
    attention: options.Attention = None,
    form: Annotated[str, typer.Option("--format", help="What is printed: text, csv or markdown.")] = "text",
    out: Annotated[Path | None, typer.Option(help="Folder for the tables and the plots (default: none).")] = None,
) -> None:
    """What a model and its variants would cost: parameters, FLOPs, activations and cache. Nothing is built."""
    from reports.estimate import job, table

    asked = job.Settings(
        model=model,
        file=config,
        changes=tuple(change or ()),
        variants=tuple(variant or ()),
        contexts=tuple(context or ()),
        batches=tuple(batch or ()),
        dtype=dtype or "float32",
        attention=attention or "plain",
        form=form,
    )
    found = job.produce(asked)
    if out is not None:
        job.write(out, found)
    print(table.FORMATS[form](found), end="")
    if out is not None:
        options.show(f"Tables and plots: {out}")
