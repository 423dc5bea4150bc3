"""Dropout draws the same masks everywhere, other masks at every address, and nothing at rate 0."""

import importlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from common import rng

SHAPE = (2, 3, 5, 64)
ROOMS = ("common.oracle", "torch_impl", "jax_impl")


def dropped(room, rate, address, site, dtype="float32"):
    """Dropout of ones: the mask times its scale."""
    layers = importlib.import_module(f"{room}.layers")
    if room == "common.oracle":
        return layers.dropout(np.ones(SHAPE, dtype), rate, rng.address(*address), site)
    if room == "torch_impl":
        return layers.dropout(torch.ones(SHAPE, dtype=getattr(torch, dtype)), rate, rng.address(*address), site).numpy()
    with jax.enable_x64(dtype == "float64"):
        key = importlib.import_module("jax_impl.rng").address(*address)
        return np.asarray(jax.jit(layers.dropout, static_argnums=(1, 3))(jnp.ones(SHAPE, dtype), rate, key, site))


@pytest.mark.full_for("0.2", "0.9")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_masks_and_scale_are_equal_to_the_bit(rate, dtype):
    address = (2**32 - 1, rng.DROPOUT, 12, 3)
    want = dropped("common.oracle", rate, address, 4, dtype)
    assert set(np.unique(want)) == {0.0, np.float32(1 / (1 - rate))}
    for room in ("torch_impl", "jax_impl"):
        np.testing.assert_array_equal(dropped(room, rate, address, 4, dtype), want, err_msg=room)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_sixteen_bits_are_scaled_in_thirty_two(rate):
    """1 / (1 - 0.1) itself has no place in bfloat16: what is dropped out is multiplied wide, and rounded once."""
    address, kind = (5, rng.DROPOUT, 1, 0), ml_dtypes.bfloat16
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(kind)
    keep = rng.bernoulli(rng.fold_in(rng.address(*address), 2), 1 - rate, SHAPE)
    want = np.where(keep, x.astype(np.float32) * np.float32(1 / (1 - rate)), 0).astype(kind)
    layers = [importlib.import_module(f"{room}.layers") for room in ROOMS[1:]]
    torch_x = torch.from_numpy(x.astype(np.float32)).bfloat16()
    in_torch = layers[0].dropout(torch_x, rate, rng.address(*address), 2).float().numpy()
    key = importlib.import_module("jax_impl.rng").address(*address)
    in_jax = jax.jit(layers[1].dropout, static_argnums=(1, 3))(jnp.asarray(x), rate, key, 2)
    for found in (in_torch, np.asarray(in_jax, np.float32)):
        np.testing.assert_array_equal(found, want.astype(np.float32))


@pytest.mark.parametrize("room", ROOMS)
def test_every_address_has_its_own_mask(room):
    """Another seed, step, micro-batch or site: masks that agree only by chance (p^2 + q^2 = .5 at rate .5)."""
    base = ((7, rng.DROPOUT, 1, 0), 2)
    others = [((8, *base[0][1:]), 2), ((7, rng.SAMPLING, 1, 0), 2), ((7, rng.DROPOUT, 2, 0), 2)]
    others += [((7, rng.DROPOUT, 1, 1), 2), (base[0], 3)]
    want = dropped(room, 0.5, *base)
    np.testing.assert_array_equal(dropped(room, 0.5, *base), want)
    for other in others:
        agreement = ((dropped(room, 0.5, *other) > 0) == (want > 0)).mean()
        assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(want.size), other


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_that_is_kept(rate):
    keep = dropped("common.oracle", rate, (0, rng.DROPOUT, 0, 0), 0) > 0
    assert abs(keep.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / keep.size)


@pytest.mark.parametrize("room", ROOMS)
def test_rate_0_and_no_key_leave_the_input_alone(room):
    layers, x = importlib.import_module(f"{room}.layers"), np.ones(3)
    assert layers.dropout(x, 0.0, rng.key(0), 1) is x
    assert layers.dropout(x, 0.5, None, 1) is x


@pytest.mark.full_for("jax")
def test_every_place_in_the_model_has_its_own_site(model_of, tokens, with_dropout, name, monkeypatch):
    """One place for the embedding and three for every block (attention, two branches), each with a key of its own."""
    room = {"numpy": "common.oracle", "torch": "torch_impl", "jax": "jax_impl"}[name]
    layers = importlib.import_module(f"{room}.layers")
    places, rates, draw = [], [], layers.dropout

    def record(x, rate, key, site):
        words = np.asarray(jax.random.key_data(key)) if name == "jax" else key
        places.append((words.tobytes(), site))
        rates.append(rate)
        return draw(x, rate, key, site)

    for place in ("models.gpt", "attention.kernels"):
        monkeypatch.setattr(importlib.import_module(f"{room}.{place}"), "dropout", record)
    model = model_of(name, with_dropout)
    ids, positions = tokens(1, 4), np.arange(4, dtype=np.int32)[None]
    if name == "jax":
        with model.scope():
            key = importlib.import_module("jax_impl.rng").key(0)
            model.programs.rebuild(model.params)(ids, positions, dropout_key=key)
    else:
        put = torch.from_numpy if name == "torch" else np.asarray
        model.net(put(ids), put(positions), dropout_key=rng.key(0))
    by_place = dict(zip(places, rates, strict=True))
    assert len(by_place) == 1 + 3 * with_dropout.num_layers
    want = {(rng.fold_in(rng.key(0), 0).tobytes(), 0): 0.1}
    for layer in range(1, 1 + with_dropout.num_layers):
        key = rng.fold_in(rng.key(0), layer).tobytes()
        want |= {(key, 0): 0.3, (key, 1): 0.2, (key, 2): 0.2}
    assert by_place == want


@pytest.mark.full_for("jax")
def test_rates_of_0_train_like_evaluation(costly_case, case_model, late, wing):
    """With rates 0 a key changes no bit of loss and gradients."""
    (ids, _), model = late(costly_case, 2, 6), case_model(wing, costly_case, rates="none")
    targets = np.roll(ids, -1, axis=1)
    with_key, without = (model.gradients(ids, targets, dropout=d) for d in ((3, 5), None))
    assert with_key.value == without.value
    for parameter, g in without.grads.items():
        np.testing.assert_array_equal(with_key.grads[parameter], g, err_msg=parameter)


@pytest.mark.full_for(
    "latent-jax", "sparse-jax", "experts-jax", "wide-jax", "untied-jax", "long-jax", "muon-jax", "sharing-jax"
)
def test_evaluation_draws_no_mask(case, case_model, late, name):
    """Without a key the model with dropout is the model without."""
    ids, positions = late(case, 2, 6)
    with_rates, without = (case_model(name, case, rates=r).forward(ids, positions).logits for r in ("all", "none"))
    np.testing.assert_array_equal(with_rates, without)


def test_losses_with_dropout_depend_on_seed_step_and_micro_batch(model_of, tokens, with_dropout):
    """And are equal in both wings, for the same ids in two micro-batches too."""
    ids, targets = (np.stack([x, x]) for x in tokens(2, 2, 8))
    found, config = {}, with_dropout.with_(num_layers=1)
    for wing in ("torch", "jax"):
        model = model_of(wing, config)
        found[wing] = [model.gradients(ids, targets, dropout=d).value for d in ((0, 0), (0, 1), (1, 0), (0, 0))]
    np.testing.assert_allclose(found["torch"], found["jax"], rtol=1e-13)
    assert found["torch"][0] == found["torch"][3]
    assert len(set(found["torch"])) == 3
    single = model_of("torch", config).gradients(ids[:1], targets[:1], dropout=(0, 0)).value
    assert single != pytest.approx(found["torch"][0], rel=1e-6)
