"""C5: honest runs stay as close as one ulp keeps them, bugs that a loss curve hides do not; a run can change hands."""

import numpy as np
import pytest
from altered import failed, rows, session, with_config, with_methods

from common.cases import CASES
from common.parity import observed, trajectories
from common.parity.rows import Exhibit
from common.parity.trial import Session, Trial

TIER = "float32"
HANDED_ON = {(name, "exact") for names in observed.HANDED_ON.values() for name in names}


def trained_with(**changes):
    """Models whose training ignores some of its settings."""
    return with_methods(
        start_training=lambda start, train, slots=None, step=0: start(train.with_(**changes), slots, step)
    )


def forgetful(start, train, slots=None, step=0):
    """A model that takes up a run without its optimizer state."""
    start(train, None if slots is None else {name: np.zeros_like(value) for name, value in slots.items()}, step)


@pytest.mark.full
def test_two_frameworks_stay_as_close_as_one_ulp_keeps_them():
    trial = Trial(session(), CASES["gpt"])
    found = list(trajectories.for_case(trial))
    assert all(item.passed for item in found if not isinstance(item, Exhibit)), found
    assert {(item.what, item.tier) for item in found if not isinstance(item, Exhibit)} == trajectories.declared(trial)
    curves = {item.name: item.data["gpt"] for item in found if isinstance(item, Exhibit)}
    assert set(curves) == {"trajectories", "switch"}
    assert all(len(curve) == trajectories.QUICK for own in curves.values() for curve in own.values())
    before = trajectories.QUICK // 3
    for name, curve in curves["switch"].items():  # equal by the bit up to the change, rounded otherwise after it
        assert max(curve[:before]) == 0 < curve[-1], name


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(with_config(activation="gelu"), marks=pytest.mark.full),
        pytest.param(with_config(norm_eps=2e-5), marks=pytest.mark.full),
        pytest.param(trained_with(adam_eps=1e-7), marks=pytest.mark.full),
        pytest.param(trained_with(weight_decay=0.09), marks=pytest.mark.full),
    ],
    ids=["erf for tanh", "norm eps", "adam eps", "decay .09"],
)
def test_bugs_leave_the_control_behind(bug):
    found = rows(trajectories, session(bug, ("jax", "jax"), tiers=(TIER,)), "gpt")
    for what in ("wing from wing", "wing from float64"):
        assert found[what, TIER].used > 1.5, found[what, TIER]


def test_a_lost_optimizer_state_is_noticed():
    bug = with_methods(start_training=forgetful)
    found = rows(trajectories, session(bug, ("jax", "jax"), tiers=(TIER,)), "gpt")
    handed_on = {(name, "exact") for name in observed.HANDED_ON["float64"]}  # in others if asked for
    assert failed(found) == {("switch", TIER), ("handed over", "exact"), *handed_on}


@pytest.mark.full
def test_one_implementation_alone_is_held_against_float64():
    alone = Session({"jax": session().subjects["jax"]}, quick=True)
    assert set(rows(trajectories, alone, "gpt")) == {("wing from float64", TIER), *HANDED_ON}
    for case, tiers in (("mlp", ("float32",)), ("gpt_untied", ("float32",)), ("gpt", ("float64",))):
        assert not rows(trajectories, Session(alone.subjects, tiers=tiers, quick=True), case)


def test_one_ulp_is_the_next_number_either_way():
    weights = CASES["gpt"].weights()
    moved = trajectories.one_ulp(weights, 0)
    for name, weight in weights.items():
        assert moved[name].dtype == np.float32
        steps = (moved[name].astype(np.float64) - weight) / np.spacing(np.abs(weight)).astype(np.float64)
        assert set(np.unique(np.abs(steps))) <= {0.5, 1.0}  # half of one below a power of two
