"""Losses on instructions, and answers to them."""

from collections.abc import Iterator, Sequence
from typing import Any

from common import backend as door
from common.backend import IGNORED
from common.config import SamplingConfig
from common.data import instructions
from common.errors import UserError
from common.tokenizers import Tokenizer


def loss(model: door.Model, examples: instructions.InstructionExamples, batch: int, count: int | None = None) -> float:
    """Mean loss in nats over the counted tokens of the first `count` examples that have some (None: all), `batch` at
    once. UserError where none has."""
    chosen = examples.answered[:count]
    if not len(chosen):
        raise UserError(f"None of {len(examples)} instructions has a token that counts; there is no loss of them.")
    total = tokens = 0
    for start in range(0, len(chosen), batch):
        inputs, targets = examples.gather(chosen[start : start + batch])
        counted = int((targets != IGNORED).sum())
        total += counted * model.loss(inputs, targets)
        tokens += counted
    return total / tokens


def rooms(context: int, tokenizer: Tokenizer, rows: Sequence[instructions.Row], style: str, most: int) -> list[int]:
    """How many tokens each answer can have: `most`, or what fits behind its prompt; 0 where that fills the context."""
    return [max(0, min(most, context - len(one))) for one in _prompts(tokenizer, rows, style)]


def answers(
    model: door.Model,
    tokenizer: Tokenizer,
    rows: Sequence[instructions.Row],
    style: str,
    sampling: SamplingConfig,
    batch: int,
) -> Iterator[dict[str, Any]]:
    """Every row with the model's answer as "model_response", without prompt and heading; `batch` rows at once.

    How long an answer may be depends on its own prompt (see `rooms`), and what is drawn on its place in the batch.
    """
    context, sampling = model.config.context_length, sampling.with_(tokens=tokenizer.vocab_size)
    prompts, room = _prompts(tokenizer, rows, style), rooms(context, tokenizer, rows, style, sampling.max_new_tokens)
    for start in range(0, len(rows), batch):
        chosen = range(start, min(start + batch, len(rows)))
        new: dict[int, list[int]] = {i: [] for i in chosen}
        going = [i for i in chosen if room[i]]
        while going:  # as far as the least room reaches; the others go on from there
            steps = min(room[i] - len(new[i]) for i in going)
            places = [i if i in going else going[0] for i in chosen]  # who is done keeps a place, which nobody reads
            made = model.generate([prompts[i] + new[i] for i in places], sampling.with_(max_new_tokens=steps))
            for i, tokens in zip(chosen, made, strict=True):
                if i in going:
                    new[i] += tokens
                    if len(tokens) < steps or len(new[i]) == room[i]:
                        going.remove(i)
        for i in chosen:
            yield {**rows[i], "model_response": instructions.answer(tokenizer.decode(new[i]), style)}


def _prompts(tokenizer: Tokenizer, rows: Sequence[instructions.Row], style: str) -> list[list[int]]:
    return [tokenizer.encode(instructions.prompt(row, style)).tolist() for row in rows]
