"""The smallest vocabulary that can say everything: one token per UTF-8 byte."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from common.tokenizers.base import checked_ids, utf8


class Bytes:
    """Ids 0 to 255 are the bytes of the text in UTF-8; there is no end token."""

    name = "bytes"
    vocab_size = 256
    end_token = None

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids [T] int32; `special` changes nothing, since this vocabulary has no control tokens."""
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The ids themselves, as bytes."""
        return bytes(checked_ids(ids, self))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, Any]:
        """Name and sizes as plain data."""
        return {"name": self.name, "vocab_size": self.vocab_size, "end_token": self.end_token}
