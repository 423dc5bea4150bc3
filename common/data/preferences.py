"""Preferences: instructions with a chosen and a rejected answer, laid out in pairs of rows.

Source: Raschka, *Build a Large Language Model (From Scratch)*, bonus material of chapter 7, preference tuning with DPO.
Shape suffixes: B pairs, T positions.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np

from common.backend import IGNORED
from common.data.examples import check_sizes, collated, fingerprint, shifted
from common.data.instructions import SUFFIXES, prompt, response
from common.data.records import records, source_path, text_field
from common.errors import UserError, unknown
from common.preference import Pairs, Preference
from common.tokenizers import Tokenizer

NAMED = ("instruction-data-with-preference",)
FIELDS = ("instruction", "input", "chosen", "rejected")
SIDES = ("chosen", "rejected")  # the order of a pair's rows

Row = Mapping[str, str]  # the fields above, and output if it is there


def _book(prompt_ids: np.ndarray, ids: np.ndarray) -> int:
    """The prompt and two tokens more: the empty line before the answer's heading, by GPT-2's tokenizer."""
    return len(prompt_ids) + 2


def _exact(prompt_ids: np.ndarray, ids: np.ndarray) -> int:
    """What prompt and row have in common: the prompt, but for a last token that its answer has changed."""
    most = min(len(prompt_ids), len(ids))
    differs = np.flatnonzero(prompt_ids[:most] != ids[:most])
    return int(differs[0]) if differs.size else most


MASKS = {"book": _book, "exact": _exact}  # tokens at the start of a row that do not count


def read_preferences(source: Path | str) -> list[dict[str, str]]:
    """Rows {instruction, input, chosen, rejected}, and output where it is there: "instruction-data-with-preference", or
    a .json (a list) or .jsonl file.

    Other fields are left out. Raises UserError naming the row and the field for one that is missing, no text, or empty;
    `input` and `output` may be empty.
    """
    rows = []
    for row in records(source_path(source, NAMED), SUFFIXES):
        names = (*FIELDS, "output") if "output" in row[1] else FIELDS
        rows.append({name: text_field(row, name, empty=name in ("input", "output")) for name in names})
    return rows


def fitting(rows: Sequence[Row], tokenizer: Tokenizer, *, style: str = "alpaca", length: int) -> list[int]:
    """The indices of rows of which both answers have tokens that count within `length`; see `PreferenceExamples`."""
    return [place for place, row in enumerate(rows) if len(tokenizer.encode(prompt(row, style))) + 2 <= length]


class PreferenceExamples:
    """Rows as pairs of token rows, prompt and chosen answer before prompt and rejected answer.

    A batch is padded with `end_id` to its longest row, rounded up to `multiple`. Neither padding nor the first tokens
    of a row count, as `mask_prompt` says ("book": the prompt and two tokens more; "exact": the prompt); `end_counts`
    makes the end of an answer one of its tokens, which the book does not. Rows longer than `length` are cut, and
    `truncated` counts the answers that lost tokens; if one has none left that count, UserError says so. `reference` are
    the log-probabilities of chosen and rejected answers [n, 2] under the reference model, reduced as `preference` says.
    """

    kind, source = "pairs", "data set"

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        *,
        style: str = "alpaca",
        end_id: int,
        length: int | None = None,
        multiple: int = 1,
        mask_prompt: str = "book",
        end_counts: bool = False,
        reference: np.ndarray | None = None,
        preference: Preference,
    ):
        check_sizes(length=length, multiple=multiple)
        if mask_prompt not in MASKS:
            raise unknown("mask of the prompt", mask_prompt, MASKS)
        if not len(rows):
            raise UserError("There are no preferences to learn from.")
        self.style, self.end_id, self.length, self.multiple = style, int(end_id), length, multiple
        self.mask_prompt, self.end_counts, self.preference = mask_prompt, end_counts, preference
        self.tokens, self.labels = [], []
        self.truncated, lost = 0, []
        for place, row in enumerate(rows):
            before = prompt(row, style)
            prompt_ids = tokenizer.encode(before)
            for side in SIDES:
                ids = tokenizer.encode(before + response({"output": row[side]}, style))
                uncounted = MASKS[mask_prompt](prompt_ids, ids)
                tokens, labels, cut = shifted(ids, self.end_id, uncounted, length, end_counts=end_counts)
                self.truncated += cut
                if (labels == IGNORED).all():
                    lost.append((place, side, len(prompt_ids)))
                self.tokens.append(tokens)
                self.labels.append(labels)
        if lost:
            (place, side, size), many = lost[0], len({place for place, *_ in lost})
            raise UserError(
                f"Of {many} of {len(rows)} pairs an answer has no token that counts in {length} tokens (first: pair"
                f" {place}, {side}, whose prompt has {size}); allow longer rows, or leave these pairs out."
            )
        self.reference = None if reference is None else self._checked(reference)

    def _checked(self, reference: np.ndarray) -> np.ndarray:
        found = np.asarray(reference, np.float64)
        if found.shape != (len(self), 2):
            raise UserError(f"Reference log-probabilities are {list(found.shape)}; {len(self)} pairs need [n, 2].")
        if not np.isfinite(found).all():
            place = int(np.argwhere(~np.isfinite(found))[0][0])
            raise UserError(f"The reference log-probabilities of pair {place} are {found[place].tolist()}.")
        return found

    def with_reference(self, reference: np.ndarray) -> Self:
        """The same pairs with log-probabilities [n, 2] of the reference model."""
        made = copy(self)
        made.reference = made._checked(reference)
        return made

    def __len__(self) -> int:
        return len(self.tokens) // 2

    def rows(self, indices: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, labels) int32, both [..., 2B, T], of pairs [..., B]: chosen, rejected, chosen, rejected, …"""
        chosen = np.asarray(indices)
        both = (2 * chosen[..., None] + np.arange(2)).reshape(*chosen.shape[:-1], -1)
        return collated(self.tokens, self.labels, both, self.end_id, self.multiple, self.length)

    def gather(self, indices: np.ndarray | int) -> tuple[np.ndarray, Pairs]:
        """(inputs [..., 2B, T], `Pairs` of the same rows) of pairs [..., B]; see `rows`."""
        inputs, labels = self.rows(indices)
        if self.reference is not None:
            reference = self.reference[np.asarray(indices)].reshape(labels.shape[:-1])
        elif self.preference.needs_reference:
            raise UserError(f"The loss {self.preference.loss!r} needs a reference's log-probabilities; none are given.")
        else:
            reference = np.zeros(labels.shape[:-1])
        return inputs, Pairs(labels, reference, self.preference)

    def describe(self) -> dict[str, Any]:
        """What identifies these pairs: their number, the SHA-256 of tokens and labels, and how they were laid out. The
        loss and the reference are not part of it: they belong to the model's side of a run."""
        names = ("style", "length", "mask_prompt", "end_counts", "end_id", "multiple")
        settings = {name: getattr(self, name) for name in names}
        return {"pairs": len(self), "sha256": fingerprint(self.tokens, self.labels), **settings}
