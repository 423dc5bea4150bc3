"""A run that meets a number that is none stops, and says in which text; one that is killed while it is kept goes on."""

import shutil
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from common import backend, params, run
from common.config import GPTConfig, TrainConfig
from common.data.windows import Batches, Windows
from common.errors import UserError
from common.weights.checkpoint import load_checkpoint

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


SMALL, TRAIN = GPTConfig(256, 8, 4, 2, 1, ff_dim=4), TrainConfig()
STATE = run.State(
    SMALL,
    params.initialise(SMALL, 0),
    {name: np.zeros(shape, np.float32) for name, shape in params.slots(SMALL, TRAIN).items()},
)


class Killed(BaseException):
    """What nobody catches."""


def kept(folder, step):
    """A run's folder after `step`, which was the best one."""
    record = {"step": step, "train": TRAIN.to_dict(), "data": {}, "source": "", "tokenizer": "bytes", "length": 4}
    folder.save(STATE, record, [{"step": n, "held_out": 9.0 - n} for n in range(step)], best=True)


def killed_at(moment, monkeypatch):
    """Die before or after one of the steps by which a run is kept."""
    moments = count()

    def wrapped(real):
        def called(*given):
            if next(moments) == moment:
                raise Killed
            real(*given)
            if next(moments) == moment:
                raise Killed

        return called

    for name in ("_link", "write_text", "save_checkpoint"):
        monkeypatch.setattr(run, name, wrapped(getattr(run, name)))
    monkeypatch.setattr(run, "shutil", SimpleNamespace(rmtree=wrapped(shutil.rmtree)))


def test_a_run_that_is_killed_while_it_is_kept_lacks_nothing(tmp_path, monkeypatch):
    """At each moment between two of the ten: its log is whole, and its best checkpoint is the best that there was."""
    for moment in count():
        path = tmp_path / str(moment)
        folder = run.RunFolder(path, keep=2, keep_best=True)
        for step in (1, 2):
            kept(folder, step)
        with monkeypatch.context() as patched:
            killed_at(moment, patched)
            try:
                kept(folder, 3)
            except Killed:
                pass
            else:
                break
        start = run.resume(path)
        assert start.step in (2, 3), moment
        assert [line["step"] for line in start.log] == list(range(start.step)), moment
        best, loss = run.best_of(path, start.log)
        assert (load_checkpoint(best).training["step"], loss) == (start.step, 10.0 - start.step), moment
        for place in (path, tmp_path / f"{moment} elsewhere"):
            again = run.RunFolder(place, keep=2, keep_best=True, resumed=path)
            again.keep_as_best(best)
            assert load_checkpoint(again.best).training["step"] == start.step, moment
        again = run.RunFolder(path, keep=2, keep_best=True, resumed=path)
        kept(again, 4)
        assert [one.name for one in again.older.iterdir()] == [f"step-{start.step:08d}"], moment
    assert moment == 10


def test_the_best_is_what_a_folder_still_has(tmp_path):
    folder = run.RunFolder(tmp_path, keep_best=True)
    assert run.best_of(tmp_path, []) == (None, np.inf)
    kept(folder, 2)
    log = [{"step": 0, "held_out": 0.5}, {"step": 1, "held_out": 2.0}, {"step": 2}]
    assert run.best_of(tmp_path, log) == (folder.best, 2.0)  # what the log has of step 1 is gone
    assert run.best_of(tmp_path, log[:1]) == (None, np.inf)
