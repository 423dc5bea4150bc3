"""The judge follows what layers chose where scores are nearly equal, and refuses what they should not have chosen."""

import numpy as np
import pytest

from benchmarks.harness import following, gate, service
from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.judging import chosen_keys
from benchmarks.harness.recipe import Recipe
from common import backend as door
from common.config import Execution, GPTConfig
from common.variants import MultiHead, Sparse

CONFIG = GPTConfig(31, 24, 12, 2, 3, ff_dim=20, attention=(Sparse(1, top_k=4, index_heads=2, index_dim=6), MultiHead()))
IDS = np.random.default_rng(0).integers(0, 31, (2, 20), dtype=np.int32)
TAP = "model.layers.0.self_attn.chosen"


@pytest.fixture
def judge():
    found = service.Service("numpy")
    found.start()
    found.build("model", Recipe("randomised", CONFIG), Execution(dtype="float64"))
    return found


def scores_of(judge):
    taps = judge.models["model"].forward(IDS, taps=("*.index_scores", "*.chosen")).taps
    return taps[TAP.replace("chosen", "index_scores")], taps[TAP] > 0.5


def swapped(judge, rank):
    """The choices, but the last query of the second row takes the key of that rank instead of its last choice."""
    scores, chosen = scores_of(judge)
    order = np.argsort(-scores[1, -1])
    other = chosen.copy()
    other[1, -1, order[3]], other[1, -1, order[rank]] = False, True
    return following.packed({TAP: other}), scores[1, -1][order[3]] - scores[1, -1][order[rank]], scores[1, -1]


def test_models_that_choose_keys_are_known():
    assert following.chooses(CONFIG)
    assert not following.chooses(CONFIG.with_(attention=(MultiHead(),)))


def test_masks_survive_the_way():
    masks = {"a": np.random.default_rng(1).random((2, 3, 7)) > 0.5, "b": np.zeros((1, 1, 1), bool)}
    for name, found in following.packed(masks).items():
        np.testing.assert_array_equal(following.mask(*found), masks[name])


def test_who_chooses_as_the_oracle_does_is_judged_as_before(judge):
    choices = judge.chosen("model", IDS)
    assert list(choices) == [TAP]
    due, worst = judge.followed("model", IDS, choices)
    assert worst == 0.0
    assert due == judge.prefilled("model", IDS)


def test_what_is_due_follows_the_choices_and_their_regret_is_measured(judge):
    choices, apart, scores = swapped(judge, 4)
    due, worst = judge.followed("model", IDS, choices)
    assert gate.error(due["prompt's logits"], judge.prefilled("model", IDS)["prompt's logits"]) > 1e-3
    assert worst == pytest.approx(apart / np.sqrt(np.square(scores).mean()), rel=1e-9)
    assert worst > 1e-3


def test_what_is_due_is_what_a_model_with_these_choices_computes(judge):
    """By the model itself, whose indexer is made to prefer the other key by a nudge of its score."""
    choices, apart, _ = swapped(judge, 4)

    class Nudged(following.Taps):
        def under(self, name):
            return Nudged(self.wanted, prefix=f"{self.prefix}{name}.", found=self.found)

        def __call__(self, name, value):
            if f"{self.prefix}{name}" == TAP.replace("chosen", "index_scores"):
                order = np.argsort(-value[1, -1])
                value = value.copy()
                value[1, -1, order[4]] += 1.5 * apart
            return value

    positions = door.positions_of(IDS, None, 0, CONFIG)
    logits = judge.models["model"].net(IDS, positions, taps=Nudged(("*",)))[0][:, -1]
    due, _ = judge.followed("model", IDS, choices)
    assert due == {"prompt's logits": gate.digest(logits)}


@pytest.mark.parametrize("wrong", ["fewer", "hidden", "shape", "missing"])
def test_choices_that_are_none_are_infinitely_wrong(judge, wrong):
    _, chosen = scores_of(judge)
    chosen = chosen.copy()
    if wrong == "fewer":
        chosen[0, -1, np.flatnonzero(chosen[0, -1])[0]] = False
    if wrong == "hidden":
        chosen[0, 5, np.flatnonzero(chosen[0, 5])[0]], chosen[0, 5, 9] = False, True
    given = {} if wrong == "missing" else {TAP: chosen[:, :-1] if wrong == "shape" else chosen}
    assert judge.followed("model", IDS, following.packed(given))[1] == np.inf


def test_rounding_passes_and_a_worse_key_is_refused(judge):
    cell = Cell("variants", "continue", "tiny", CONFIG, 2, 20, "float32", (Contender("a", "a", "a", "a"),), 4)
    allowed = chosen_keys(cell, 0.0)
    assert allowed.passed
    assert 1e-7 < allowed.bound < 1e-5
    _, worst = judge.followed("model", IDS, swapped(judge, 5)[0])
    refused = chosen_keys(cell, worst)
    assert not refused.passed
    assert "its choice of keys is" in gate.refusal([refused], "float32", "the oracle")
