"""C2's hundred steps: a rounding of the initial weights stays a rounding, so that 1e-12 tells bugs from luck."""

import numpy as np
import pytest

from common import backend as door
from common import params
from common.cases import CASES
from common.compare import difference
from common.parity import noise, steps
from common.parity.thresholds import EXACT, ROUNDOFF
from common.parity.trial import Session, Trial

TRAINED = [name for name, case in CASES.items() if not case.path and case.train_steps]


@pytest.mark.full_for(*(name for name in TRAINED if name != "gpt_latent"))
@pytest.mark.parametrize("name", TRAINED)
def test_a_rounding_of_the_weights_does_not_grow(name):
    """It has to end well below what is allowed, whatever framework or machine makes the other roundings."""
    trial = Trial(Session({"torch": door.load("torch")}), CASES[name])
    exact = {name: weight.astype(np.float64) for name, weight in trial.case.weights().items()}
    still, moved = (_ended(trial, weights) for weights in (exact, noise.nudged(exact, ROUNDOFF["float64"], 0)))
    grown = {part: difference(part, moved[part], value).relative for part, value in still.items()}
    assert 0 < max(grown.values()) < EXACT / 5, max(grown, key=grown.get)


def _ended(trial, weights):
    """Weights and averages after the last step, of all parameters that have a gradient."""
    model, table = trial.build("torch", weights=weights), params.table(trial.case.config)
    steps.train(model, trial.case)
    found = model.weights() | model.optimizer_slots()
    return {n: value for n, value in found.items() if not table[n if n in table else n.rpartition(".")[0]].dead}
