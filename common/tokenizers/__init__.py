"""Text to integer ids and back. Models never see a tokenizer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.errors import UserError, unknown
from common.tokenizers import book, bpe, words
from common.tokenizers.base import Stream, Tokenizer
from common.tokenizers.bytes import Bytes
from common.tokenizers.gpt2 import GPT2
from common.tokenizers.huggingface import FILE, HuggingFace

__all__ = [
    "FROM_FILES",
    "LEARNERS",
    "NAMES",
    "TRAINED",
    "Stream",
    "Tokenizer",
    "holds",
    "kept",
    "tokenizer",
    "vocabulary_files",
]


def _bytes(vocab: Path | str | None) -> Tokenizer:
    if vocab is not None:
        raise UserError(f"Tokenizer 'bytes' needs no vocabulary; leave {str(vocab)!r} out, or choose another one.")
    return Bytes()


def _of_files(
    name: str, load: Callable[[Path | str], Tokenizer], kind: str | None = None
) -> Callable[[Path | str | None], Tokenizer]:
    def made(vocab: Path | str | None) -> Tokenizer:
        if vocab is None:
            train = f"; `parallax tokenizer train TEXT --kind {kind}` makes one" if kind else ""
            raise UserError(f"Tokenizer {name!r} needs the folder of its vocabulary (--vocab){train}.")
        return load(vocab)

    return made


GREEDY = book.NAMES["left to right"]  # the same vocabulary, merged as the book's encoder merges
TRAINED = {"bpe": bpe, "book": book, "words": words}  # modules with `train` and `load`
LEARNERS = {name: module.train for name, module in TRAINED.items()}
LEARNERS[GREEDY] = partial(book.train, order="left to right")
_MAKERS: dict[str, Callable[[Path | str | None], Tokenizer]] = {"bytes": _bytes, "gpt2": GPT2}
_MAKERS |= {name: _of_files(name, module.load, name) for name, module in TRAINED.items()}
_MAKERS[GREEDY] = _of_files(GREEDY, partial(book.load, order="left to right"), "book")
_MAKERS["hf"] = _of_files("hf", HuggingFace)
NAMES = tuple(_MAKERS)
FROM_FILES = (*TRAINED, GREEDY, "hf")  # whose vocabularies have any size, and are kept with what is trained with them
_FILES = {
    "gpt2": "merges.txt",
    "bpe": bpe.MERGES,
    "book": book.MERGES,
    GREEDY: book.MERGES,
    "words": words.FILE,
    "hf": FILE,
}
_ALL_FILES = (bpe.ENCODER, bpe.MERGES, *bpe.OTHER_NAMES, book.VOCABULARY, book.MERGES, words.FILE, FILE)


def holds(folder: Path, name: str) -> bool:
    """Whether a folder (of weights, of a run) brings the vocabulary of that tokenizer along."""
    return name in _FILES and (folder / _FILES[name]).is_file()


def kept(folder: Path) -> list[str]:
    """The tokenizers whose vocabularies a folder holds; of the book's two the one that it was written by."""
    found = [name for name in FROM_FILES if holds(folder, name)]
    book_names = set(book.NAMES.values())
    own = book.kept_as(folder) if book_names & set(found) else None
    return [name for name in found if name == own or name not in book_names]


def vocabulary_files(folder: Path) -> list[Path]:
    """The files of vocabularies, of any kind, that lie in a folder: what has to go where its weights go."""
    return [folder / name for name in _ALL_FILES if (folder / name).is_file()]


def tokenizer(name: str, vocab: Path | str | None = None) -> Tokenizer:
    """The tokenizer of that name; `vocab` is the folder of its vocabulary files, where it has any.

    Raises UserError for an unknown name and for a vocabulary that is missing or not the right one.
    """
    if name not in _MAKERS:
        raise unknown("tokenizer", name, NAMES)
    return _MAKERS[name](vocab)
