"""The first tokenizers of the book: whole words and signs, with an id for each that was seen.

Source: Raschka 2024, chapter 2, "SimpleTokenizerV1" and "SimpleTokenizerV2".
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.errors import UserError
from common.tokenizers.base import check_special, checked_ids, fingerprint
from common.tokenizers.bpe import END_OF_TEXT

UNKNOWN = "<|unk|>"
FILE = "words.json"
SPLIT = re.compile(r"""([,.:;?_!"()']|--|\s)""")
CLOSING = {False: re.compile(r"""\s+([,.?!"()'])"""), True: re.compile(r"""\s+([,.:;?!"()'])""")}


class Words:
    """Ids are places in the list of `words`. If `<|unk|>` is among them it stands for every other word (the book's
    second version), else such a word is refused. Spaces are not kept: text comes back in the book's spacing."""

    name = "words"

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            raise UserError("A vocabulary of words names one of them twice.")
        self.vocab_size, self.end_token = len(self.words), self._ids.get(END_OF_TEXT)
        self.knows_unknown = UNKNOWN in self._ids

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids [T] int32; special tokens are words like any other here, so `special` changes nothing."""
        found = split(text)
        if not self.knows_unknown:
            strange = next((word for word in found if word not in self._ids), None)
            if strange is not None:
                raise UserError(f"The word {strange!r} is not in this vocabulary, which has no {UNKNOWN} for it.")
        return np.array([self._ids.get(word, self._ids.get(UNKNOWN)) for word in found], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The words with spaces between them, none before a closing sign."""
        joined = " ".join(self.words[number] for number in checked_ids(ids, self))
        return CLOSING[self.knows_unknown].sub(r"\1", joined)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The same in UTF-8."""
        return self.decode(ids).encode()

    def describe(self) -> dict[str, Any]:
        """Name, sizes and the checksum of the words as plain data."""
        sizes = {"name": self.name, "vocab_size": self.vocab_size, "end_token": self.end_token}
        return {**sizes, "unknown": self.knows_unknown, "sha256": fingerprint(self.words)}

    def save(self, folder: Path | str) -> None:
        """Write the list of words into a folder."""
        files.write_text(files.output_folder(Path(folder)) / FILE, json.dumps(self.words) + "\n")


def split(text: str) -> list[str]:
    """Words and signs of a text."""
    return [word for word in map(str.strip, SPLIT.split(text)) if word]


def train(text: str, specials: Sequence[str] = (END_OF_TEXT, UNKNOWN)) -> Words:
    """The words of a text in the order of their characters, and special ones behind them (none: the book's first
    version)."""
    check_special(specials)
    found = set(split(text))
    if not found:
        raise UserError("There is no text to take words from.")
    return Words([*sorted(found.difference(specials)), *specials])


def load(folder: Path | str) -> Words:
    """What `save` wrote. Raises UserError for a file that is missing or damaged."""
    path = Path(folder).expanduser() / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path.parent} holds no vocabulary of words ({FILE}).") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is no JSON ({error}).") from error
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise UserError(f"{path} is damaged: it is no list of words.")
    return Words(found)
