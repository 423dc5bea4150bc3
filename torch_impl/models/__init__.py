"""Model families by name."""

from .gpt import GPT

MODELS = {"gpt": GPT}
