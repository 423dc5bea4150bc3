"""`parallax diverge`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options

SIDE = (
    "torch, jax, numpy, transformers, a Hugging Face GPT-2 folder, a folder with a port, or package.module:attribute."
)


def diverge(
    a: Annotated[str, typer.Argument(metavar="A", help=f"One implementation: {SIDE}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one, likewise.")],
    weights: Annotated[Path | None, typer.Option(help="Weights of any known kind, for both.")] = None,
    preset: Annotated[str | None, typer.Option(help="A preset's shape with random weights.")] = None,
    case: Annotated[str | None, typer.Option(help="A registered case with its random weights and ids.")] = None,
    ids: Annotated[list[str] | None, typer.Option(help="Token ids as 1,2,3; once for every row.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text instead of ids; once for every row.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of random ids.")] = None,
    length: Annotated[int | None, typer.Option(help="Random ids in a row.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights and ids.")] = 0,
    dtype: Annotated[str, typer.Option(help="float64 (finds most), float32 or bfloat16.")] = "float64",
    bound: Annotated[float | None, typer.Option(help="Largest relative error (default: derived from dtype).")] = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="Compare the loss and every gradient too.")] = False,
    taps: Annotated[list[str] | None, typer.Option(help="Only names that match, as in 'model.layers.0.*'.")] = None,
    oracle: Annotated[bool, typer.Option(help="Ask the NumPy oracle which side is off.")] = True,
    all: Annotated[bool, typer.Option("--all", help="List every value on a line of its own.")] = False,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the file cannot tell.")] = None,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Find where two implementations of one model first part ways, and which of them is off."""
    from rich.console import Console

    from common.config import DTYPES, dumps
    from common.errors import UserError, unknown
    from common.parity.diverge import inputs, table
    from common.parity.diverge.run import Settings
    from common.parity.diverge.run import diverge as compare
    from common.parity.diverge.sides import resolve

    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if bound is not None and not bound > 0:
        raise UserError(f"--bound {bound:g} is no bound; give a relative error above 0, as in 1e-6.")
    options.execution("torch", device, dtype, "plain", None, threads)  # sets threads before a framework is imported
    sides = resolve(a), resolve(b)
    own = next((side.weights for side in sides if side.weights is not None), None)
    if own is not None and (weights, preset, case) != (None, None, None):
        raise UserError(
            f"{own.name} brings its own weights, which both sides get; leave out --weights, --preset, --case."
        )
    if None not in (sides[0].weights, sides[1].weights):
        inputs.check_alike(*(side.weights for side in sides))
    chosen = inputs.model(own or weights, preset, case, heads, seed)
    if (ids or prompt) and (batch is not None or length is not None):
        raise UserError("--batch and --length are for random ids; leave them out with --ids and --prompt.")
    if ids and prompt:
        raise UserError("--ids and --prompt both say what goes in; give one of them.")
    if ids or prompt:
        if ids:
            rows = [inputs.parse_ids(text) for text in ids]
        else:
            encoder = options.tokenizer_for(tokenizer, vocab, chosen.config.vocab_size, own or weights)
            rows = [encoder.encode(text).tolist() for text in prompt]
        subject = inputs.given_rows(chosen, rows)
    else:
        subject = inputs.random_rows(chosen, batch, length, seed)
    if gradients and subject.positions is not None:
        raise UserError("Gradients take no padding; give rows of equal length, or leave out --gradients.")
    if gradients and subject.ids.shape[1] < 2 and (ids or prompt):
        raise UserError("One token has no next one to be scored; give at least two for --gradients.")
    settings = Settings(dtype, device, bound, gradients, tuple(taps or ("*",)), oracle)
    report = compare(*sides, subject, settings, tell=lambda what: options.show(f"{what} …"))
    if json:
        print(dumps(report.to_dict()), end="")
    else:
        Console(highlight=False).print(table.build(report, all))
    return int(not report.agree)
