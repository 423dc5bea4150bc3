"""`parallax compare`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options


def compare(
    preset: Annotated[str, typer.Option(help="The model: nano, gpt2-124m, book-124m, …")] = "nano",
    weights: Annotated[Path | None, typer.Option(help="Compare with these weights (GPT-2 in any known form).")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads of the model, if not the preset's.")] = None,
    data: Annotated[str, typer.Option(help="pydoc (Python's own reference), or a UTF-8 file or folder.")] = "pydoc",
    steps: Annotated[int | None, typer.Option(help="Training steps (default: up to 300, by the model's size).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per step (default: 8, or 1 for large models).")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per window (default: up to 128).")] = None,
    prompt: Annotated[str | None, typer.Option(help="The text that both wings continue.")] = None,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    mode: options.Mode = "default",
    attention: options.Attention = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile PyTorch's blocks (JAX always compiles).")] = False,
    threads: options.Threads = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order, dropout and sampling.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps and samples: a look, not a measurement.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the page and the numbers.")] = Path("out/compare"),
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of the table.")] = False,
) -> None:
    """The same model in both frameworks: checked against the oracle, trained, and measured, side by side."""
    from reports.compare import result
    from reports.compare.settings import Settings
    from reports.progress import Shown

    settings = Settings(
        preset=preset,
        weights=_text(weights),
        heads=heads,
        data=data,
        tokenizer=tokenizer,
        vocab=_text(vocab),
        prompt=prompt,
        steps=steps,
        batch_size=batch_size,
        length=length,
        device=device,
        dtype=dtype or "float32",
        threads=threads,
        mode=mode,
        attention=attention,
        compile=compile,
        seed=seed,
        out=str(out),
        quick=quick,
    )
    with Shown() as progress:
        found = result.produce(settings, progress)
    if json:
        print(result.as_json(found), end="")
    else:
        result.show(found)
    options.show(
        f"The page: {out / result.PAGE}    the numbers: {out / result.NUMBERS}    curves: {out / result.CURVES}"
    )
    if not found["passed"]["all"]:
        raise typer.Exit(1)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
