"""The indexer of sparse attention in training: its loss is added by its weight, and it learns to choose."""

import numpy as np
import pytest

from common import params
from common.backend import IGNORED
from common.config import GPTConfig, TrainConfig
from common.variants.rotary import Rotary
from common.variants.sparse import Sparse

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims

BOUND = 1e-12  # float64 rounding in sums of another order: 1e-14 here
LENGTH = 12
PLAIN = Sparse(2, rotary=Rotary(base=100.0), top_k=5, index_heads=3, index_dim=6, index_rotary=Rotary(base=50.0))
CONFIG = GPTConfig(61, 24, 32, 2, 4, ff_dim=44, tie_embeddings=False, attention=PLAIN)
TAUGHT = CONFIG.with_(attention=PLAIN.with_(index_loss=0.7))


def trained_value(model, ids, targets):
    if hasattr(model, "loss_of"):
        return float(model.loss_of(model.params, ids, targets))
    return model.gradients(ids, targets).value


@pytest.mark.full_for("jax")
def test_training_adds_the_indexers_loss_and_evaluation_does_not(model_of, tokens, name):
    """The mean over queries, of every layer; micro-batches weigh like their targets, as with a balance of experts."""
    ids, model = tokens(3, LENGTH + 1), model_of(name, TAUGHT)
    ids, targets = ids[:, :-1], ids[:, 1:].copy()
    targets[1, :7], targets[2] = IGNORED, IGNORED
    assert model.loss(ids, targets) == model_of(name, CONFIG).loss(ids, targets)
    taps = model.forward(ids, taps=("*.indexer_loss",)).taps
    of_rows = 0.7 * sum(loss.mean(1) for loss in taps.values())
    want = model.loss(ids, targets) + of_rows.mean()
    assert trained_value(model, ids, targets) == pytest.approx(want, rel=BOUND)
    alone = [model.loss(ids[[row]], targets[[row]]) + of_rows[row] for row in (0, 1)]
    want = np.average(alone, weights=(targets != IGNORED).sum(1)[:2])
    assert trained_value(model, ids[:, None], targets[:, None]) == pytest.approx(want, rel=BOUND)


@pytest.mark.full_for("jax")
def test_an_indexer_learns_if_its_loss_has_a_weight(fresh_model, tokens, wing):
    """And comes nearer to attention; without a weight it stays as it is, to the last bit."""
    ids, weights = tokens(2, LENGTH + 1), params.randomise(TAUGHT, 20)
    ids, targets = ids[:, :-1], ids[:, 1:]
    far = {}
    for weight in (0.0, 0.7):
        model = fresh_model(wing, TAUGHT.with_(attention=PLAIN.with_(index_loss=weight)), weights=weights)
        model.start_training(TrainConfig(steps=8, learning_rate=1e-2))
        for _ in range(8):
            model.train_step(ids, targets)
        still = {key: np.array_equal(value, weights[key]) for key, value in model.weights().items()}
        assert {value for key, value in still.items() if ".index_" in key} == {weight == 0}
        taps = model.forward(ids, taps=("*.indexer_loss",)).taps
        far[weight] = sum(loss.mean() for loss in taps.values())
    assert far[0.7] < 0.8 * far[0.0]
