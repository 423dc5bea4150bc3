"""The model that small runs train, and the words of short ones."""

from common.config import GPTConfig

BYTES = GPTConfig(256, 32, 16, 2, 2, ff_dim=32)
FAST = ["--eval-every", 4, "--batch-size", 4]
