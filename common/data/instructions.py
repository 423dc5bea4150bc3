"""Instructions with answers: read, written as prompts, and laid out so that a model learns to answer.

Source: Raschka, *Build a Large Language Model (From Scratch)*, chapter 7 and its exercises.
Shape suffixes: B batch, T positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.backend import IGNORED
from common.data.examples import check_sizes, collated, fingerprint, shifted
from common.data.labelled import Parts
from common.data.records import records, source_path, text_field
from common.errors import UserError, unknown
from common.tokenizers import Tokenizer

NAMED = ("instruction-data",)
SUFFIXES = (".json", ".jsonl")
FIELDS = ("instruction", "input", "output")
TASK = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n"
)

Row = Mapping[str, str]  # instruction, input (may be empty), output


@dataclass(frozen=True)
class Style:
    """How a row is written down: the texts before the instruction, before the input if there is one, and before the
    answer."""

    instruction: str
    input: str
    answer: str


STYLES = {
    "alpaca": Style(TASK, "\n\n### Input:\n", "\n\n### Response:\n"),
    "phi3": Style("<|user|>\n", "\n", "\n<|assistant|>:\n"),
}


def style_of(name: str) -> Style:
    """The style of that name; an unknown one is told with its near matches."""
    if name not in STYLES:
        raise unknown("prompt style", name, STYLES)
    return STYLES[name]


def prompt(row: Row, style: str) -> str:
    """The instruction and, if there is one, its input."""
    form = style_of(style)
    return form.instruction + row["instruction"] + (form.input + row["input"] if row["input"] else "")


def response(row: Row, style: str) -> str:
    """The answer with its heading; it follows the prompt directly."""
    return style_of(style).answer + row["output"]


def answer(text: str, style: str) -> str:
    """A generated text, which went on from a prompt, without the answer's heading."""
    heading = style_of(style).answer.strip()
    return text.strip().removeprefix(heading).strip()


def read_instructions(source: Path | str) -> list[dict[str, str]]:
    """Rows {instruction, input, output}: "instruction-data", or a .json (a list) or .jsonl file.

    Other fields are left out. Raises UserError naming the row and the field for one that is missing, no text, or empty;
    only `input` may be empty.
    """
    found = records(source_path(source, NAMED), SUFFIXES)
    return [{name: text_field(row, name, empty=name == "input") for name in FIELDS} for row in found]


def split_in_order(rows: Sequence[Any], train: float = 0.85, test: float = 0.1) -> Parts:
    """(train, validation, test) in the order of the rows: the first int(n * train) to train on, the next int(n * test)
    to test with, and the rest to validate with. Raises UserError if a part would be empty."""
    if not (train > 0 and test > 0 and train + test < 1):
        raise UserError(f"The shares are {train} and {test}; allowed are numbers above 0 whose sum is below 1.")
    first, second = int(len(rows) * train), int(len(rows) * test)
    rest = len(rows) - first - second
    if min(first, second, rest) < 1:
        told = f"train {first}, test {second}, validation {rest}"
        raise UserError(f"{len(rows)} rows cannot be split by {train} and {test}: a part is empty ({told}).")
    return Parts(rows[:first], rows[first + second :], rows[first : first + second])


class InstructionExamples:
    """Rows as tokens of prompt, answer and `end_id`; every token is the target of the one before it.

    A batch is padded with `pad_id` (None: `end_id`) to its longest row, rounded up to `multiple`; padding is no target.
    `mask_instruction`: nor are the tokens of the prompt, as the book counts them. Rows longer than `length` are cut:
    `truncated` counts the answers that lost tokens (their end included), `unanswered` those of which nothing is left.
    """

    kind, source = "instructions", "data set"

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        *,
        style: str = "alpaca",
        end_id: int,
        length: int | None = None,
        mask_instruction: bool = False,
        pad_id: int | None = None,
        multiple: int = 1,
    ):
        check_sizes(length=length, multiple=multiple)
        if not len(rows):
            raise UserError("There are no instructions to learn from.")
        self.style, self.length, self.multiple = style, length, multiple
        self.end_id, self.pad_id = int(end_id), int(end_id if pad_id is None else pad_id)
        self.mask_instruction = mask_instruction
        self.tokens, self.targets = [], []
        self.truncated = self.unanswered = 0
        for row in rows:
            before = prompt(row, style)
            asked = len(tokenizer.encode(before))
            ids = tokenizer.encode(before + response(row, style))
            tokens, targets, cut = shifted(ids, self.end_id, asked if mask_instruction else 0, length)
            self.truncated += cut
            self.unanswered += length is not None and asked > length
            self.tokens.append(tokens)
            self.targets.append(targets)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def answered(self) -> np.ndarray:
        """The indices of the rows that have a target that counts."""
        return np.flatnonzero([(row != IGNORED).any() for row in self.targets])

    def gather(self, indices: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) int32, both [..., B, T], of indices [..., B]."""
        return collated(self.tokens, self.targets, np.asarray(indices), self.pad_id, self.multiple, self.length)

    def describe(self) -> dict[str, Any]:
        """What identifies these examples: their number, the SHA-256 of tokens and targets, and all settings."""
        names = ("style", "length", "mask_instruction", "end_id", "pad_id", "multiple")
        settings = {name: getattr(self, name) for name in names}
        return {"instructions": len(self), "sha256": fingerprint(self.tokens, self.targets), **settings}
