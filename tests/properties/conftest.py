"""Small models that all property tests share, so that JAX compiles each shape once."""

import functools

import numpy as np
import pytest

from common import backend, params
from common.config import Execution, GPTConfig

# Untied, because a tied random model repeats its last token; odd vocabulary; heads of 16; ff_dim not 4 * embed_dim.
SMALL = GPTConfig(61, 24, 32, 2, 2, ff_dim=44, tie_embeddings=False)
DROPOUT = SMALL.with_(dropout_embed=0.1, dropout_attn=0.3, dropout_shortcut=0.2)


@functools.cache
def weights_of(config, seed=20):  # a seed whose greedy texts do not repeat themselves
    return params.randomise(config, seed)


@functools.cache
def shared_model(name, config, execution):
    return backend.load(name).build(config, weights_of(config), execution)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Models this small only lose by sharing their work between threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small():
    return SMALL


@pytest.fixture(scope="session")
def with_dropout():
    """The small model with three different rates."""
    return DROPOUT


@pytest.fixture(scope="session")
def model_of():
    """model_of(backend, config, dtype, ...): one shared model, not to be trained."""

    def build(name, config=SMALL, dtype="float64", **execution):
        return shared_model(name, config, Execution(dtype=dtype, **execution))

    return build


@pytest.fixture(scope="session")
def fresh_model():
    """fresh_model(backend, config, dtype, weights): a model of one's own."""

    def build(name, config=SMALL, dtype="float64", weights=None, **execution):
        chosen = weights_of(config) if weights is None else weights
        return backend.load(name).build(config, chosen, Execution(dtype=dtype, **execution))

    return build


@pytest.fixture(scope="session")
def tokens():
    """tokens(batch, length, seed): random ids of the small vocabulary."""

    def draw(*shape, seed=0):
        return np.random.default_rng(seed).integers(0, SMALL.vocab_size, shape).astype(np.int32)

    return draw


@pytest.fixture(params=["numpy", "torch", "jax"])
def name(request):
    """Every implementation."""
    return request.param


@pytest.fixture(params=["torch", "jax"])
def wing(request):
    """Both wings."""
    return request.param
