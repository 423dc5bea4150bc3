"""Text to integer ids and back. Models never see a tokenizer."""

from collections.abc import Callable
from pathlib import Path

from common.errors import UserError, unknown
from common.tokenizers.base import Stream, Tokenizer
from common.tokenizers.bytes import Bytes
from common.tokenizers.gpt2 import GPT2

__all__ = ["NAMES", "Stream", "Tokenizer", "tokenizer"]


def _bytes(vocab: Path | str | None) -> Tokenizer:
    if vocab is not None:
        raise UserError(f"Tokenizer 'bytes' needs no vocabulary; leave {str(vocab)!r} out, or choose 'gpt2'.")
    return Bytes()


_MAKERS: dict[str, Callable[[Path | str | None], Tokenizer]] = {"bytes": _bytes, "gpt2": GPT2}
NAMES = tuple(_MAKERS)


def tokenizer(name: str, vocab: Path | str | None = None) -> Tokenizer:
    """The tokenizer of that name; `vocab` is the folder of its vocabulary files, where it has any.

    Raises UserError for an unknown name and for a vocabulary that is missing or not the right one.
    """
    if name not in _MAKERS:
        raise unknown("tokenizer", name, NAMES)
    return _MAKERS[name](vocab)
