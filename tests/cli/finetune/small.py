"""What the tests of this folder share: a model as small as can be, a run of four steps, and what it logs."""

import json

from common.config import GPTConfig

BYTES = GPTConfig(256, 96, 16, 2, 2, ff_dim=32)
EVALUATED = ["--eval-every", 2, "--eval-batches", 1]
FEW = ["--steps", 4, "--batch-size", 2, "--learning-rate", 0.01, *EVALUATED]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").open()]
