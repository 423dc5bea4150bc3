"""Losses on instructions, and answers to them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common import backend as door
from common.backend import IGNORED
from common.config import SamplingConfig
from common.data import instructions
from common.data.windows import Examples
from common.tokenizers import Tokenizer


def loss(model: door.Model, examples: Examples, batch: int, count: int | None = None) -> float:
    """Mean loss in nats over the counted tokens of the first `count` examples (None: all), `batch` at once."""
    count = len(examples) if count is None else min(count, len(examples))
    total = tokens = 0.0
    for start in range(0, count, batch):
        inputs, targets = examples.gather(np.arange(start, min(start + batch, count)))
        counted = int((targets != IGNORED).sum())
        total += counted * model.loss(inputs, targets) if counted else 0.0
        tokens += counted
    return total / max(1, tokens)


def answers(
    model: door.Model,
    tokenizer: Tokenizer,
    rows: Sequence[instructions.Row],
    style: str,
    sampling: SamplingConfig,
    batch: int,
) -> Iterator[dict[str, Any]]:
    """Every row with the model's answer as "model_response", without prompt and heading; `batch` rows at once.

    Rows at once get as many new tokens as fit behind the longest of their prompts; a prompt that fills the context gets
    none.
    """
    context, sampling = model.config.context_length, sampling.with_(tokens=tokenizer.vocab_size)
    prompts = [tokenizer.encode(instructions.prompt(row, style)).tolist() for row in rows]
    for start in range(0, len(rows), batch):
        chosen = range(start, min(start + batch, len(rows)))
        longest = max((len(prompts[i]) for i in chosen if len(prompts[i]) < context), default=context)
        room = min(sampling.max_new_tokens, context - longest)
        fits = [i for i in chosen if room > 0 and len(prompts[i]) < context]
        new = model.generate([prompts[i] for i in fits], sampling.with_(max_new_tokens=room)) if fits else []
        texts = dict(zip(fits, map(tokenizer.decode, new), strict=True))
        for i in chosen:
            yield {**rows[i], "model_response": instructions.answer(texts.get(i, ""), style)}
