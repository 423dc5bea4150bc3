"""What every decoding loop shares: padding, the rule for prompts that outgrow the context, and the rows so far."""

from collections.abc import Sequence

import numpy as np

from common.backend import check_ids
from common.config import ModelConfig, SamplingConfig
from common.errors import UserError


def crop_prompts(prompts: Sequence[Sequence[int]], sampling: SamplingConfig, config: ModelConfig) -> list[list[int]]:
    """The prompts as lists of ids. The rule: every token but the last new one must be readable in the context, so
    prompt + new - 1 <= context_length. overflow="error" refuses more; "crop" keeps the last `context_length` tokens.
    """
    if not len(prompts):
        raise UserError("There is no prompt; give at least one.")
    if any(np.ndim(prompt) != 1 for prompt in prompts):
        raise UserError("Prompts must be a list of rows of token ids, one row for every text.")
    rows = [check_ids(np.asarray(prompt, dtype=None), config, "prompt").tolist() for prompt in prompts]
    for number, row in enumerate(rows):
        if not row:
            raise UserError(f"Prompt {number} is empty; a model needs at least one token to continue.")
        total = len(row) + sampling.max_new_tokens - 1
        if sampling.overflow == "error" and total > config.context_length:
            raise UserError(
                f"Prompt {number} has {len(row)} tokens and {sampling.max_new_tokens} more are asked for, but the"
                f" context holds {config.context_length}: shorten one of them, or choose overflow 'crop'."
            )
    known = config.vocab_size if sampling.tokens is None else sampling.tokens
    if known > config.vocab_size:
        raise UserError(f"{known} tokens are to choose from, and the model's vocabulary has {config.vocab_size}.")
    if sampling.end_token is not None and sampling.end_token >= known:
        raise UserError(f"The end token {sampling.end_token} is outside the vocabulary (0 to {known - 1}).")
    return [row[-config.context_length :] for row in rows]


def padded(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(ids [B, T], positions [B, T]) of rows padded on the left; padding has id 0 and position -1."""
    width = max(map(len, rows)) if width is None else width
    ids, positions = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = tokens
        positions[row, width - len(tokens) :] = np.arange(len(tokens))
    return ids, positions


def context_window(
    rows: Sequence[Sequence[int]], config: ModelConfig, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The last `context_length` tokens of every row, padded on the left."""
    return padded([row[-config.context_length :] for row in rows], width)


class Progress:
    """The rows of a batch while they grow. A row ends with the end token (not kept) or after max_new_tokens."""

    def __init__(self, rows: list[list[int]], sampling: SamplingConfig, config: ModelConfig):
        self.rows = [list(row) for row in rows]
        self.sampling, self.config = sampling, config
        self.lengths = np.array([len(row) for row in rows])
        self.new: list[list[int]] = [[] for _ in rows]
        self.ended = np.zeros(len(rows), bool)
        self.steps = 0

    @property
    def finished(self) -> bool:
        return bool(self.ended.all()) or self.steps >= self.sampling.max_new_tokens

    @property
    def steps_in_context(self) -> int:
        """How many tokens can be chosen before the longest row outgrows the context."""
        room = self.config.context_length - int(self.lengths.max()) + 1
        return min(self.sampling.max_new_tokens, room)

    @property
    def positions(self) -> np.ndarray:
        """Where the next token of every row will stand, counted from the row's first token. int32 [B]."""
        return (self.lengths + self.steps).astype(np.int32)

    @property
    def last_tokens(self) -> np.ndarray:
        """The newest token of every row, int32 [B]."""
        return np.array([row[-1] for row in self.rows], np.int32)

    @property
    def last_positions(self) -> np.ndarray:
        """Where the newest token of every row stands, int32 [B]."""
        return self.positions - 1

    def take(self, tokens: Sequence[int]) -> list[int | None]:
        """Append the chosen token of every row that goes on. Returns what was added (None: the row has ended)."""
        added: list[int | None] = []
        for row, token in enumerate(int(t) for t in tokens):
            self.ended[row] |= token == self.sampling.end_token
            added.append(None if self.ended[row] else token)
            self.rows[row].append(token)  # an ended row is fed on with its batch; nobody reads it
            if not self.ended[row]:
                self.new[row].append(token)
        self.steps += 1
        return added
