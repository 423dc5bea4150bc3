"""C1 holds for honest wings and notices other draws, addresses, orders and initial weights."""

import numpy as np
import pytest

from common import backend as door
from common import params, rng
from common.cases import CASES
from common.config import Execution
from common.data.windows import Batches
from common.parity import bits, known, run
from common.parity.trial import Session, Trial, subjects
from common.variants import GatedDeltaNet, GroupedQuery, Latent, MultiHead, Sparse


class Drawing:
    """The PyTorch wing whose draws are changed by `change(kind, address, shape, array)`."""

    def __init__(self, change=lambda kind, address, shape, array: array):
        self._wing, self._change = door.load("torch"), change

    def __getattr__(self, name):
        return getattr(self._wing, name)

    def draw(self, kind, address, shape, probability=0.5):
        return self._change(kind, address, shape, self._wing.draw(kind, address, shape, probability))


def failures(wing, *cases):
    found = run.run(Session({"torch": wing}, cases=cases, quick=True), [bits])
    return {(row.case, row.what) for row in found.failures}


def test_honest_wings_pass():
    found = run.run(Session(subjects(("torch",))), [bits])
    assert found.passed, [(row.case, row.what, row.note) for row in found.failures]
    masks = [row for row in found.rows if row.what == "masks in the model"]
    assert {row.case for row in masks} == {name for name, case in CASES.items() if case.config.has_dropout}


@pytest.mark.full
def test_both_honest_wings_pass():
    found = run.run(Session(subjects(("torch", "jax"))), [bits])
    assert found.passed, [(row.case, row.what, row.note) for row in found.failures]
    assert all(set(row.errors) >= {"torch", "jax"} for row in found.rows if row.what.startswith(("words", "masks")))


def test_one_wrong_bit_is_noticed():
    def flip(kind, address, shape, array):
        if kind == "bits" and array.size > 2**16:
            array = array.copy()
            array.flat[-1] ^= 1
        return array

    assert failures(Drawing(flip)) == {("", "words")}


def test_draws_at_another_address_are_noticed():
    late = Drawing(lambda kind, address, shape, array: door.load("torch").draw(kind, (*address, 1), shape))
    drawn = {("", what) for what in ("layout", "words", "uniforms", "split keys")}
    assert failures(late) >= drawn | {("", f"masks/{rate:g}") for rate in bits.RATES}


def test_another_type_of_numbers_is_noticed():
    wide = Drawing(lambda kind, address, shape, a: a.astype(np.float64) if kind == "uniform" else a)
    assert failures(wide) == {("", "uniforms")}


@pytest.mark.parametrize("site", range(7))
def test_a_mask_that_a_wing_takes_from_elsewhere_is_noticed(site, monkeypatch):
    """Each site of the first layers in turn draws at the address of its neighbour."""
    import torch_impl.layers as layers
    import torch_impl.rng as wing

    trial = Trial(Session(subjects(("torch",)), cases=("gpt_dropout",)), CASES["gpt_dropout"])
    wanted = bits.SITES["gpt"](trial.case.config)[site]
    addresses = {
        tuple(rng.address(trial.case.seed, rng.DROPOUT, step, 0, wanted.layer, wanted.site)) for step in bits.MASK_STEPS
    }
    honest = wing.bernoulli

    def moved(key, *args, **kwargs):
        return honest(rng.fold_in(key, 1) if tuple(key) in addresses else key, *args, **kwargs)

    assert bits._applied_masks(trial).passed
    monkeypatch.setattr(layers.rng, "bernoulli", moved)
    row = bits._applied_masks(trial)
    assert not row.passed
    assert f"layer {wanted.layer}, site {wanted.site}" in row.note


@pytest.mark.parametrize("who", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("attention", [
    MultiHead(), GroupedQuery(2, sinks=True, gate=True, out_bias=True), Latent(rank=6, out_bias=True),
    Sparse(2, out_bias=True),
], ids=lambda one: one.kind)  # fmt: skip
def test_masks_that_are_seen_are_those_that_are_drawn(attention, who):
    """The oracle shows the same masks in its complex-step gradients, which know nothing of sites; so do the wings, of
    every kind whose heads have values of their own."""
    config = CASES["gpt_dropout"].config.with_(attention=(attention,))
    ids = CASES["gpt_dropout"].tokens()[0]
    model = door.load(who).build(config, params.randomise(config, 0), Execution(dtype="float64"))
    grads = model.gradients(ids[:1, :1], ids[:1, 1:2], dropout=(0, 7)).grads
    masks = bits._masks(bits.SITES["gpt"](config), 0, 7)
    assert len(masks) == 1 + 3 * config.num_layers
    assert all(np.array_equal(bits.kept(grads, site), mask) for site, mask in masks.items())
    assert 0 < np.mean(np.concatenate([mask.ravel() for mask in masks.values()])) < 1


def test_heads_that_share_values_and_layers_without_weights_show_no_masks_of_weights():
    config = CASES["gpt_dropout"].config
    own, shared = GroupedQuery(config.num_heads), GroupedQuery(1)
    for attention in ((shared,), (GatedDeltaNet(),), (own, own.with_(shares=True)), (Sparse(1),)):
        sites = bits.SITES["gpt"](config.with_(attention=attention))
        assert not [site for site in sites if site.layer and not site.site]


def test_another_order_of_batches_and_a_lost_state_are_noticed(monkeypatch):
    honest = Batches.order
    monkeypatch.setattr(Batches, "order", lambda self, epoch: honest(self, epoch)[::-1])
    assert bits._batches() == 1
    monkeypatch.setattr(Batches, "order", lambda self, epoch: honest(self, epoch))
    state = Batches.state
    monkeypatch.setattr(Batches, "state", lambda self: {**state(self), "position": 0})
    assert bits._resumed() > 0


def test_other_initial_weights_are_noticed(monkeypatch):
    honest = params.draw
    monkeypatch.setattr(params, "draw", lambda seed, name, shape: honest(seed, name, shape) * (1 + 1e-6))
    row = bits._preset(Session(subjects(("torch",))))
    assert row.errors == {"numpy": 1.0, "torch": 0.0}


def test_the_hash_sees_values_not_the_order_in_memory():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert known.sha256(array) == known.sha256(np.asfortranarray(array)) == known.sha256(array.astype(">f4"))
    assert known.sha256(array) != known.sha256(array.T)
