"""GPT-2's byte-pair encoding, computed by tiktoken from vocabulary files that are already here.

The vocabulary is two files, known under two pairs of names: `encoder.json` and `vocab.bpe` (OpenAI), `vocab.json` and
`merges.txt` (Hugging Face); the bytes are the same and are checked by SHA-256. Nothing is ever downloaded here.
Source: Radford et al. 2019, section 2.2.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import home
from common.tokenizers.base import checked_ids, utf8

ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
FILE_NAMES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
TIKTOKEN_BASE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # part of its cache's file names
END_OF_TEXT, END_OF_TEXT_ID = "<|endoftext|>", 50256


@dataclass(frozen=True)
class Vocabulary:
    """The two files of GPT-2's vocabulary, and in words where they were found."""

    encoder: Path
    merges: Path
    source: str

    def verify(self) -> None:
        """Raise UserError if a file is not GPT-2's, by its SHA-256."""
        for path, sha256 in ((self.encoder, ENCODER_SHA256), (self.merges, MERGES_SHA256)):
            try:
                actual = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise UserError(f"Cannot read {path}: {error.strerror}.") from error
            if actual != sha256:
                sums = f"its sha256 is {actual[:16]}…, expected {sha256[:16]}…"
                raise UserError(f"{path} is not GPT-2's: {sums}; replace it by a fresh copy.")


def in_folder(folder: Path, source: str) -> Vocabulary | None:
    """The vocabulary in that folder under either pair of names, or None."""
    for encoder, merges in FILE_NAMES:
        if (folder / encoder).is_file() and (folder / merges).is_file():
            return Vocabulary(folder / encoder, folder / merges, source)
    return None


def _fetched() -> Vocabulary | None:
    for folder in sorted(home().glob("weights/*/")):
        if found := in_folder(folder, "fetched files"):
            return found
    return None


def _tiktoken_cache() -> Vocabulary | None:
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    if not folder:  # tiktoken's way of switching its cache off
        return None
    paths = [Path(folder) / hashlib.sha1((TIKTOKEN_BASE + name).encode()).hexdigest() for name in FILE_NAMES[0]]
    return Vocabulary(*paths, "tiktoken's cache") if all(path.is_file() for path in paths) else None


def find(folder: Path | str | None = None) -> Vocabulary:
    """GPT-2's vocabulary: in `folder`, else in `PARALLAX_VOCAB`, else fetched, else in tiktoken's cache.

    A folder that is named, as argument or in the environment, must hold the files; it is never passed over.
    """
    for named, source in ((folder, "the given folder"), (os.environ.get("PARALLAX_VOCAB"), "PARALLAX_VOCAB")):
        if named:
            found = in_folder(Path(named).expanduser(), source)
            if found is None:
                wanted = " or ".join(" and ".join(names) for names in FILE_NAMES)
                raise UserError(f"{named} ({source}) is not a folder with GPT-2's vocabulary; expected are {wanted}.")
            return found
    found = _fetched() or _tiktoken_cache()
    if found is None:
        raise UserError(
            "GPT-2's vocabulary is not on this machine: run `parallax fetch gpt2-124m`, or set PARALLAX_VOCAB to a"
            " folder that holds encoder.json and vocab.bpe (the same files are also called vocab.json and merges.txt)."
        )
    return found


@contextlib.contextmanager
def _without_tiktoken_cache() -> Iterator[None]:
    """tiktoken would copy local files into its cache as well, and fail where that folder is read-only."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


class GPT2:
    """GPT-2's 50257 tokens; `<|endoftext|>` (50256) ends a document."""

    name = "gpt2"
    vocab_size = 50257
    end_token = END_OF_TEXT_ID

    def __init__(self, vocab: Path | str | None = None):
        import tiktoken
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks
        from tiktoken_ext.openai_public import r50k_pat_str

        self.vocabulary = find(vocab)
        self.vocabulary.verify()
        with _without_tiktoken_cache():
            ranks = data_gym_to_mergeable_bpe_ranks(str(self.vocabulary.merges), str(self.vocabulary.encoder))
        self._encoding = tiktoken.Encoding(
            self.name,
            pat_str=r50k_pat_str,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: END_OF_TEXT_ID},
            explicit_n_vocab=self.vocab_size,
        )

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids [T] int32; `<|endoftext|>` in the text becomes id 50256 only if `special` is True."""
        utf8(text)  # tiktoken would put U+FFFD where a character cannot be encoded
        allowed = {END_OF_TEXT} if special else set()
        return np.array(self._encoding.encode(text, allowed_special=allowed, disallowed_special=()), np.int32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; an id outside 0 to 50256 raises UserError."""
        return self._encoding.decode_bytes(checked_ids(ids, self))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, Any]:
        """Name, sizes and the vocabulary's checksums and origin as plain data."""
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "end_token": self.end_token,
            "encoder_sha256": ENCODER_SHA256,
            "merges_sha256": MERGES_SHA256,
            "source": self.vocabulary.source,
        }
