"""The shared random numbers: the same bits in NumPy, torch and JAX, and initial weights that depend on names alone."""

import hashlib

import jax
import numpy as np
import pytest
import torch

import jax_impl.rng as jax_rng
import torch_impl.rng as torch_rng
from common import params, rng
from common.config import GPTConfig, preset

SEEDS = (0, 42, 2**32 - 1)
SIZES = ((), (1,), (7,), (3, 5), (65535,), (65536,), (65537,), (4, 12, 64, 64))


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers_of_the_cipher(key, counter, words):
    """Published with the algorithm (Random123)."""
    x, y = rng.threefry(np.array(key, np.uint32), *(np.array([c], np.uint32) for c in counter))
    assert (int(x[0]), int(y[0])) == words


def test_known_answers_of_the_layout():
    """bits, split and fold_in of seed 42, as `jax.random` gives them."""
    key = rng.key(42)
    assert [f"{w:08x}" for w in rng.bits(key, (4,))] == ["7d1c13a2", "ae0730d9", "9dc3f9f9", "8f9ec1d7"]
    assert [f"{w:08x}" for w in rng.split(key)[0]] == ["6d3e048f", "1022172d"]
    assert [f"{w:08x}" for w in rng.fold_in(key, 7)] == ["97d0552f", "51bf719f"]
    assert hashlib.sha256(rng.bits(key, (4, 12, 64, 64)).tobytes()).hexdigest().startswith("05c1d7b82bd10f36")


@pytest.mark.full_for("shape7")  # the largest
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SIZES)
def test_words_and_uniforms_are_equal_at_the_bit(seed, shape):
    key, jax_key = rng.key(seed), jax_rng.key(seed)
    want = rng.bits(key, shape)
    assert np.array_equal(torch_rng.bits(key, shape).numpy().view(np.uint32), want)
    assert np.array_equal(np.asarray(jax_rng.bits(jax_key, shape)), want)
    want = rng.uniform(key, shape)
    assert want.dtype == np.float32
    assert np.array_equal(torch_rng.uniform(key, shape).numpy(), want)
    assert np.array_equal(np.asarray(jax_rng.uniform(jax_key, shape)), want)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1e-3])
@pytest.mark.parametrize("wide", [False, True])
def test_masks_are_equal_at_the_bit(rate, wide):
    """Also compiled, and with 64-bit types switched on, where `jax.random` left alone would draw other words."""
    address = (9, rng.DROPOUT, 17, 3)
    want = rng.bernoulli(rng.address(*address), 1 - rate, (33, 65))
    assert np.array_equal(torch_rng.bernoulli(torch_rng.address(*address), 1 - rate, (33, 65)).numpy(), want)
    with jax.enable_x64(wide):
        plain = jax_rng.bernoulli(jax_rng.address(*address), 1 - rate, (33, 65))
        jitted = jax.jit(lambda seed, step: jax_rng.bernoulli(jax_rng.address(seed, 1, step, 3), 1 - rate, (33, 65)))
        compiled = jitted(np.uint32(9), np.uint32(17))
    assert np.array_equal(np.asarray(plain), want)
    assert np.array_equal(np.asarray(compiled), want)
    assert abs(want.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / want.size)  # five standard deviations


def test_64_bit_words_and_keys_equal_jax():
    key = jax.random.key(5, impl="threefry2x32")
    with jax.enable_x64(True):
        assert np.array_equal(np.asarray(jax.random.bits(key, (11,), np.uint64)), rng.bits(rng.key(5), (11,), 64))
    assert np.array_equal(np.asarray(jax.random.key_data(jax.random.split(key, 3))), rng.split(rng.key(5), 3))
    folded = jax.random.fold_in(jax.random.fold_in(key, 3), 2**32 - 1)
    assert np.array_equal(np.asarray(jax.random.key_data(folded)), rng.address(5, 3, 2**32 - 1))


def test_gumbel_noise_agrees_to_rounding():
    """The uniforms are equal; the two logarithms may differ by some units in the last place of float32."""
    want = rng.gumbel(rng.key(1), (50_000,))
    for got in (
        torch_rng.gumbel(rng.key(1), (50_000,), torch.float32).numpy(),
        np.asarray(jax_rng.gumbel(jax_rng.key(1), (50_000,), np.float32)),
    ):
        assert np.abs(got - want).max() < 2e-6
    exact = torch_rng.gumbel(rng.key(1), (50_000,), torch.float64).numpy()
    assert np.abs(exact - want).max() < 1e-14
    assert abs(want.mean() - np.euler_gamma) < 0.03


def test_addresses_do_not_collide():
    """Different purposes, steps and sites give different keys."""
    keys = {tuple(rng.address(0, a, b, c)) for a in range(4) for b in range(20) for c in range(20)}
    assert len(keys) == 4 * 20 * 20


def test_seeds_out_of_range_are_refused():
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="is not in"):
            rng.key(seed)


def test_initial_weights_are_known_and_independent_of_order():
    draw = params.draw(0, "transformer.h.0.attn.c_attn.weight", (4, 3))
    np.testing.assert_allclose(draw[0], [2.06856511, -0.73802857, -0.21472778], atol=5e-9)
    assert hashlib.sha256(draw.astype("<f4").tobytes()).hexdigest().startswith("e96e61d6e97e4bf8")
    config = GPTConfig(31, 8, 16, 2, 2, tie_embeddings=False)
    weights = params.initialise(config, 3)
    backwards = {name: weights[name] for name in reversed(list(weights))}
    for name, value in backwards.items():
        assert np.array_equal(value, params.initialise(config, 3)[name])
        assert value.dtype == np.float32
    deeper = params.initialise(config.with_(num_layers=3), 3)
    assert np.array_equal(deeper["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])
    assert not np.array_equal(params.initialise(config, 4)["lm_head.weight"], weights["lm_head.weight"])


def test_initial_weights_have_the_spread_of_the_table():
    config = preset("nano")
    for name, parameter in params.table(config).items():
        value = params.initial(parameter, 0)
        if parameter.init == "normal":  # five standard errors of a standard deviation
            assert abs(value.std() / parameter.std - 1) < 5 / np.sqrt(2 * value.size), name
        else:
            assert (value == (parameter.init == "ones")).all(), name


def test_sums_of_many_words_are_uniform():
    """The mean of the uniforms and their pairing across chunk borders of the torch twin."""
    u = torch_rng.uniform(rng.key(2), (200_000,)).numpy()
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
    assert len(np.unique(rng.bits(rng.key(2), (200_000,), 64))) == 200_000
