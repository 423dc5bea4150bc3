"""A model with more tokens than it was made for: rows behind those of its embedding and head, all else as it was."""

from collections.abc import Mapping

import numpy as np

from common import params
from common.config import ModelConfig
from common.errors import UserError


def padded_size(size: int, multiple: int) -> int:
    """The least multiple that is as large: the rows of a padded vocabulary."""
    return -(-size // multiple) * multiple


def padded(
    config: ModelConfig, weights: Mapping[str, np.ndarray], multiple: int, seed: int = 0
) -> tuple[ModelConfig, Mapping[str, np.ndarray]]:
    """(config, weights) whose vocabulary is a multiple: rows that no token has follow those that there are."""
    more = padded_size(config.vocab_size, multiple) - config.vocab_size
    return grown(config, weights, more, seed) if more else (config, weights)


def grown(
    config: ModelConfig, weights: Mapping[str, np.ndarray], tokens: int, seed: int = 0, known: int | None = None
) -> tuple[ModelConfig, Mapping[str, np.ndarray]]:
    """(config, weights) with rows for `tokens` more tokens, [V + tokens, E] float32, drawn as initial weights are.

    Old rows stay to the bit, so old tokens get the logits that they had; a tied head stays tied, and one of its own
    stays without a bias. Of a padded vocabulary, of which only so many rows are `known` tokens, the new ones take the
    rows behind these first, which are drawn anew: training has taught those to be unlikely. Raises UserError for a
    number that is none.
    """
    if not isinstance(tokens, int) or tokens < 1:
        raise UserError(f"A vocabulary grows by a whole number of tokens > 0, not by {tokens}.")
    known = config.vocab_size if known is None else known
    larger = config.with_(vocab_size=max(config.vocab_size, known + tokens))
    before, changed = (params.table(one) for one in (config, config.with_(vocab_size=config.vocab_size + 1)))

    def longer(parameter: params.Parameter) -> np.ndarray:
        drawn = params.draw(seed, f"grown/{parameter.name}", (tokens, parameter.shape[1]))
        old = np.asarray(weights[parameter.name])
        return np.concatenate([old[:known], (parameter.std * drawn).astype(old.dtype), old[known + tokens :]])

    makers = {}
    for name, parameter in params.table(larger).items():
        same = changed[name].shape == before[name].shape
        makers[name] = (lambda name=name: weights[name]) if same else (lambda own=parameter: longer(own))
    return larger, params.LazyWeights(makers)
