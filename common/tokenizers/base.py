"""What every tokenizer offers, and how ids become text while they still arrive one by one."""

import codecs
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from common.errors import UserError


class Tokenizer(Protocol):
    """Text to int32 ids and back; `end_token` is the id that ends a document, if the vocabulary has one."""

    name: str
    vocab_size: int
    end_token: int | None

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids [T] int32. Control tokens spelt out in the text are plain text unless `special` is True."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; an id outside the vocabulary raises UserError."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 show as U+FFFD."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name, sizes and the origin of the vocabulary, as plain data for provenance."""
        ...


class Stream:
    """Text of ids that arrive over time: `feed` never gives half a character, `finish` gives what is left.

    All pieces together are exactly `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: int | Iterable[int]) -> str:
        """The text that is certain after these further ids; may be empty."""
        ids = [ids] if isinstance(ids, (int, np.integer)) else ids
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """The rest: an incomplete character at the end shows as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def fingerprint(*parts: Any) -> str:
    """The SHA-256 of what makes a vocabulary, in JSON: two of the same size are told apart by it."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def utf8(text: str) -> bytes:
    """The text as UTF-8, or an error that names the first character UTF-8 cannot hold (a lone surrogate)."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        point = f"U+{ord(text[error.start]):04X}"
        raise UserError(
            f"Character {error.start} of the text is {point}, which UTF-8 cannot hold; remove it."
        ) from error


def check_special(more: Sequence[str], there: Collection[str] = ()) -> None:
    """Refuse special tokens that are empty, no UTF-8, named twice, or spelt as a token that is `there`: on disk the two
    would be one."""
    for number, spelt in enumerate(more):
        if not spelt:
            raise UserError("A special token is empty; give it a spelling.")
        if any("\ud800" <= letter <= "\udfff" for letter in spelt):
            raise UserError(f"The special token {spelt!r} is no UTF-8 text; give it another spelling.")
        if spelt in more[:number]:
            raise UserError(f"The special token {spelt!r} is named twice; name it once.")
        if spelt in there:
            raise UserError(f"{spelt!r} is in this vocabulary already; give a special token another spelling.")


def checked_ids(ids: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    """ids as a list of Python integers, or an error that names the first one outside the vocabulary."""
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        shape, dtype = list(array.shape), array.dtype
        raise UserError(
            f"Token ids of shape {shape} and type {dtype} cannot be decoded; give one row of whole numbers."
        )
    wrong = np.flatnonzero((array < 0) | (array >= tokenizer.vocab_size))
    if wrong.size:
        raise UserError(
            f"Token id {int(array[wrong[0]])} at position {int(wrong[0])} is outside the vocabulary of"
            f" {tokenizer.name!r} (0 to {tokenizer.vocab_size - 1})."
        )
    return array.astype(np.int64).tolist()
