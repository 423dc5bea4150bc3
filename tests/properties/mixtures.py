"""Mixtures of experts, small ones, and batches for them: what several files of tests share."""

import numpy as np

from common.backend import IGNORED
from common.config import GPTConfig
from common.variants.mixture_of_experts import MixtureOfExperts

BOUND = 1e-12  # float64 rounding in sums of another order: 1e-14 here
CONFIG = GPTConfig(23, 40, 16, 2, 2, ff_dim=24, tie_embeddings=False, activation="silu")
ENTRY = MixtureOfExperts(5, 2, expert_dim=8, scale=1.3, shared_dim=12, shared_gate=True)
PLAIN = MixtureOfExperts(4, 2, expert_dim=8, routing="top_k_then_softmax")
FULL = MixtureOfExperts(
    8,
    3,
    expert_dim=8,
    routing="top_k_then_sigmoid",
    router_bias=True,
    choice_bias=True,
    num_groups=4,
    top_groups=2,
    expert_bias=True,
    limit=0.7,
    offset=1.0,
)
# PyTorch's own product of groups has no float64
FORMS = [
    ("torch", "gathered", "float64", BOUND),
    ("torch", "grouped", "float32", 1e-5),
    ("torch", "gathered", "float32", 1e-5),
    ("jax", "gathered", "float64", BOUND),
    ("jax", "grouped", "float64", BOUND),
]


def close(got, want, bound=BOUND):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


def of(entry, **changes):
    return CONFIG.with_(feed_forward=entry, **changes)


def batch(rows=2, length=30, seed=1):
    """(ids, targets), of which some do not count."""
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, length + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[0, :11] = IGNORED
    return ids[:, :-1], targets


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
