"""Another head for a model that was trained to predict tokens: one that classifies texts."""

import functools
from collections.abc import Mapping

import numpy as np

from common import params
from common.config import ModelConfig


def classifier(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    num_labels: int,
    *,
    pooling: str = "none",
    causal: bool = True,
    seed: int = 0,
) -> tuple[ModelConfig, params.LazyWeights]:
    """(config, weights) of a classifier: the body as it was, and a new head `score` drawn with `seed`.

    Source: Raschka 2024, section 6.5.
    """
    changed = config.with_(num_labels=num_labels, pooling=pooling, causal=causal)
    fresh, old = params.initialise(changed, seed), params.table(config)
    makers = {
        name: functools.partial((weights if name in old and not name.startswith("score.") else fresh).__getitem__, name)
        for name in params.table(changed)
    }
    return changed, params.LazyWeights(makers)
