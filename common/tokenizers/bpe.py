"""Byte-level byte-pair encoding from scratch: trained on any text, with GPT-2's way of splitting it.

On disk it has the form of OpenAI's files, `encoder.json` (every token and its id) and `vocab.bpe` (the merges in their
order), so GPT-2's own can be loaded, and what is trained here by others. In these files a byte is written as a visible
character. Source: Radford et al. 2019, section 2.2.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex

from common import files
from common.errors import UserError
from common.tokenizers import merges as pairs
from common.tokenizers.base import check_special, checked_ids, fingerprint, utf8

ENCODER, MERGES = "encoder.json", "vocab.bpe"
OTHER_NAMES = ("vocab.json", "merges.txt")
WANTED = f"{ENCODER} and {MERGES}, or {' and '.join(OTHER_NAMES)}"
END_OF_TEXT = "<|endoftext|>"
# contractions, words, numbers, other signs, each with a space before it; and spaces, of which the last goes with a word
SPLIT = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
VISIBLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
HIDDEN = tuple(byte for byte in range(256) if byte not in VISIBLE)
BYTES = (*VISIBLE, *HIDDEN)  # in the order of their ids
LETTERS = {byte: chr(byte) for byte in VISIBLE} | {byte: chr(256 + number) for number, byte in enumerate(HIDDEN)}
FROM_LETTERS = {letter: byte for byte, letter in LETTERS.items()}
CACHED = 1 << 16  # words whose tokens are remembered

Report = Callable[[int, int], None]  # merges learnt, and to learn


class BPE:
    """A byte-level vocabulary: 256 bytes, merges of two tokens, special tokens. Any text has ids, and comes back.

    `tokens` are the bytes of every id, `ranks` the merges by their two ids, `specials` the ids of special tokens, which
    text spells out in vain unless they are allowed.
    """

    name = "bpe"

    def __init__(self, tokens: Sequence[bytes], learnt: Sequence[tuple[int, int]], specials: Mapping[str, int]):
        self.tokens, self.merges, self.specials = tuple(tokens), tuple(learnt), dict(specials)
        self.vocab_size, self.end_token = len(self.tokens), self.specials.get(END_OF_TEXT)
        ordinary = {token: number for number, token in enumerate(self.tokens) if number not in specials.values()}
        self._of_byte = [ordinary[bytes([byte])] for byte in range(256)]
        joined = [ordinary[self.tokens[first] + self.tokens[second]] for first, second in self.merges]
        self.ranks = {pair: (rank, new) for rank, (pair, new) in enumerate(zip(self.merges, joined, strict=True))}
        self._word = functools.lru_cache(CACHED)(self._merged)
        spelt = sorted(self.specials, key=len, reverse=True)
        self._specials = regex.compile("|".join(map(regex.escape, spelt))) if spelt else None

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids [T] int32; special tokens spelt out in the text are plain text unless `special` is True."""
        utf8(text)
        if special and self._specials is not None:
            return np.array(list(self._with_specials(text)), np.int32)
        return np.array(list(self._plain(text)), np.int32)

    def _with_specials(self, text: str) -> Iterator[int]:
        begun = 0
        for found in self._specials.finditer(text):
            yield from self._plain(text[begun : found.start()])
            yield self.specials[found.group()]
            begun = found.end()
        yield from self._plain(text[begun:])

    def _plain(self, text: str) -> Iterator[int]:
        for word in SPLIT.findall(text):
            yield from self._word(word)

    def _merged(self, word: str) -> tuple[int, ...]:
        return tuple(pairs.apply(self.ranks, [self._of_byte[byte] for byte in word.encode()]))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; an id outside the vocabulary raises UserError."""
        return b"".join(self.tokens[number] for number in checked_ids(ids, self))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, Any]:
        """Name, sizes, special tokens and the checksum of tokens and merges as plain data."""
        own = fingerprint([token.hex() for token in self.tokens], self.merges)
        sizes = {"name": self.name, "vocab_size": self.vocab_size, "end_token": self.end_token}
        return {**sizes, "merges": len(self.merges), "specials": dict(self.specials), "sha256": own}

    def grown(self, more: Sequence[str]) -> "BPE":
        """The same with more special tokens behind all others. Raises UserError for one that cannot be."""
        check_special(more, self.spelt())
        named = self.specials | {spelt: number for number, spelt in enumerate(more, self.vocab_size)}
        return BPE([*self.tokens, *map(str.encode, more)], self.merges, named)

    def spelt(self) -> dict[str, int]:
        """All tokens as the files spell them, and their ids."""
        named = set(self.specials.values())
        return {_letters(token): n for n, token in enumerate(self.tokens) if n not in named} | self.specials

    def save(self, folder: Path | str) -> None:
        """Write both files into a folder; what lies there under their names is replaced, each whole or not at all."""
        folder = files.output_folder(Path(folder))
        lines = ["#version: 0.2", *(" ".join(_letters(self.tokens[one]) for one in pair) for pair in self.merges)]
        files.write_text(folder / MERGES, "\n".join(lines) + "\n")
        files.write_text(folder / ENCODER, json.dumps(self.spelt()) + "\n")


def train(
    text: str | Iterable[str],
    vocab_size: int,
    specials: Sequence[str] = (END_OF_TEXT,),
    report: Report = lambda learnt, wanted: None,
) -> BPE:
    """A vocabulary of that size, special tokens last: merges of the most frequent pairs in the text, or in several.
    Smaller if no pair is left that occurs twice. Raises UserError for a size that is too small, no text,
    or special tokens that cannot be."""
    check_special(specials, LETTERS.values())
    wanted = vocab_size - len(BYTES) - len(specials)
    if wanted < 0:
        needed = len(BYTES) + len(specials)
        told = f"at least {needed} tokens, special ones among them, not {vocab_size}"
        raise UserError(f"A byte-level vocabulary has {told}.")
    texts = [text] if isinstance(text, str) else text
    found = Counter(word for one in texts for word in _split(one, specials))
    if not found:
        raise UserError("There is no text to learn a vocabulary from.")
    number_of = {byte: number for number, byte in enumerate(BYTES)}
    words = {tuple(number_of[byte] for byte in utf8(word)): times for word, times in found.items()}
    tokens, learnt = [bytes([byte]) for byte in BYTES], []
    for pair in pairs.learn(words, len(BYTES), wanted):
        learnt.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        report(len(learnt), wanted)
    return BPE(tokens, learnt, {}).grown(specials)


def _split(text: str, specials: Sequence[str]) -> Iterator[str]:
    """The words of a text; special tokens that are spelt out in it belong to none."""
    parts = regex.split("|".join(map(regex.escape, specials)), text) if specials else [text]
    for part in parts:
        yield from SPLIT.findall(part)


def load(folder: Path | str) -> BPE:
    """The vocabulary in a folder, under OpenAI's names of the files or Hugging Face's. Raises UserError for files that
    are missing or damaged."""
    folder = Path(folder).expanduser()
    files_there = found_in(folder)
    if files_there is None:
        raise UserError(f"{folder} holds no vocabulary; expected are {WANTED}.")
    return of_files(*files_there)


def found_in(folder: Path) -> tuple[Path, Path] | None:
    """The two files of a vocabulary in a folder, under either pair of names; None where there are none."""
    for names in ((ENCODER, MERGES), OTHER_NAMES):
        if all((folder / name).is_file() for name in names):
            return folder / names[0], folder / names[1]
    return None


def of_files(encoder: Path, lines: Path) -> BPE:
    """The vocabulary of these two files; entries of the encoder that are no byte and come from no merge are special
    tokens."""
    ids = _encoder(encoder)
    learnt, known = [], {LETTERS[byte] for byte in range(256)}
    for number, line in enumerate(_read(lines).splitlines(), 1):
        if line.startswith("#version") or not line:
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(part in ids and part in known for part in parts) or "".join(parts) not in ids:
            told = f"{line[:60]!r} is no merge of two known tokens into a known one"
            raise UserError(f"Line {number} of {lines}: {told}.")
        learnt.append((ids[parts[0]], ids[parts[1]]))
        known.add("".join(parts))
    missing = [letter for letter in LETTERS.values() if letter not in ids]
    if missing:
        raise UserError(f"{encoder} lacks {len(missing)} of the 256 bytes; it is no byte-level vocabulary.")
    specials = {token: number for token, number in ids.items() if token not in known}
    tokens = [b""] * len(ids)
    for token, number in ids.items():
        tokens[number] = token.encode() if token in specials else bytes(FROM_LETTERS[letter] for letter in token)
    return BPE(tokens, learnt, specials)


def _encoder(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}).") from error
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise UserError(f"{path} does not give every token an id of its own, from 0 on.")
    return ids


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def _letters(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)
