"""Matrix-multiplication FLOPs: the closed form, PyTorch's counter and JAX's program agree to the last one."""

import pytest

from common import params
from common.accounting import flops
from common.backend import load
from common.config import Execution, GPTConfig, preset

CONFIGS = {
    "one layer, one head": (GPTConfig(11, 8, 6, 1, 1), 1, 1),
    "tied": (GPTConfig(31, 16, 12, 2, 3, ff_dim=20), 2, 7),
    "untied, no bias": (GPTConfig(31, 16, 12, 2, 2, qkv_bias=False, tie_embeddings=False, activation="gelu"), 3, 16),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_counters_equal_the_closed_form(case):
    config, batch, length = CONFIGS[case]
    for what, rule in (("forward", flops.forward), ("train", flops.training)):
        want = sum(rule(config, batch, length).values())
        for wing in ("torch", "jax"):
            model = load(wing).build(config, params.initialise(config, 0), Execution())
            assert model.matmul_flops(what, batch, length) == want, (wing, what)


def test_the_closed_form_by_hand():
    """E 12, F 20, V 31, 2 layers, B 2, T 7, per token 2 FLOPs a weight; scores and values 2 T E each."""
    config, batch, length = CONFIGS["tied"]
    per_token = 2 * (2 * 4 * 12 * 12 + 2 * 2 * 12 * 20 + 31 * 12) + 2 * 2 * 2 * 7 * 12
    assert sum(flops.forward(config, batch, length).values()) == 14 * per_token


def test_the_published_count_of_gpt2():
    """F-060: 124M, batch 2, 1024 tokens: 5.06e11 in linear maps alone, 5.83e11 with scores and values."""
    parts = flops.forward(GPTConfig(50257, 1024, 768, 12, 12), 2, 1024)
    pairs = parts["attention scores and values"]
    assert round((sum(parts.values()) - pairs) / 1e11, 2) == 5.06
    assert round(sum(parts.values()) / 1e11, 2) == 5.83
    causal = flops.forward(GPTConfig(50257, 1024, 768, 12, 12), 2, 1024, causal=True)
    assert causal["attention scores and values"] * 2 * 1024 == pairs * 1025


# F-060's table: published FLOPs of linear maps at batch 2, and (tokens a second, MFU of 312e12 FLOP/s)
PUBLISHED = {
    "book-124m": ("5.1e+11", ((34248.82, 0.0814), (62568.34, 0.1486))),
    "book-355m": ("1.4e+12", ((20159.93, 0.1370), (21717.66, 0.1476), (22536.25, 0.1532))),
    "book-774m": ("3.2e+12", ((12465.21, 0.1851),)),
    "book-1558m": ("6.4e+12", ((6779.92, 0.2027),)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_counts_and_shares_of_every_size(name):
    """With biases of q, k and v, of linear maps alone; a training step takes three times the forward pass."""
    printed, rates = PUBLISHED[name]
    parts = flops.forward(preset(name).with_(qkv_bias=True), 2, 1024)
    linear = sum(parts.values()) - parts["attention scores and values"]
    assert f"{linear:.1e}" == printed
    for rate, share in rates:
        assert round(3 * linear / 2048 * rate / 312e12, 4) == share
