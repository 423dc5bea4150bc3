"""What `parallax estimate` says is what models have: caches to the byte, and every number that of one closed form."""

import functools
import math

import numpy as np
import pytest

from common import params
from common.accounting import activations, estimate, flops, memory
from common.backend import load
from common.cases import CASES
from common.config import DTYPES, Execution, GPTConfig, preset
from common.errors import UserError
from common.variants import GatedDeltaNet, GroupedQuery, Latent, MultiHead
from common.variants.multi_head import KERNELS

SMALL = GPTConfig(31, 40, 24, 6, 4, ff_dim=20)
LOCAL, GLOBAL = GroupedQuery(num_kv_heads=2, window=5), GroupedQuery(num_kv_heads=2)
PATTERNS = {
    "five local, one global": (LOCAL,) * 5 + (GLOBAL,),
    "heads of their own size": GroupedQuery(num_kv_heads=4, head_dim=10),
    "multi-head and one group": (MultiHead(), GroupedQuery(window=3)),
    "the later half shares": (GLOBAL,) * 3 + (GLOBAL.with_(shares=True),) * 3,
    "local and global are shared apart": (LOCAL, GLOBAL, *(one.with_(shares=True) for one in (LOCAL, GLOBAL))),
}
CONFIGS = {name: case.config for name, case in CASES.items()}
CONFIGS |= {name: SMALL.with_(attention=pattern) for name, pattern in PATTERNS.items()}
# in a width of 24, which is no multiple of 5
OWN_SIZES = GroupedQuery(head_dim=6), Latent(rank=8, head_dim=7), GatedDeltaNet(key_dim=3, value_dim=5, kernel=2)
CONFIGS["five heads of their own sizes"] = SMALL.with_(num_heads=5, attention=OWN_SIZES)
# many cases are parts of one and the same model
DISTINCT = {config: name for name, config in reversed(CONFIGS.items())}
CACHING = {config: name for config, name in DISTINCT.items() if config.cacheable}


@functools.cache
def built(wing, config, dtype):
    return load(wing).build(config, params.initialise(config, 0), Execution(dtype))


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CACHING, ids=CACHING.values())
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_caches_are_as_large_as_they_are_said_to_be(wing, config, dtype):
    """Windows longer and shorter than the text."""
    model = built(wing, config, dtype)
    for batch, slots in ((1, 1), (3, 4), (2, config.context_length)):
        assert model.new_cache(batch, slots).nbytes == estimate.cache_bytes(config, batch, slots, dtype)


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_a_cache_stays_as_large_while_it_fills(wing):
    config = CONFIGS["five local, one global"]
    model = built(wing, config, "float32")
    cache = model.new_cache(2, 17)
    for length in (8, 1, 8):
        model.extend(cache, np.ones((2, length), np.int32))
        assert cache.nbytes == estimate.cache_bytes(config, 2, 17)


def test_heads_need_not_share_the_width():
    config, ids = CONFIGS["five heads of their own sizes"], np.arange(2 * 9, dtype=np.int32).reshape(2, 9)
    found, want = (built(name, config, "float64").forward(ids).logits for name in ("torch", "numpy"))
    assert np.abs(found - want).max() < 1e-12 * np.abs(want).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_that_of_a_closed_form(dtype):
    for config in (SMALL, CONFIGS["five local, one global"], CASES["gpt_dropout"].config):
        found = estimate.estimate("a model", config, 9, 3, dtype)
        kept = sum(activations.saved(config, 3, 9, dtype, dropout=True).values())
        kind = "float64" if dtype == "float64" else "float32"
        assert (found.name, found.context, found.batch) == ("a model", 9, 3)
        assert found.parameters == found.active == params.count(config)
        for task, name in (("forward", "forward"), ("train", "training"), ("decode", "decode")):
            assert getattr(found, name) == flops.flops_full(config, task, 3, 9)
            assert getattr(found, f"{name}_causal") == flops.flops_causal(config, task, 3, 9)
        assert (found.weights, found.state) == (memory.weights(config, kind), memory.training(config, kind))
        assert found.kept == kept
        assert found.cache == memory.kv_cache(config, 3, 9, dtype)
        assert found.states == 0
        assert found.moved == sum(memory.decode_bytes(config, 3, 9, dtype).values())


def test_published_sizes():
    """GPT-2 124M (Radford et al. 2019; 2 x 1024 tokens forward: Raschka, FLOPs analysis)."""
    found = estimate.estimate("gpt2-124m", preset("gpt2-124m"), 1024, 2)
    assert found.parameters == 124_439_808
    book = estimate.estimate("book-124m", preset("book-124m"), 1024, 2)
    assert book.parameters == 163_009_536
    assert math.isclose(book.forward, 5.83e11, rel_tol=1e-3)


def test_a_longer_context_adds_learned_positions_alone():
    config = SMALL.with_(context_length=8)
    short, long = (estimate.estimate("", config, context, 1) for context in (8, 20))
    assert long.parameters - short.parameters == 12 * config.embed_dim
    without = config.with_(positions="sinusoidal")
    assert estimate.estimate("", without, 20, 1).parameters == estimate.estimate("", without, 8, 1).parameters


def test_what_grows_how():
    """Scores grow with the square of the context, caches with windows do not grow at all."""
    local = SMALL.with_(attention=LOCAL)
    grid = estimate.grid({"all": SMALL, "local": local}, (64, 128), (1, 2))
    assert [(one.name, one.context, one.batch) for one in grid[:4]] == [
        ("all", 64, 1), ("local", 64, 1), ("all", 128, 1), ("local", 128, 1),
    ]  # fmt: skip
    short, short_local, long, long_local = grid[:4]
    assert long.cache == 2 * short.cache
    assert long_local.cache == short_local.cache == 2 * 6 * 5 * 2 * 6 * 4
    linear = long.forward - 2 * short.forward
    assert linear == flops.forward(SMALL, 1, 128)["attention scores and values"] // 2
    assert long_local.decode - short_local.decode == 0
    assert grid[4].forward == 2 * short.forward


def test_a_token_meets_all_parameters_of_a_dense_model():
    assert estimate.active(SMALL) == params.count(SMALL)
    one, two = (estimate.parameters(SMALL, f"model.layers.{layer}.mlp") for layer in (0, 1))
    assert one == two == estimate.active(SMALL, "model.layers.1.mlp") == 24 * 20 * 2 + 20 + 24
    assert estimate.parameters(SMALL, "model.layers.1") > one


def test_what_cannot_be_estimated_is_refused():
    local = SMALL.with_(attention=LOCAL)
    for words, call in {
        "What the attention kernel 'flex' keeps has no closed form": lambda: estimate.estimate(
            "it", SMALL, 8, 1, attention="flex"
        ),
        "Unknown dtype 'float46'": lambda: estimate.estimate("it", SMALL, 8, 1, "float46"),
        "Unknown attention kernel 'flash'": lambda: estimate.estimate("it", SMALL, 8, 1, attention="flash"),
        "it has 'grouped_query' attention, which has no kernel 'fused'": lambda: estimate.estimate(
            "it", local, 8, 1, attention="fused"
        ),
        "it has 1,025 layers": lambda: estimate.estimate("it", SMALL.with_(num_layers=1025), 8, 1),
        "1,002 estimates": lambda: estimate.grid({"it": SMALL}, range(1, 502), (1, 2)),
    }.items():
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_that_refuse_a_training_step_are_not_estimated(kernel):
    """With dropout on the attention weights; other rates are no matter."""
    ids = np.ones((1, 4), np.int32)
    for config in (SMALL.with_(dropout_attn=0.1), SMALL.with_(dropout_embed=0.1, dropout_shortcut=0.1)):
        model = load("torch").build(config, params.initialise(config, 0), Execution(attention=kernel))
        if config.dropout_attn and kernel not in ("plain", "loop"):
            with pytest.raises(UserError, match="use attention='plain' or dropout_attn 0"):
                model.gradients(ids, ids, (0, 0))
            with pytest.raises(UserError, match=f"it cannot be trained with the attention kernel '{kernel}'"):
                estimate.estimate("it", config, 4, 1, attention=kernel)
        else:
            model.gradients(ids, ids, (0, 0))
            assert estimate.estimate("it", config, 4, 1, attention=kernel).kept


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_are_the_part_of_a_cache_that_no_context_lengthens(dtype):
    entries = {"kind": "gated_deltanet", "kernel": 1}, {"kind": "grouped_query", "window": 4}
    state, mixed = (SMALL.with_(attention=pattern) for pattern in (entries[0], entries))
    wide = 8 if dtype == "float64" else 4
    found = estimate.estimate("", state, 20, 3, dtype)
    assert found.states == found.cache == 3 * 6 * 4 * 6 * 6 * wide
    both = estimate.estimate("", mixed, 20, 3, dtype)
    assert 2 * both.states == found.states
    assert both.cache - both.states == 3 * 3 * 2 * 4 * 6 * memory.ITEM_BYTES[dtype]


def test_what_a_saving_is():
    assert estimate.saving(100, 25) == (4.0, 0.75)
    assert estimate.saving(100, 0) == (math.inf, 1.0)
