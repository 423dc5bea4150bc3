"""Any `tokenizer.json` that writes bytes, run by Hugging Face's `tokenizers`: GPT-2's kind, and Llama's.

Text becomes ids by that library; ids become bytes here, so that text can be shown while it arrives.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.errors import UserError
from common.tokenizers.base import checked_ids, fingerprint, utf8
from common.tokenizers.bpe import FROM_LETTERS

FILE = "tokenizer.json"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "▁"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")  # as the field writes it, the first there is


class HuggingFace:
    """What a `tokenizer.json` describes. Tokens that it puts around a text (as `<s>`) are left out."""

    name = "hf"

    def __init__(self, vocab: Path | str):
        from tokenizers import Tokenizer as Theirs

        path = Path(vocab).expanduser()
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"There is no {FILE} at {vocab}; give the file, or the folder that holds it.")
        try:
            self._theirs = Theirs.from_file(str(path))
            self._told = json.loads(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{path} cannot be read as a tokenizer ({error}).") from error
        kinds = _kinds(self._told.get("decoder"))
        if "ByteLevel" not in kinds and not {"ByteFallback", "Metaspace"} & kinds:
            named = ", ".join(sorted(kinds)) or "nothing"
            raise UserError(f"{path} decodes by {named}; known are ByteLevel, and ByteFallback or Metaspace.")
        self.path, self._letters = path, "ByteLevel" in kinds
        self._strips = not self._letters and ({"Strip", "Metaspace"} & kinds) != set()
        self.vocab_size = max(self._theirs.get_vocab(with_added_tokens=True).values()) + 1
        self._added = {number: one.content for number, one in self._theirs.get_added_tokens_decoder().items()}
        spelt = {one: number for number, one in self._added.items()}
        self.end_token = next((spelt[end] for end in ENDS if end in spelt), None)

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids [T] int32; special tokens spelt out in the text are plain text unless `special` is True."""
        utf8(text)
        self._theirs.encode_special_tokens = not special
        return np.array(self._theirs.encode(text, add_special_tokens=False).ids, np.int32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; an id outside the vocabulary raises UserError. A word's space in front is kept."""
        return b"".join(map(self._bytes, checked_ids(ids, self)))

    def _bytes(self, number: int) -> bytes:
        if number in self._added:
            return self._added[number].encode()
        token = self._theirs.id_to_token(number)
        if token is None:  # a gap in the vocabulary
            return b""
        if self._letters:
            return bytes(FROM_LETTERS[letter] for letter in token)
        byte = BYTE.fullmatch(token)
        return bytes([int(byte.group(1), 16)]) if byte else token.replace(SPACE, " ").encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, as the library gives it: without the space that it put in front of all. Bytes that are
        not UTF-8 show as U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._strips else text

    def save(self, folder: Path | str) -> None:
        """Write the same file into a folder."""
        files.write_text(files.output_folder(Path(folder)) / FILE, self.path.read_text(encoding="utf-8"))

    def describe(self) -> dict[str, Any]:
        """Name, sizes, the kind of its model and the checksum of the file's content as plain data."""
        sizes = {"name": self.name, "vocab_size": self.vocab_size, "end_token": self.end_token}
        sizes |= {"model": self._told.get("model", {}).get("type"), "specials": len(self._added)}
        return {**sizes, "sha256": fingerprint(self._told)}


def _kinds(decoder: Any) -> set[str]:
    """The types of a decoder and of those that it is made of."""
    if not isinstance(decoder, dict):
        return set()
    return {decoder.get("type", "")}.union(*map(_kinds, decoder.get("decoders", []))) - {"Sequence"}
