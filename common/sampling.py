"""How the next token is chosen: settings."""

import math
from dataclasses import dataclass
from typing import ClassVar

from common.errors import unknown
from common.record import Record, flag, number, positive_int, whole

OVERFLOWS = ("error", "crop")


@dataclass(frozen=True)
class SamplingConfig(Record):
    """How the next token is chosen. `temperature` 0 is greedy; filters act as temperature, top-k, top-p, draw.

    `end_token` ends a row and is not part of its text. `overflow` says what happens when prompt and new tokens
    do not fit in the context: "error" refuses, "crop" keeps the last `context_length` tokens (as the book does).
    `tokens` is how many ids are tokens, where the model's vocabulary has more: the others are never chosen.
    """

    LATER: ClassVar[tuple[str, ...]] = ("tokens",)

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    end_token: int | None = None
    seed: int = 0
    overflow: str = "error"
    cache: bool = True
    prefill_chunk: int | None = None
    tokens: int | None = None

    def __post_init__(self):
        positive_int(self, "max_new_tokens")
        number(self, "temperature", 0.0, 1e6, "a number >= 0 (0 is greedy)")
        if self.top_k is not None:
            positive_int(self, "top_k")
        if self.top_p is not None:
            number(self, "top_p", 1e-9, 1.0, "a number in (0, 1]")
        if self.end_token is not None:
            whole(self, "end_token", 0, math.inf, "a token id >= 0")
        flag(self, "cache")
        for name in ("prefill_chunk", "tokens"):
            if getattr(self, name) is not None:
                positive_int(self, name)
        whole(self, "seed", 0, 2**32, "a whole number in [0, 2^32)")
        if self.overflow not in OVERFLOWS:
            raise unknown("overflow rule", str(self.overflow), OVERFLOWS)
