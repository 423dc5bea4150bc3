"""What makes no sense is refused with one sentence, alike in all three; JAX by itself would clamp or drop silently."""

import numpy as np
import pytest

from common import params
from common.backend import load
from common.config import ATTENTION_KERNELS, Execution, GPTConfig
from common.errors import UserError

IDS = np.array([[1, 2, 3], [4, 5, 6]])
WRONG_IDS = [
    (IDS + 60, r"Token id 61 at \[0, 0\] of the .* is outside the vocabulary \(0 to 60\)"),
    (np.where(IDS == 6, 2**40, IDS), r"Token id 1099511627776 at \[1, 2\]"),
    (np.where(IDS == 2, -1, IDS), r"Token id -1 at \[0, 1\]"),
    (np.where(IDS == 2, -100, IDS), "Token id -100"),
    (IDS + 0.5, "float64; they must be whole numbers"),
    (IDS > 2, "bool; they must be whole numbers"),
    (IDS[0], r"shape \[3\]"),
    (np.zeros((1, 25), int), "25 tokens do not fit in the context of 24"),
]


@pytest.mark.parametrize(("ids", "sentence"), WRONG_IDS)
def test_forward_and_cache_refuse_wrong_ids(model_of, name, ids, sentence):
    model = model_of(name)
    with pytest.raises(UserError, match=sentence):
        model.forward(ids)
    cache = model.new_cache(len(ids), 30)
    with pytest.raises(UserError, match=sentence):
        model.extend(cache, ids)
    assert cache.used == 0


@pytest.mark.parametrize(("ids", "sentence"), [case for case in WRONG_IDS if case[0].ndim == 2])
def test_losses_refuse_wrong_ids_and_targets(model_of, name, ids, sentence):
    model, fine = model_of(name), np.zeros(ids.shape, int)
    for call in (model.loss, model.gradients):
        with pytest.raises(UserError, match=sentence):
            call(ids, fine)
    if not sentence.startswith("Token id -100") and ids.shape[1] < 25:
        with pytest.raises(UserError, match=sentence):
            model.loss(fine, ids)


@pytest.mark.parametrize(
    ("ids", "targets"),
    [(IDS, IDS[:, :2]), (IDS, IDS[:1]), (IDS[0], IDS[0]), (IDS, IDS[None]), (IDS[None, None], IDS[None, None])],
)
def test_losses_refuse_shapes_that_do_not_fit(model_of, name, ids, targets):
    for call in (model_of(name).loss, model_of(name).gradients):
        with pytest.raises(UserError, match=r"must both be \[A, B, T\] or \[B, T\]"):
            call(ids, targets)


def test_a_loss_of_micro_batches_is_refused(model_of, name):
    """A loss takes one batch; taking the first of several would be a silent lie."""
    with pytest.raises(UserError, match=r"one batch, \[B, T\]"):
        model_of(name).loss(np.stack([IDS, IDS]), np.stack([IDS, IDS]))


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        (np.array([[0, 1, 24], [0, 1, 2]]), "25 tokens do not fit in the context of 24"),
        (np.array([[-2, 0, 1], [0, 1, 2]]), "below -1"),
        (np.arange(3), r"shape \[3\]; they need that of the ids, \[2, 3\]"),
        (np.zeros((2, 4), int), r"shape \[2, 4\]"),
        (np.full((2, 3), 0.5), "positions are float64"),
    ],
)
def test_wrong_positions(model_of, name, positions, sentence):
    with pytest.raises(UserError, match=sentence):
        model_of(name).forward(IDS, positions)
    cache = model_of(name).new_cache(2, 5)
    with pytest.raises(UserError, match=sentence):
        model_of(name).extend(cache, IDS, positions)
    assert cache.used == 0


def test_the_last_position_of_the_context_can_be_used(model_of, name):
    positions = np.array([[21, 22, 23], [0, 1, 23]])
    got, want = (model_of(n).forward(IDS, positions).logits for n in (name, "numpy"))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize(
    ("batch", "capacity", "told"),
    [
        (0, 5, "batch 0"),
        (-1, 5, "batch -1"),
        (2.0, 5, "batch 2.0"),
        (True, 5, "batch True"),
        (2, 0, "capacity 0"),
        (2, -3, "capacity -3"),
        (2, "5", "capacity '5'"),
        (2, None, "capacity None"),
    ],
)
def test_a_cache_without_room(model_of, name, batch, capacity, told):
    with pytest.raises(UserError, match=f"A cache cannot have {told}: give a whole number > 0"):
        model_of(name).new_cache(batch, capacity)
    assert model_of(name).new_cache(np.int64(2), np.int64(5)).capacity == 5


def test_weights_with_wrong_names_are_refused_with_all_faults(small, name):
    weights = params.randomise(small, 0)
    weights["model.norms.weight"] = weights.pop("model.norm.bias")
    with pytest.raises(UserError, match=r"model.norm.bias is missing; model.norms.weight is not part of the model"):
        load(name).build(small, weights, Execution(dtype="float64"))


def test_weights_of_a_wrong_shape_are_refused(small, name):
    weights = params.randomise(small, 0)
    weights["model.norm.weight"] = weights["model.norm.weight"][:1]  # would broadcast
    with pytest.raises(UserError, match=r"model.norm.weight has shape \[1\], expected \[32\]"):
        load(name).build(small, weights, Execution(dtype="float64"))


def test_a_device_that_is_not_there(small, name):
    with pytest.raises(UserError, match="tpu:3"):
        load(name).build(small, params.randomise(small, 0), Execution(dtype="float64", device="tpu:3"))


def test_an_unknown_backend():
    with pytest.raises(UserError, match=r"Unknown backend 'torh': did you mean 'torch'\?"):
        load("torh")


def test_the_oracle_has_no_layout():
    config = GPTConfig(11, 4, 8, 1, 2)
    with pytest.raises(UserError, match="The oracle computes in one process: leave layout data=2 out"):
        load("numpy").build(config, params.initialise(config, 0), Execution("float64", layout="data=2"))


@pytest.mark.parametrize("kernel", [kernel for kernel in ATTENTION_KERNELS if kernel != "plain"])
def test_the_oracle_has_one_kernel(kernel):
    config = GPTConfig(11, 4, 8, 1, 2)
    with pytest.raises(UserError, match=f"The oracle has no fast paths: leave attention='{kernel}' out"):
        load("numpy").build(config, params.initialise(config, 0), Execution("float64", attention=kernel))
