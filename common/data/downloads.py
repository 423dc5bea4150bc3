"""Texts by name, downloaded once and known by their SHA-256; without network, put there by hand."""

import os
from dataclasses import dataclass
from pathlib import Path

from common.data import sets
from common.errors import UserError
from common.files import home, output_folder, sha256_of
from common.weights.damage import one_line
from common.weights.fetch import network_errors


@dataclass(frozen=True)
class Text:
    """Where a text is, the SHA-256 of its bytes, and what it is."""

    url: str
    sha256: str
    what: str


TEXTS: dict[str, Text] = {
    "the-verdict": Text(
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        "a short story by Edith Wharton, 1908, which the book trains on: 20,479 bytes",
    ),
    "tinyshakespeare": Text(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "plays of Shakespeare, as char-rnn and nanoGPT use them: 1,115,394 bytes",
    ),
}


def place_of(name: str) -> Path:
    """Where a text goes: below $PARALLAX_HOME, or ~/.cache/parallax."""
    return home() / "corpora" / f"{name}.txt"


def obtain(name: str, into: Path | None = None) -> Path:
    """The file of a text in TEXTS, downloaded if it is not there, or is not what it should be. Who does not say where
    it goes gets the one that lies in a data folder (`sets.folders`), if that is it.

    An interrupted download goes on where it stopped. Bytes with another sum are removed and a UserError says so;
    without network, a UserError says what to put where by hand.
    """
    text = TEXTS[name]
    path = place_of(name) if into is None else output_folder(into) / f"{name}.txt"
    here = [path] if into is not None else [path, *(folder / f"{name}.txt" for folder in sets.folders())]
    for one in here:
        if one.is_file() and sha256_of(one) == text.sha256:
            return one
    output_folder(path.parent)
    partial = path.with_name(f".{path.name}.{text.sha256[:16]}.partial")
    _download(text.url, partial, path)
    found = sha256_of(partial)
    if found != text.sha256:
        partial.unlink()
        raise UserError(
            f"{text.url} arrived with the SHA-256 {found} where {text.sha256} was expected, and was removed; put the"
            f" right file at {path} by hand."
        )
    os.replace(partial, path)
    return path


def _download(url: str, partial: Path, path: Path) -> None:
    """Append what is missing; the library shows progress and tries again on broken connections."""
    from huggingface_hub.file_download import http_get

    try:
        size = partial.stat().st_size if partial.exists() else 0
        with partial.open("ab", buffering=0) as file:
            http_get(url, file, resume_size=size, headers={})
    except network_errors() as error:
        told = one_line(error).split(" (Request ID")[0]
        raise UserError(
            f"Cannot fetch {url} ({told}): try again with a network, or put the file at {path} by hand, or into"
            " a folder that PARALLAX_DATA names."
        ) from error
