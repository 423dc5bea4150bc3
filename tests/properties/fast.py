"""What tests of fast paths share: batches of unequal counts, and gradients held against each other."""

import numpy as np
import pytest

from common import compare, params
from common.backend import IGNORED

EXACT = 1e-12
LONG = 300  # rows of a batch, so that a chunk is full and another is not


def batch(config, rows=LONG // 20, length=20):
    """Ids and targets of unequal counts: a row without any, and single places."""
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[0], targets[3, ::2], targets[-1, -1] = IGNORED, IGNORED, IGNORED
    return ids[:, :-1], targets


def check_gradients(plain, fast, ids, targets, dropout=None):
    want, got = plain.gradients(ids, targets, dropout), fast.gradients(ids, targets, dropout)
    assert got.value == pytest.approx(want.value, rel=EXACT)
    table = params.table(plain.config)
    for name, gradient in want.grads.items():
        if not table[name].dead:
            assert compare.rms(got.grads[name] - gradient) <= EXACT * compare.rms(gradient), name


def trained(model, settings, data, steps=3):
    """(losses and norms, weights, slots) of some steps of a run."""
    model.start_training(settings)
    told = [model.train_step(*data) for _ in range(steps)]
    return [n for one in told for n in (one.loss, one.grad_norm)], model.weights(), model.optimizer_slots()
