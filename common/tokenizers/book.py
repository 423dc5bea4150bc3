"""The simpler byte-pair encoding of the book's bonus material: on characters, `Ġ` in front of a word for its space.

Its 256 first tokens are the characters 0 to 255, then come other characters of the text that it was trained on, special
tokens, and merges. A character that it never met has no id. OpenAI's files can stand in for what it learns. The letters
in them, each a byte, are characters then, and words are parted at white space alone: `bpe` reads these files as GPT-2
does, and this class as the book's does. Source: Raschka 2024, chapter 2, "BPE from scratch".
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.errors import UserError, unknown
from common.tokenizers import bpe
from common.tokenizers import merges as pairs
from common.tokenizers.base import check_special, checked_ids, fingerprint, utf8
from common.tokenizers.bpe import END_OF_TEXT, LETTERS, Report

SPACE = "Ġ"
# characters that tokens spell otherwise: those of own vocabularies, and of OpenAI's
SPELLINGS = {"own": {" ": SPACE}, "openai": {character: LETTERS[ord(character)] for character in " \n\r\t"}}
VOCABULARY, MERGES = "book-vocab.json", "book-merges.json"
ORDERS = {"rank": pairs.apply, "left to right": pairs.apply_left_to_right}
NAMES = {"rank": "book", "left to right": "book-greedy"}
MISSING = {"own": "the text of the vocabulary did not hold it", "openai": "the book reads bytes as characters"}
PIECES = re.compile(r"(?P<spaces> *)(?P<word>[^\s]+)|(?P<rest> +)|(?P<other>\s)")


class Book:
    """Characters, special tokens, merges and, where they are not the last tokens, the ids that these make. `order` says
    how merges are applied: "rank" as they were learnt, or "left to right" as the book's encoder does, which gives other
    tokens. `spelling` is that of its tokens, "own" or "openai"; the book merges what OpenAI learnt by rank."""

    def __init__(
        self,
        tokens: Sequence[str],
        learnt: Sequence[tuple[int, int]],
        specials: Mapping[str, int],
        order: str = "rank",
        new: Sequence[int] | None = None,
        spelling: str = "own",
    ):
        if order not in ORDERS:
            raise unknown("order", order, ORDERS)
        if spelling == "openai" and order != "rank":
            raise UserError(f"The book merges OpenAI's vocabularies by rank: name the tokenizer {NAMES['rank']!r}.")
        self.tokens, self.merges, self.specials, self.order = tuple(tokens), tuple(learnt), dict(specials), order
        self.name, self.spelling = NAMES[order], spelling
        self._spelt = str.maketrans(SPELLINGS[spelling])
        self._letters = set(SPELLINGS[spelling].values()) - {SPACE}
        self._meant = str.maketrans({letter: character for character, letter in SPELLINGS[spelling].items()})
        self.vocab_size, self.end_token = len(self.tokens), self.specials.get(END_OF_TEXT)
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        self.new = range(self.vocab_size - len(self.merges), self.vocab_size) if new is None else tuple(new)
        self._ranks = {pair: (rank, made) for rank, (pair, made) in enumerate(zip(self.merges, self.new, strict=True))}

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids [T] int32. Special tokens spelt out in the text are refused unless `special` is True."""
        utf8(text)
        taken = self._letters.intersection(text)
        if taken:
            raise UserError(f"The character {min(taken)!r} stands for white space in OpenAI's files; take it out.")
        spelt = sorted(self.specials, key=len, reverse=True)
        there = [token for token in spelt if token in text]
        if there and not special:
            raise UserError(f"The text spells out the special token {there[0]!r}; allow it, or take it out.")
        parts = re.split("(" + "|".join(map(re.escape, spelt)) + ")", text) if there else [text]
        return np.array([number for part in parts for number in self._part(part)], np.int32)

    def _part(self, part: str) -> Iterator[int]:
        if part in self.specials:
            yield self.specials[part]
            return
        for word in (one.translate(self._spelt) for one in split(part)):
            if word in self._ids:
                yield self._ids[word]
                continue
            missing = next((letter for letter in word if letter not in self._ids), None)
            if missing is not None:
                raise UserError(f"The character {missing!r} has no token: {MISSING[self.spelling]}.")
            yield from ORDERS[self.order](self._ranks, [self._ids[letter] for letter in word])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The ids' text in UTF-8; an id outside the vocabulary raises UserError."""
        return self.decode(ids).encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids."""
        return "".join(self.tokens[number] for number in checked_ids(ids, self)).translate(self._meant)

    def describe(self) -> dict[str, Any]:
        """Name, sizes, special tokens, the order of merging, and the checksum of tokens and merges as plain data."""
        sizes = {"name": self.name, "vocab_size": self.vocab_size, "end_token": self.end_token}
        sizes |= {"merges": len(self.merges), "specials": dict(self.specials), "order": self.order}
        return {**sizes, "sha256": fingerprint(self.tokens, self.merges)}

    def save(self, folder: Path | str) -> None:
        """Write {id: token}, the order of merging, OpenAI's spelling, and the list of {pair, new_id} into a folder."""
        folder = files.output_folder(Path(folder))
        listed = [{"pair": list(pair), "new_id": new} for pair, new in zip(self.merges, self.new, strict=True)]
        told = {"tokens": dict(enumerate(self.tokens)), "specials": self.specials, "order": self.order}
        told |= {} if self.spelling == "own" else {"spelling": self.spelling}
        files.write_text(folder / MERGES, json.dumps(listed) + "\n")
        files.write_text(folder / VOCABULARY, json.dumps(told) + "\n")


def split(text: str) -> Iterator[str]:
    """Words, of which each takes one space before it as `Ġ`; further spaces, ends of lines and other white space are
    words of their own."""
    for found in PIECES.finditer(text):
        spaces, word, rest, other = found.group("spaces", "word", "rest", "other")
        if word is not None:
            yield from [SPACE] * (len(spaces) - 1)
            yield (SPACE if spaces else "") + word
        elif rest is not None:
            yield from [SPACE] * len(rest)
        else:
            yield other


def train(
    text: str,
    vocab_size: int,
    specials: Sequence[str] = (END_OF_TEXT,),
    report: Report = lambda learnt, wanted: None,
    order: str = "rank",
) -> Book:
    """A vocabulary of that size; of equally frequent pairs the first one in the text is merged. Both orders learn the
    same."""
    if not text:
        raise UserError("There is no text to learn a vocabulary from.")
    words = Counter(split(text))
    first = [chr(number) for number in range(256)]
    seen = {letter for word in words for letter in word}
    tokens = [*first, *sorted(seen.difference(first))]
    check_special(specials, tokens)
    tokens += specials
    wanted = vocab_size - len(tokens)
    if wanted < 0:
        raise UserError(f"The characters of this text and special tokens are {len(tokens)}, more than {vocab_size}.")
    ids = {token: number for number, token in enumerate(tokens)}
    named, counted = {spelt: ids[spelt] for spelt in specials}, Counter()
    for word, times in words.items():
        counted[tuple(ids[letter] for letter in word)] += times
    learnt = []
    for pair in pairs.learn_first_met(counted, len(tokens), wanted):
        learnt.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        report(len(learnt), wanted)
    return Book(tokens, learnt, named, order)


def kept_as(folder: Path | str) -> str:
    """The name of the tokenizer that wrote a vocabulary: it says how its merges are applied where nobody else does."""
    try:
        told = json.loads((Path(folder) / VOCABULARY).read_text(encoding="utf-8"))
        return NAMES[told.get("order", "rank")]  # older ones do not say it
    except OSError as error:
        raise UserError(f"{folder} holds no vocabulary of the book's kind ({VOCABULARY}, {MERGES}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The vocabulary in {folder} is damaged ({type(error).__name__}: {error}).") from error


def load(folder: Path | str, order: str = "rank") -> Book:
    """What `save` wrote, in the order that is asked for; where there is none of it, a vocabulary in OpenAI's form, as
    `bpe` reads it. Raises UserError for files that are missing or damaged."""
    folder = Path(folder).expanduser()
    if not (folder / VOCABULARY).is_file() and bpe.found_in(folder) is not None:
        return of_openai(bpe.load(folder), order)
    try:
        told, listed = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (VOCABULARY, MERGES))
        tokens = [told["tokens"][str(number)] for number in range(len(told["tokens"]))]
        learnt = [(int(one["pair"][0]), int(one["pair"][1])) for one in listed]
        new = [int(one["new_id"]) for one in listed]
        whole = all(isinstance(token, str) for token in tokens) and all(
            0 <= number < len(tokens) for number in (*new, *itertools.chain(*learnt))
        )
        specials = {str(spelt): int(number) for spelt, number in told["specials"].items()}
        spelling = told.get("spelling", "own")
        SPELLINGS[spelling]  # or it is damaged
    except OSError as error:
        wanted = f"({VOCABULARY}, {MERGES}), nor OpenAI's ({bpe.WANTED})"
        raise UserError(f"{folder} holds no vocabulary of the book's kind {wanted}.") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"The vocabulary in {folder} is damaged ({type(error).__name__}: {error}).") from error
    if not whole or len(learnt) > len(tokens):
        raise UserError(f"The vocabulary in {folder} is damaged: its merges are of tokens that it has not.")
    return Book(tokens, learnt, specials, order, new, spelling)


def of_openai(found: bpe.BPE, order: str = "rank") -> Book:
    """The tokens, merges and ids of a byte-level vocabulary, its letters taken for characters."""
    spelt = found.spelt()
    new = [found.ranks[pair][1] for pair in found.merges]
    return Book(sorted(spelt, key=spelt.__getitem__), found.merges, found.specials, order, new, "openai")
