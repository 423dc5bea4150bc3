"""Token files: ids of a corpus larger than memory, written once by several processes, and mapped where they are read.

A folder holds `tokens.bin` (16 bits an id, little-endian, or 32 where the vocabulary needs them) and `tokens.json`,
what it was made of. Every document ends with the tokenizer's end token, if it has one.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.errors import UserError
from common.tokenizers import Tokenizer, tokenizer

BINARY, HEAD = "tokens.bin", "tokens.json"
FORMAT = "parallax-tokens/1"
TOGETHER = 1 << 20  # characters that a process encodes at a time
AHEAD = 4  # pieces for each process that wait, so that memory stays small

Report = Callable[[int], None]  # documents written

_own: Tokenizer | None = None


@dataclass(frozen=True)
class TokenFile:
    """Ids [N], mapped from the file, and what is known of them."""

    name: str
    ids: np.ndarray
    head: dict[str, Any]

    def check(self, own: Tokenizer) -> None:
        """Raise UserError if its ids are not that tokenizer's, by all that its head says of it: older ones have no
        checksum."""
        made, here = self.head["tokenizer"], json.loads(json.dumps(own.describe()))
        if made["name"] != own.name:
            raise UserError(f"The tokens in {self.name} are of tokenizer {made['name']!r}, not of {own.name!r}.")
        if any(here.get(key) != value for key, value in made.items() if key != "source"):
            raise UserError(f"The tokens in {self.name} are of tokenizer {made['name']!r} with another vocabulary.")

    def describe(self) -> dict[str, Any]:
        """What it was made of, as plain data for provenance."""
        return dict(self.head)


def write(
    documents: Iterable[str],
    out: Path | str,
    name: str,
    vocab: Path | str | None = None,
    processes: int = 1,
    report: Report = lambda documents: None,
) -> TokenFile:
    """Encode documents by the tokenizer of that name into a folder; an older token file there is replaced when the new
    one is whole. The ids are the same by however many processes. Raises UserError without documents."""
    if processes < 1:
        raise UserError(f"{processes} processes were asked for; allowed is a whole number > 0.")
    made = tokenizer(name, vocab)
    dtype = np.dtype("<u2" if made.vocab_size <= 1 << 16 else "<u4")
    with files.replacing_folder(out) as temporary:
        counted, tokens, sha256 = 0, 0, hashlib.sha256()
        with (temporary / BINARY).open("wb") as file:
            for number, data in _encoded(documents, name, vocab, dtype.str, processes):
                file.write(data)
                sha256.update(data)
                counted, tokens = counted + number, tokens + len(data) // dtype.itemsize
                report(counted)
        if not tokens:
            raise UserError("There is no text to make tokens of.")
        head = {"format": FORMAT, "dtype": dtype.str, "tokens": tokens, "documents": counted}
        head |= {"sha256": sha256.hexdigest(), "tokenizer": made.describe()}
        (temporary / HEAD).write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
        if hasattr(made, "save"):  # what was trained here goes with what it has made
            made.save(temporary)
    return read(out)


def holds(folder: Path | str) -> bool:
    """Whether there is a token file in that folder."""
    return (Path(folder) / HEAD).is_file()


def read(folder: Path | str) -> TokenFile:
    """The token file in a folder, its ids mapped, not read. Raises UserError for one that is damaged or cut short."""
    folder = Path(folder).expanduser()
    try:
        head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        known = head["format"] == FORMAT and head["dtype"] in ("<u2", "<u4")
        tokens, size = int(head["tokens"]), (folder / BINARY).stat().st_size
    except OSError as error:
        raise UserError(f"{folder} holds no token file ({HEAD}, {BINARY}): {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / HEAD} is damaged ({type(error).__name__}: {error}).") from error
    if not known:
        raise UserError(f"{folder / HEAD} is of another format than {FORMAT}.")
    dtype = np.dtype(head["dtype"])
    if size != tokens * dtype.itemsize:
        raise UserError(f"{folder / BINARY} has {size:,} bytes where {tokens * dtype.itemsize:,} belong; make it anew.")
    if not tokens:
        raise UserError(f"{folder / BINARY} holds no tokens; make it anew.")
    return TokenFile(folder.resolve().name, np.memmap(folder / BINARY, dtype, mode="r"), head)


def _encoded(documents: Iterable[str], name: str, vocab, dtype: str, processes: int) -> Iterator[tuple[int, bytes]]:
    """(documents, their ids as bytes), in order."""
    pieces = _pieces(documents)
    if processes == 1:
        _begin(name, vocab)
        yield from (_encode(piece, dtype) for piece in pieces)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (name, vocab)) as pool:
        waiting = [pool.submit(_encode, piece, dtype) for piece in islice(pieces, AHEAD * processes)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(_encode, piece, dtype) for piece in islice(pieces, 1)]


def _pieces(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in pieces of about TOGETHER characters."""
    piece, size = [], 0
    for text in documents:
        piece.append(text)
        size += len(text)
        if size >= TOGETHER:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _begin(name: str, vocab) -> None:
    global _own
    _own = tokenizer(name, vocab)


def _encode(piece: list[str], dtype: str) -> tuple[int, bytes]:
    found = []
    for text in piece:
        found.append(_own.encode(text))
        if _own.end_token is not None:
            found.append(np.array([_own.end_token], np.int32))
    return len(piece), np.concatenate(found).astype(dtype).tobytes()
