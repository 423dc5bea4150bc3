"""The judge from outside: transformers' gated delta nets with the same numbers give the same outputs and gradients.

Qwen3-Next fuses its projections group by group, Qwen3.5 joins q, k and v; the map of names is this test's own. Theirs
computes the rule in float32, in chunks of 64 (token by token with a cache): hence 1e-4 of the largest number.
"""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import backend, params
from common.config import Execution, GPTConfig
from common.variants.gated_deltanet import GatedDeltaNet

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims

PATH, BOUND = "model.layers.0.self_attn", 1e-4
BATCH, LENGTH, EMBED = 2, 150, 24  # two chunks and a part
CASES = {  # (family, key heads, value heads, key size, value size, kernel)
    "Qwen3-Next, shared keys": ("qwen3_next", 2, 6, 5, 7, 3),
    "Qwen3-Next, a key for each": ("qwen3_next", 3, 3, 8, 4, 5),
    "Qwen3.5": ("qwen3_5", 2, 4, 6, 8, 4),
}
CLASSES = {  # (module, its class, its config)
    "qwen3_next": ("modeling_qwen3_next", "Qwen3NextGatedDeltaNet", "Qwen3NextConfig"),
    "qwen3_5": ("modeling_qwen3_5", "Qwen3_5GatedDeltaNet", "Qwen3_5TextConfig"),
}


def outside(family, keys, heads, dim, size, kernel):
    """(their layer with every parameter random, their config)."""
    transformers = pytest.importorskip("transformers")
    file, name, config = CLASSES[family]
    theirs = pytest.importorskip(f"transformers.models.{family}.{file}")
    settings = getattr(transformers, config)(
        hidden_size=EMBED,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=keys,
        linear_num_value_heads=heads,
        linear_key_head_dim=dim,
        linear_value_head_dim=size,
        linear_conv_kernel_dim=kernel,
        rms_norm_eps=1e-2,
    )
    module = getattr(theirs, name)(settings, layer_idx=0).eval()
    means = {"norm.weight": 1.0, "dt_bias": 0.5, "A_log": -2.0}  # so slow that a state outlives a chunk
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(0.5 * noise + means[name] if p.ndim == 1 else noise * 1.5 / p.shape[-1] ** 0.5)
    return module, settings


def ours(tensors, family, keys, heads, dim, size, kernel):
    """Their tensors (values or gradients) under our names."""
    share = heads // keys
    joined = [keys * dim, 2 * keys * dim]  # where q, k and v are cut
    if family == "qwen3_next":
        by_group = tensors["in_proj_qkvz.weight"].reshape(keys, 2 * dim + 2 * share * size, EMBED)
        q, k, v, gate = np.split(by_group, [dim, 2 * dim, 2 * dim + share * size], 1)
        b, a = np.split(tensors["in_proj_ba.weight"].reshape(keys, 2 * share, EMBED), 2, 1)
    else:
        q, k, v = np.split(tensors["in_proj_qkv.weight"], joined)
        gate, b, a = (tensors[f"in_proj_{name}.weight"] for name in "zba")
    found = {f"{name}_proj.weight": w for name, w in {"q": q, "k": k, "v": v, "gate": gate, "b": b, "a": a}.items()}
    found["o_proj.weight"] = tensors["out_proj.weight"]
    found = {name: value.reshape(-1, value.shape[-1]) for name, value in found.items()}
    for name, value in zip("qkv", np.split(tensors["conv1d.weight"][:, 0], joined), strict=True):
        found[f"{name}_conv"] = value
    found |= {name: tensors[name] for name in ("A_log", "dt_bias", "norm.weight")}
    return {f"{PATH}.{name}": np.ascontiguousarray(value) for name, value in found.items()}


@pytest.fixture(scope="module", params=CASES, ids=[name.replace(", ", "-").replace(" ", "-") for name in CASES])
def case(request):
    settings = CASES[request.param]
    theirs, their_config = outside(*settings)
    _, keys, heads, dim, size, kernel = settings
    x, cotangent = (
        torch.from_numpy(params.draw(1, f"deltanet/{name}", (BATCH, LENGTH, EMBED)).astype(np.float32))
        for name in ("x", "cotangent")
    )
    x.requires_grad_()
    output = theirs(x)
    (output * cotangent).sum().backward()
    named = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    grads = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    entry = GatedDeltaNet(keys, heads, dim, size, kernel)
    return SimpleNamespace(
        config=GPTConfig(7, 160, EMBED, 1, 2, ff_dim=8, qkv_bias=False, norm_eps=1e-2, attention=entry),
        theirs=theirs,
        their_config=their_config,
        sizes=settings[1:],
        weights=ours(named, *settings),
        x=x.detach(),
        cotangent=cotangent.numpy(),
        output=output.detach().numpy(),
        grads=ours(grads, *settings) | {"input": x.grad.numpy()},
    )


def built(case, wing, dtype, **execution):
    weights = params.randomise(case.config, 0) | case.weights
    return backend.load(wing).build(case.config, weights, Execution(dtype=dtype, **execution))


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=BOUND * np.abs(want).max())


def with_cache(case, parts, mask=None):
    """(their outputs, states [B, H, D, P], last inputs [B, W - 1, C]) of x through a cache in parts of such lengths."""
    transformers = pytest.importorskip("transformers")
    cache, found, start = transformers.DynamicCache(config=case.their_config), [], 0
    with torch.no_grad():
        for length in parts:
            part = slice(start, start + length)
            seen = None if mask is None else mask[:, part]
            found.append(case.theirs(case.x[:, part], cache_params=cache, attention_mask=seen).numpy())
            start += length
    layer, kernel = cache.layers[0], case.sizes[-1]
    return np.concatenate(found, 1), layer.recurrent_states[0].numpy(), last_inputs(layer.conv_states[0], kernel)


def last_inputs(conv_states, kernel):
    """Theirs keeps W inputs [B, C, W], of which it reads W - 1."""
    return conv_states[..., conv_states.shape[-1] - (kernel - 1) :].transpose(1, 2).numpy()


def through_oracle(case, positions, parts):
    """(outputs, states, last inputs) of the oracle's layer on as much of x as there are positions."""
    layer, x = built(case, "numpy", "float64").net.at(PATH), case.x.numpy().astype(np.float64)
    cache, found, start = layer.empty_cache(case.config, case.config.attention_of(0), BATCH, 0), [], 0
    for length in parts:
        part = slice(start, start + length)
        output, cache = layer(x[:, part], positions[:, part], cache)
        found.append(output)
        start += length
    return np.concatenate(found, 1), cache.state_BHDP, cache.inputs_BWC


def test_every_parameter_is_mapped(case):
    own = {name: p.shape for name, p in params.table(case.config).items() if name.startswith(PATH)}
    assert {name: value.shape for name, value in case.weights.items()} == own
    assert sum(value.size for value in case.weights.values()) == sum(p.numel() for p in case.theirs.parameters())
    assert all(value.std() > 0.01 for value in case.weights.values())


@pytest.mark.full_for("jax-float64", "Qwen3-Next-shared-keys-jax", "Qwen3.5-jax-float32-recurrent")
@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_outputs_and_gradients(case, wing, dtype, form):
    output, gradients = built(case, wing, dtype, recurrence=form).component(PATH, case.x.numpy(), case.cotangent)
    close(output, case.output)
    assert set(gradients.grads) == set(case.grads)
    for name, want in case.grads.items():
        close(gradients.grads[name], want)


def test_outputs_and_states_of_the_oracle(case):
    """Against one pass of theirs, and against theirs with its cache: chunks, single tokens, a state kept between."""
    positions = np.arange(LENGTH, dtype=np.int32)[None]
    output, state, inputs = through_oracle(case, positions, [LENGTH])
    close(output, case.output)
    theirs, their_state, their_inputs = with_cache(case, [1, 1, 70, 1, 1, 75, 1])
    close(output, theirs)
    close(state, their_state)
    close(inputs, their_inputs)


def test_every_setting_counts(case):
    """With any one setting moved, we are far from theirs: the bound tells. All of the layer's own shape parameters; one
    head of queries and keys, as wide as theirs together, has parameters of the same shapes.
    """
    (entry,) = case.config.attention
    _, keys, dim = entry.heads(case.config)
    one = entry.with_(num_key_heads=1, key_dim=keys * dim)
    for config in (case.config.with_(attention=one), case.config.with_(norm_eps=1.1 * case.config.norm_eps)):
        other = SimpleNamespace(**{**vars(case), "config": config})
        output, _, _ = through_oracle(other, np.arange(LENGTH, dtype=np.int32)[None], [LENGTH])
        assert np.abs(output - case.output).max() > 10 * BOUND * np.abs(case.output).max(), config


def test_rows_padded_on_the_left(case):
    """Theirs sets their inputs to zero, which leaves an empty state empty; ours must not look at them."""
    positions = np.stack([np.arange(LENGTH), np.maximum(np.arange(LENGTH) - 40, -1)]).astype(np.int32)
    there = positions >= 0
    theirs, their_state, their_inputs = with_cache(case, [LENGTH], torch.from_numpy(there))
    output, state, inputs = through_oracle(case, positions, [100, LENGTH - 100])
    close(output[there], theirs[there])
    close(state, their_state)
    close(inputs, their_inputs)


def test_where_theirs_lets_padding_change_the_state(case):
    """A deviation: padding behind a text, or in a later part, makes their state fade by exp(-A softplus(dt_bias)), and
    writes what the convolution still holds of the text, for their inputs of zeros have decay and strength. Not ours."""
    text, padding = 50, 6
    there = np.ones((BATCH, text + padding), bool)
    there[:, text:] = False
    _, before, inputs = with_cache(case, [text])
    _, after, later = with_cache(case, [text + padding], torch.from_numpy(there))
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()
    assert (later == 0).all()
    positions = np.where(there, np.arange(text + padding), -1).astype(np.int32)
    for parts in ([text + padding], [text, padding]):
        _, state, own = through_oracle(case, positions, parts)
        close(state, before)
        close(own, inputs)


@pytest.mark.parametrize("function", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
@pytest.mark.parametrize("rule", ["recurrent_rule", "chunked_rule"])
@pytest.mark.parametrize("wing", ["torch_impl", "jax_impl", "common.oracle"])
def test_the_rules_by_themselves(wing, rule, function):
    """With a state to begin with. Theirs scales queries and repeats heads inside."""
    theirs = getattr(pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next"), function)
    draw, (keys, heads, dim, size) = np.random.default_rng(8), (2, 4, 5, 6)
    q, k = draw.standard_normal((2, BATCH, LENGTH, keys, dim))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    v, state = draw.standard_normal((BATCH, LENGTH, heads, size)), draw.standard_normal((BATCH, heads, dim, size))
    log_decay, beta = -draw.exponential(0.1, (BATCH, LENGTH, heads)), draw.uniform(0, 1, (BATCH, LENGTH, heads))
    tensors = [torch.from_numpy(x.astype(np.float32)) for x in (q, k, v, log_decay, beta, state)]
    want, last = theirs(*tensors[:3], g=tensors[3], beta=tensors[4], initial_state=tensors[5], output_final_state=True)
    repeated = [np.repeat(x, heads // keys, 2) for x in (q / dim**0.5, k)]
    arrays = [*(np.swapaxes(x, 1, 2) for x in (*repeated, v, log_decay, beta[..., None])), state]
    arrays = [np.ascontiguousarray(x, np.float32) for x in arrays]
    if wing == "torch_impl":
        arrays = [torch.from_numpy(x) for x in arrays]
    got, end = getattr(import_module(f"{wing}.attention.gated_deltanet"), rule)(*arrays)
    close(np.swapaxes(np.asarray(got), 1, 2), want.numpy())
    close(np.asarray(end), last.numpy())
