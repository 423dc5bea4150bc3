"""The way to multi-head attention, with the numbers that the book prints for its six tokens of three numbers.

Weights that PyTorch draws go into all three implementations as arrays: what follows from them is the same everywhere.
Source: Raschka, *Build a Large Language Model (From Scratch)*, chapter 3.
"""

import contextlib
import importlib

import numpy as np
import pytest

from common import params, rng
from common.config import GPTConfig
from common.oracle.attention import first_steps as oracle
from common.taps import Taps

TOKENS = np.array(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)
PLACES = {"numpy": "common.oracle", "torch": "torch_impl", "jax": "jax_impl"}


@pytest.fixture(params=PLACES)
def steps(request):
    """steps(name, *arrays, **options): a function of an implementation in float64, its result as NumPy's array.

    `seed` becomes the key of its own generator.
    """
    module = importlib.import_module(f"{PLACES[request.param]}.attention.first_steps")
    address = rng.address if request.param == "numpy" else importlib.import_module(f"{request.param}_impl.rng").address
    x64, array = contextlib.nullcontext, np.asarray
    if request.param == "torch":
        array = importlib.import_module("torch").tensor
    if request.param == "jax":
        jax = importlib.import_module("jax")
        x64, array = lambda: jax.enable_x64(True), jax.numpy.asarray

    def put(given):
        return [put(part) for part in given] if isinstance(given, (list, tuple)) else array(given)

    def call(name, *given, **options):
        with x64():
            if "seed" in options:
                options["key"] = address(options.pop("seed"), rng.DROPOUT, 0)
            return np.asarray(getattr(module, name)(*map(put, given), **options))

    return call


def drawn(seed, linear):
    """What the book draws after `torch.manual_seed(seed)`: three weights [2, 3], as parameters or inside Linear."""
    import torch

    torch.manual_seed(seed)
    if linear:
        return [torch.nn.Linear(3, 2, bias=False).weight.detach().double().numpy() for _ in range(3)]
    return [torch.rand(3, 2).T.double().numpy() for _ in range(3)]


def printed(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=5.1e-5)  # four digits


def test_attention_without_weights(steps):
    taps = Taps(("*",))
    context = steps("simple_attention", TOKENS, taps=taps)
    printed(np.asarray(taps.found["scores"])[1], [0.9544, 1.4950, 1.4754, 0.8434, 0.7070, 1.0865])
    printed(np.asarray(taps.found["weights"])[1], [0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581])
    printed(context[1], [0.4419, 0.6515, 0.5683])
    printed(context[0], [0.4421, 0.5931, 0.5790])


def test_attention_with_weights(steps):
    taps = Taps(("*",))
    context = steps("self_attention", TOKENS, *drawn(123, linear=False), taps=taps)
    printed(np.asarray(taps.found["q"])[1], [0.4306, 1.4551])
    printed(np.asarray(taps.found["scores"])[1, 1], 1.8524)
    printed(np.asarray(taps.found["weights"])[1], [0.1500, 0.2264, 0.2199, 0.1311, 0.0906, 0.1820])
    printed(context[1], [0.3061, 0.8210])


def test_causal_attention(steps):
    """Both texts of the batch are the six tokens; the first token sees itself alone, the last one everything."""
    weights = drawn(123, linear=True)
    context = steps("causal_attention", np.stack([TOKENS, TOKENS]), *weights)
    assert context.shape == (2, 6, 2)
    printed(context[:, 0], [[-0.4519, 0.2216]] * 2)
    np.testing.assert_allclose(context[0, 0], weights[2] @ TOKENS[0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(context[0, -1], steps("self_attention", TOKENS, *weights)[-1], rtol=0, atol=1e-15)


def test_dropout_falls_on_the_weights_and_scales_the_others(steps):
    """With the shared generator: the same weights fall in all three, the others are doubled."""
    weights, key, taps = drawn(123, linear=True), rng.address(7, rng.DROPOUT, 0), [Taps(("*",)), Taps(("*",))]
    batch = np.stack([TOKENS, TOKENS])
    want = oracle.causal_attention(batch, *weights, 0.5, key, taps[0])
    before = Taps(("*",))
    oracle.causal_attention(batch, *weights, taps=before)
    kept = taps[0].found["weights"] != 0
    np.testing.assert_allclose(taps[0].found["weights"][kept], 2 * before.found["weights"][kept], rtol=1e-12)
    assert 0.3 < kept[np.broadcast_to(np.tri(6, dtype=bool), kept.shape)].mean() < 0.7
    got = steps("causal_attention", batch, *weights, rate=0.5, seed=7, taps=taps[1])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-15)


def test_stacked_heads_stand_side_by_side_and_drop_differently(steps):
    one, two, batch = drawn(123, linear=True), drawn(789, linear=True), np.stack([TOKENS, TOKENS])
    both = steps("stacked_heads", batch, [one, two])
    assert both.shape == (2, 6, 4)
    for head, part in ((one, both[..., :2]), (two, both[..., 2:])):
        np.testing.assert_array_equal(part, steps("causal_attention", batch, *head))
    key = rng.address(7, rng.DROPOUT, 0)
    dropped = steps("stacked_heads", batch, [one, one], rate=0.5, seed=7)
    assert (dropped[..., :2] != dropped[..., 2:]).any()
    np.testing.assert_allclose(dropped, oracle.stacked_heads(batch, [one, one], 0.5, key), rtol=0, atol=1e-15)


def test_multi_head_attention_is_stacked_heads_and_a_projection():
    """The model's own attention on its own weights, cut into heads, is the last step but one."""
    from common import backend
    from common.config import Execution

    config = GPTConfig(11, 6, 8, 1, 2, qkv_bias=False, ff_dim=4)
    weights = params.randomise(config, 3)
    at = "model.layers.0.self_attn"
    x = params.draw(0, "x", (2, 6, 8))
    q, k, v, o = (weights[f"{at}.{name}_proj.weight"].astype(np.float64) for name in "qkvo")
    heads = [[w[4 * h : 4 * h + 4] for w in (q, k, v)] for h in range(2)]
    want = oracle.stacked_heads(x, heads) @ o.T + weights[f"{at}.o_proj.bias"]
    for wing in PLACES:
        model = backend.load(wing).build(config, weights, Execution("float64"))
        np.testing.assert_allclose(model.component(at, x, np.ones_like(x))[0], want, rtol=0, atol=1e-13)


def test_the_size_of_the_books_attention():
    """768 wide, 12 heads, no biases but the last: 2,360,064 numbers."""
    config = GPTConfig(50257, 1024, 768, 12, 12, qkv_bias=False)
    table = params.table(config).values()
    assert sum(p.size for p in table if p.name.startswith("model.layers.0.self_attn.")) == 2_360_064


def test_multi_head_attention_as_the_book_draws_it(steps):
    """Two heads of one number each, and the projection that joins them."""
    import torch

    torch.manual_seed(123)
    q, k, v = (torch.nn.Linear(3, 2, bias=False).weight.detach().double().numpy() for _ in range(3))
    out = torch.nn.Linear(2, 2).double()
    heads = [[w[h : h + 1] for w in (q, k, v)] for h in range(2)]
    joined = steps("stacked_heads", np.stack([TOKENS, TOKENS]), heads)
    context = joined @ out.weight.detach().numpy().T + out.bias.detach().numpy()
    printed(context[:, 0], [[0.3190, 0.4858]] * 2)
