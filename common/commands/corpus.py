"""`parallax corpus`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options

ACTIONS = ("prepare", "tokens")


def corpus(
    action: Annotated[str, typer.Argument(help="prepare (Gutenberg's books into shards), or tokens (a token file).")],
    source: Annotated[Path, typer.Argument(help="Folder of text files; tokens: a text file, or shards, too.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the result (default: out/shards, out/tokens).")] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="prepare: a language to keep (may be given again; default: English).")
    ] = None,
    ascii_share: Annotated[float, typer.Option(help="prepare: books with a larger share of ASCII are kept.")] = 0.9,
    shard_megabytes: Annotated[float, typer.Option(help="prepare: the size of a shard at most.")] = 500.0,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    processes: Annotated[int | None, typer.Option(help="tokens: so many encode (default: one for each core).")] = None,
) -> None:
    """Make a corpus ready for training: books without their licence in shards, or a token file larger than memory."""
    from common.errors import UserError, unknown

    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if not source.exists():
        raise UserError(f"There is nothing at {source}; give a folder of text files.")
    if action == "prepare":
        _prepare(source, out or Path("out/shards"), language, ascii_share, shard_megabytes)
    else:
        _tokens(source, out or Path("out/tokens"), tokenizer or "gpt2", vocab, processes)


def _prepare(source: Path, out: Path, language: list[str] | None, ascii_share: float, megabytes: float) -> None:
    from common.data import gutenberg
    from common.data.corpora import text_files

    languages = ("English",) if language is None else tuple(language)
    rules = gutenberg.Rules(languages, ascii_share, int(megabytes * 2**20))
    with options.bar("books") as told:
        found = gutenberg.prepare(text_files(source), out, rules, lambda done, of, name: told(done, of))
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

    paths = (gutenberg.shards(source) or text_files(source)) if source.is_dir() else [source]
    texts = (text for path in paths for text in gutenberg.documents(path))
    several = (os.cpu_count() or 1) if processes is None else processes
    with options.bar("documents") as told:
        made = tokens.write(texts, out, name, vocab, several, lambda done: told(done, None))
    head = made.head
    print(f"{head['tokens']:,} tokens of {head['documents']:,} documents in {out}.")
    print(f"Use it: parallax train --data {out}")
