"""`parallax quantise`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options


def quantise(
    weights: Annotated[Path | None, typer.Argument(help="Weights of any known kind, or a run.")] = None,
    preset: Annotated[str | None, typer.Option(help="A preset with its initial weights instead.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial weights.")] = 0,
    data: Annotated[
        str | None,
        typer.Option(help="A text file, a folder of texts or a corpus, whose loss is shown before and after."),
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows of the context's length that are read of it at most.")] = 16,
    backend: options.Backend = "torch",
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the file cannot tell.")] = None,
    threads: options.Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the same as JSON.")] = None,
) -> None:
    """What linear maps in 4 bits (NF4) cost and save: errors, bits and bytes by kind of matrix, and the loss."""
    from dataclasses import replace

    from rich.console import Console

    from common import files, params, quantised
    from common.commands import quantise_table as table
    from common.config import dumps, model_to_dict
    from common.config import preset as preset_of
    from common.errors import UserError
    from common.run import weights_of

    if (weights is None) == (preset is None):
        raise UserError("Name either weights or a preset: `parallax quantise WEIGHTS`, or --preset gpt2-124m.")
    if windows < 1:
        raise UserError(f"--windows is {windows}; give a whole number > 0.")
    run = options.execution(backend, "cpu", None, threads=threads) if data is not None else None
    if weights is None:
        config, text, source = preset_of(preset), {}, f"preset {preset}, initial weights"
        if not 0 <= seed < 2**32:
            raise UserError(f"--seed is {seed}; give a whole number in [0, 2^32).")
        arrays = params.initialise(config, seed)
    else:
        found, text = weights_of(weights, heads=heads)
        config, arrays, source = found.config, found.weights, f"weights of {weights.resolve().name}"
    if data is not None:  # whatever is wrong shows before the work begins
        encoder = options.tokenizer_for(
            tokenizer or options.tokenizer_of(text, weights), vocab, config.vocab_size, weights
        )
        rows = table.rows(data, encoder, config, windows)
    labels = None if not Console(stderr=True).is_terminal else str
    report = quantised.report(config, arrays, lambda names: options.progress(names, len(names), labels))
    if data is not None:
        report = replace(report, loss=table.losses(backend, run, config, arrays, rows), tokens=rows[0].size)
    told = {"source": source, "model": model_to_dict(config), **report.to_dict()}
    if out is not None:
        files.write_text(out, dumps(told))
    if json:
        print(dumps(told), end="")
    else:
        Console(width=None if Console().is_terminal else 100).print(table.build(source, report))
    if out is not None:
        options.show(f"Report: {out}")
