"""A run that meets a number that is none stops, and says in which text."""

from types import SimpleNamespace

import numpy as np
import pytest

from common import backend, run
from common.config import TrainConfig
from common.data.windows import Batches, Windows
from common.errors import UserError

WINDOWS = Windows(np.arange(60) % 7, 5)


class Breaks:
    """A model whose third step gives these numbers."""

    def __init__(self, loss, norm):
        self.results = iter([(1.0, 1.0), (1.0, 1.0), (loss, norm)])
        self.seen = []

    def train_step(self, inputs, targets):
        self.seen.append(inputs)
        return backend.StepResult(*next(self.results))

    def loss(self, inputs, targets):
        return 1.0


@pytest.mark.parametrize(
    ("loss", "norm", "told"),
    [
        (np.nan, 1.0, "loss of step 2 is nan"),
        (np.inf, 1.0, "loss of step 2 is inf"),
        (1.0, np.inf, "norm of step 2 is inf"),
    ],
)
def test_training_stops_at_what_is_no_number_and_names_the_windows(loss, norm, told):
    batches = Batches(WINDOWS, 2, seed=4, accumulate=2)
    model = Breaks(loss, norm)
    more = {"eval_every": 2, "evaluate": lambda model: {"held_out": model.loss(*WINDOWS.gather(np.arange(2)))}}
    steps = run.train(model, batches, TrainConfig(steps=5), start=0, until=5, **more)
    with pytest.raises(UserError, match=told) as stopped:
        list(steps)
    named = [int(word) for word in str(stopped.value).split("windows ")[1].split(" of")[0].split(", ")]
    np.testing.assert_array_equal(WINDOWS.gather(np.array(named).reshape(2, 2))[0], model.seen[-1])
    assert len(model.seen) == 3


@pytest.mark.parametrize("count", [1, 8, 11, 10_000])
def test_held_out_windows_weigh_the_same_however_many_are_computed_at_once(count):
    calls = []

    def loss(inputs, targets):
        calls.append(len(inputs))
        return float(inputs.mean())

    model, windows = SimpleNamespace(loss=loss), Windows(np.arange(200), 8)
    found = run.held_out_loss(model, windows, count)
    assert found == pytest.approx(windows.gather(np.arange(min(count, len(windows))))[0].mean(), rel=1e-12)
    assert max(calls) <= run.EVALUATED
    assert sum(calls) == min(count, len(windows))
