"""`parallax corpus`"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from common.commands import options

ACTIONS = ("prepare", "tokens", "windows")
NAMED = 5  # files at most


def corpus(
    action: Annotated[
        str,
        typer.Argument(
            help="prepare (Gutenberg's books into shards), tokens (a token file), or windows (how training cuts them)."
        ),
    ],
    source: Annotated[
        Path | None, typer.Argument(help="Folder of text files; tokens: a text file, or shards, too; windows: none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result (default: out/shards, out/tokens).")] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="prepare: a language to keep (may be given again; default: English).")
    ] = None,
    ascii_share: Annotated[float, typer.Option(help="prepare: books with a larger share of ASCII are kept.")] = 0.9,
    shard_megabytes: Annotated[float, typer.Option(help="prepare: the size of a shard at most.")] = 500.0,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    processes: Annotated[int | None, typer.Option(help="tokens: so many encode (default: one for each core).")] = None,
    count: Annotated[int, typer.Option(help="windows: of the numbers 0, 1, 2, … so many.")] = 17,
    length: Annotated[int, typer.Option(help="windows: numbers in a window.")] = 4,
    stride: Annotated[int | None, typer.Option(help="windows: from one to the next (default: the length).")] = None,
    batch_size: Annotated[int, typer.Option(help="windows: windows in a batch.")] = 2,
    seed: Annotated[int, typer.Option(help="windows: seed of their order.")] = 0,
) -> None:
    """Make a corpus ready for training: books without their licence in shards, or a token file larger than memory."""
    from common.errors import UserError, unknown

    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if action == "windows":
        if source is not None:
            raise UserError(f"windows shows the numbers 0, 1, 2, …; leave out {source}.")
        _windows(count, length, stride, batch_size, seed)
        return
    if source is None:
        raise UserError(f"{action} needs a source; give a folder of text files.")
    if not source.exists():
        raise UserError(f"There is nothing at {source}; give a folder of text files.")
    if action == "prepare":
        _prepare(source, out or Path("out/shards"), language, ascii_share, shard_megabytes)
    else:
        _tokens(source, out or Path("out/tokens"), tokenizer or "gpt2", vocab, processes)


def _prepare(source: Path, out: Path, language: list[str] | None, ascii_share: float, megabytes: float) -> None:
    import math

    from common.data import gutenberg
    from common.data.corpora import text_files
    from common.errors import UserError

    if not 0 < megabytes < math.inf:
        raise UserError(f"--shard-megabytes is {megabytes}; allowed is a number > 0.")
    languages = ("English",) if language is None else tuple(language)
    rules = gutenberg.Rules(languages, ascii_share, int(megabytes * 2**20))
    with options.bar("books") as told:
        found = gutenberg.prepare(text_files(source, out), out, rules, lambda done, of, name: told(done, of))
    kept = sum(one["books"] for one in found["shards"])
    reasons = [one["left_out"] for one in found["files"] if one["left_out"]]
    shards = f"{len(found['shards'])} shard{'s' * (len(found['shards']) != 1)}"
    print(f"{kept} of {len(found['files'])} books in {shards} in {out}.")
    for reason in dict.fromkeys(reasons):
        print(f"Left out, {reason}: {reasons.count(reason)}")
    print(f"Next: parallax corpus tokens {out} --out out/tokens")


def _tokens(source: Path, out: Path, name: str, vocab: Path | None, processes: int | None) -> None:
    import os

    from common.data import gutenberg, tokens
    from common.data.corpora import text_files

    paths = gutenberg.shards(source)
    if paths is None:
        paths = text_files(source, out) if source.is_dir() else [source]
    empty: list[str] = []

    def texts() -> Iterator[str]:
        for path in paths:
            empty.append(str(path))  # until it gives one
            for number, text in enumerate(gutenberg.documents(path)):
                if number == 0:
                    empty.pop()
                yield text

    several = (os.cpu_count() or 1) if processes is None else processes
    with options.bar("documents") as told:
        made = tokens.write(texts(), out, name, vocab, several, lambda done: told(done, None))
    head = made.head
    print(f"{head['tokens']:,} tokens of {head['documents']:,} documents in {out}.")
    if head["documents"] > 1 and head["tokenizer"]["end_token"] is None:
        print(f"Tokenizer {name} has no token that ends a text, so documents follow one another without a mark.")
    if empty:
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        print(f"Without a document: {', '.join(empty[:NAMED])}{more}")
    print(f"Use it: parallax train --data {out}")


def _windows(count: int, length: int, stride: int | None, batch_size: int, seed: int) -> None:
    """Windows of the numbers 0, 1, 2, …, and the batches of two epochs. Source: Raschka, section 2.6 and its bonus."""
    import numpy as np

    from common.data.windows import Batches, Windows

    windows = Windows(np.arange(max(0, count)), length, stride)
    width = len(str(count))

    def row(numbers: np.ndarray) -> str:
        return " ".join(f"{number:>{width}}" for number in numbers)

    print(f"{len(windows)} windows of {windows.length}, one every {windows.stride}: inputs, and targets one further on")
    for number, (inputs, targets) in enumerate(windows):
        print(f"{number:>4}  {row(inputs)}  ->  {row(targets)}")
    batches = Batches(windows, batch_size, seed=seed)
    for epoch in range(2):
        print(f"epoch {epoch} in the order of seed {seed}; windows that fill no batch are left out")
        for _ in range(len(windows) // batch_size):
            (inputs,), (targets,) = next(batches)
            shown = (f"{n}: {row(i)} -> {row(t)}" for n, i, t in zip(batches.latest[0], inputs, targets, strict=True))
            print("      " + "  |  ".join(shown))
