"""Muon against PyTorch's own, Optax's, and a singular value decomposition."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common import params
from common.config import GPTConfig, TrainConfig
from common.variants import GatedDeltaNet, MixtureOfExperts, PlainMLP

SHAPES = {"wide": (5, 7), "tall": (9, 4), "square": (6, 6)}
TRAIN = TrainConfig(learning_rate=3e-2, schedule="constant", optimizer="muon", momentum=0.9, weight_decay=0.3)
STEPS = 30
WINGS = {"common.oracle": np.asarray, "torch_impl": torch.from_numpy, "jax_impl": jnp.asarray}


@pytest.fixture(params=WINGS)
def wing(request):
    """(its optim, a function that makes arrays of it), in float64."""
    with jax.enable_x64(True):
        yield importlib.import_module(f"{request.param}.optim"), WINGS[request.param]


def start():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def gradients(step):
    rng = np.random.default_rng(100 + step)
    return {name: rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 0) for name, shape in SHAPES.items()}


def test_thirty_steps_equal_pytorchs_own(wing, monkeypatch):
    """Theirs iterates in bfloat16; here it is made to keep float64, which is all that is changed."""
    optim, put = wing
    decays = dict.fromkeys(SHAPES, True)
    values = {name: put(value.copy()) for name, value in start().items()}
    slots = optim.empty_slots(values, SHAPES)
    for step in range(STEPS):
        grads = {name: put(g) for name, g in gradients(step).items()}
        values, slots = optim.update(values, grads, slots, TRAIN.adam_scalars(step), TRAIN, decays)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in start().items()}
    optimizer = torch.optim.Muon(
        theirs.values(), lr=TRAIN.learning_rate, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(STEPS):
        for name, g in gradients(step).items():
            theirs[name].grad = torch.from_numpy(g)
        optimizer.step()
    for name, value in values.items():
        np.testing.assert_allclose(np.asarray(value), theirs[name].detach().numpy(), rtol=1e-11, atol=1e-12)


def test_whole_steps_equal_optaxs(wing, monkeypatch):
    """Its look ahead corrects both averages for their beginning at zero, by different powers, so it turns unlike
    Jordan's and PyTorch's in the first steps. That is taken away, and is all that is changed; the shape factor is a
    setting of it."""
    import optax

    optim, put = wing
    begun = {name: value for name, value in start().items() if name != "square"}
    decays = dict.fromkeys(begun, True)
    values = {name: put(value.copy()) for name, value in begun.items()}
    slots = optim.empty_slots(values, begun)
    monkeypatch.setattr(optax.tree, "bias_correction", lambda moments, *_: moments)
    theirs = {name: jnp.asarray(value) for name, value in begun.items()}
    rate, how = TRAIN.learning_rate, {"ns_coeffs": optim.QUINTIC, "ns_steps": optim.ROUNDS, "eps": 0.0}
    optimizer = optax.contrib.muon(rate, beta=TRAIN.momentum, weight_decay=0.3, consistent_rms=0.2, **how)
    state = optimizer.init(theirs)
    for step in range(4):
        grads = {name: g for name, g in gradients(step).items() if name in begun}
        own = {name: put(g) for name, g in grads.items()}
        values, slots = optim.update(values, own, slots, TRAIN.adam_scalars(step), TRAIN, decays)
        moved, state = optimizer.update({name: jnp.asarray(g) for name, g in grads.items()}, state, theirs)
        theirs = optax.apply_updates(theirs, moved)
    for name, value in values.items():
        np.testing.assert_allclose(np.asarray(value), np.asarray(theirs[name]), rtol=1e-11, atol=1e-12)


def test_the_iteration_equals_optaxs(wing):
    from optax.contrib import _muon

    optim, put = wing
    for value in start().values():
        with jax.enable_x64(True):
            coefficients = jnp.array(optim.QUINTIC, jnp.float64)
            want = _muon.orthogonalize_via_newton_schulz(jnp.asarray(value), coefficients, optim.ROUNDS, eps=0.0)
        np.testing.assert_allclose(np.asarray(optim.orthogonalised(put(value))), want, rtol=1e-11, atol=1e-12)


def test_singular_vectors_stay_and_singular_values_come_near_one(wing):
    optim, put = wing
    matrix = np.random.default_rng(1).normal(size=(3, 20, 12))
    found = np.asarray(optim.orthogonalised(put(matrix)))
    for x, y in zip(matrix, found, strict=True):  # matrices that lie one on the other are turned one by one
        left, values, right = np.linalg.svd(x, full_matrices=False)
        inside = left.T @ y @ right.T
        assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-10
        assert np.all((np.diag(inside) > 0.65) & (np.diag(inside) < 1.25))
        assert np.ptp(values) > 1
    assert np.all(np.asarray(optim.orthogonalised(put(np.zeros((2, 3))))) == 0)


def test_muon_moves_linear_maps_inside_layers_alone():
    config = GPTConfig(
        19,
        16,
        8,
        2,
        2,
        ff_dim=20,
        attention=(GatedDeltaNet(2, 2, 4, 4),),
        feed_forward=(PlainMLP(), MixtureOfExperts(4, 2)),
    )
    moved = params.turned(config, "muon")
    assert "model.layers.1.mlp.experts.down_proj" in moved
    assert {"model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.o_proj.weight"} <= moved
    table = params.table(config)
    left = [name for name in table if name not in moved]
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.router.weight"} <= set(left)
    assert all("norm" in n or "embed" in n or "router" in n or table[n].part == "scale" or "bias" in n for n in left)
    assert params.turned(config, "adamw") == frozenset()
    slots = params.slots(config, TrainConfig(optimizer="muon"))
    assert [name for name in slots if name.endswith(".momentum")] == [f"{n}.momentum" for n in table if n in moved]
    assert len(slots) == 2 * len(table) - len(moved)
