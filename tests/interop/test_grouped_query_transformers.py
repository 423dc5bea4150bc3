"""The judge from outside for grouped-query attention, gated feed-forwards and norms: transformers' modules.

Their whole model runs once, so that masks and angles are those that it gives to each layer itself; then every module
alone gives its output and the gradient of its input. The maps of names and settings below are this test's own.
"""

import copy
import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from moved import moved

from common import backend, params
from common.config import Execution, GPTConfig
from common.variants import GatedMLP, GroupedQuery, rotary
from common.variants.rotary import Rotary

WINGS = ("torch", "jax")
BATCH, LENGTH, WINDOW = 2, 112, 19
EMBED, HEADS, GROUPS, DIM, FF, EPS = 96, 6, 2, 24, 72, 1e-2
BOUND = 2e-5  # of the largest value; their float32 angles alone are off by 1e-5 at the last positions here
ANGLE = 5e-5
COMMON = {
    "vocab_size": 31,
    "hidden_size": EMBED,
    "intermediate_size": FF,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 128,
    "rms_norm_eps": EPS,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
}
BOTH = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
OURS = GPTConfig(31, 128, EMBED, 2, HEADS, ff_dim=FF, qkv_bias=False, norm_eps=EPS, positions="none")
OURS = OURS.with_(activation="silu", feed_forward=GatedMLP(), norm="rms_norm")
LOCAL = GroupedQuery(GROUPS, head_dim=DIM, window=WINDOW)
REST = ("model.layers.0.mlp", "model.norm")


@dataclass(frozen=True)
class Pair:
    """Their model ("Llama": LlamaModel of a LlamaConfig with these settings) and the config of ours.

    `one_plus`: their norms multiply by 1 + w. `side_by_side`: their rotary pairs are neighbours. `gated`: their q_proj
    holds the query and the gate of every head. All attentions are compared, unless they are of `another` kind, and
    `rest`.
    """

    theirs: str
    settings: dict
    ours: GPTConfig
    one_plus: bool = False
    side_by_side: bool = False
    gated: bool = False
    another: bool = False
    rest: tuple[str, ...] = REST

    @property
    def paths(self):
        attended = 0 if self.another else self.ours.num_layers
        return (*(f"model.layers.{layer}.self_attn" for layer in range(attended)), *self.rest)


def rope(kind, **settings):
    """Their settings of rotary positions."""
    return {"rope_type": kind, **settings}


def yarn(factor, original, fast, slow, **more):
    """Those of YaRN."""
    turns = {"beta_fast": fast, "beta_slow": slow}
    return rope("yarn", factor=factor, original_max_position_embeddings=original, **turns, **more)


def llama(theirs, turned, rest=()):
    """Llama with biases everywhere, and one kind of scaling."""
    entry = GroupedQuery(GROUPS, head_dim=DIM, out_bias=True, rotary=turned)
    settings = {"num_hidden_layers": 1, "head_dim": DIM, "attention_bias": True, "mlp_bias": True}
    ours = OURS.with_(num_layers=1, attention=entry, qkv_bias=True, feed_forward=GatedMLP(bias=True))
    return Pair("Llama", {**settings, "rope_parameters": theirs}, ours, rest=rest)


def local_and_global(entry, turned, **changes):
    """Our config: a layer with the entry's window, then one without; `turned` are the rotary positions of either."""
    local, full = (entry.with_(rotary=one) for one in turned)
    return OURS.with_(attention=(local, full.with_(window=None)), **changes)


def gated(theirs, base, fraction, **settings):
    """One layer of full attention with a gate, of which a part turns."""
    own = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "head_dim": DIM}
    turned = rope("default", rope_theta=base, partial_rotary_factor=fraction)
    entry = GroupedQuery(GROUPS, head_dim=DIM, qk_norm="head", gate=True, rotary=Rotary(base=base, fraction=fraction))
    ours = OURS.with_(num_layers=1, attention=entry)
    return Pair(theirs, {**own, "rope_parameters": turned, **settings}, ours, one_plus=True, gated=True)


LLAMA3 = {"low_freq_factor": 1.5, "high_freq_factor": 6.0, "original_max_position_embeddings": 64}
MSCALE = (0.1 * 0.8 * math.log(4) + 1) / (0.1 * 0.3 * math.log(4) + 1)
GEMMA = {**BOTH, "head_dim": DIM, "query_pre_attn_scalar": 40}
OSS_YARN = yarn(8.0, 48, 6.0, 0.4, rope_theta=400.0, truncate=False)
OSS = Rotary(base=400.0, scaling="yarn", factor=8.0, original=48, fast=6.0, slow=0.4, truncate=False)
OLMO_YARN = yarn(6.0, 40, 4.0, 0.3, attention_factor=1.3)
OLMO_LOCAL, OLMO_FULL = rope("default", rope_theta=300.0), {**OLMO_YARN, "rope_theta": 2000.0}
OLMO_TURNED = Rotary(base=2000.0, scaling="yarn", factor=6.0, original=40, fast=4.0, slow=0.3, attention_factor=1.3)
OLMO = GroupedQuery(GROUPS, window=WINDOW, qk_norm="width")  # heads of 16: its config knows no other size

PAIRS = {
    "llama": llama(rope("default", rope_theta=700.0), Rotary(base=700.0), REST),
    "llama-linear": llama(
        rope("linear", rope_theta=700.0, factor=3.0), Rotary(base=700.0, scaling="linear", factor=3.0)
    ),
    "llama-llama3": llama(
        rope("llama3", rope_theta=700.0, factor=5.0, **LLAMA3),
        Rotary(base=700.0, scaling="llama3", factor=5.0, low=1.5, high=6.0, original=64),
    ),
    "llama-yarn": llama(
        yarn(4.0, 40, 5.0, 0.5, rope_theta=700.0, mscale=0.8, mscale_all_dim=0.3),
        Rotary(base=700.0, scaling="yarn", factor=4.0, original=40, fast=5.0, slow=0.5, attention_factor=MSCALE),
    ),
    "qwen3": Pair(
        "Qwen3",
        {**BOTH, "head_dim": DIM, "use_sliding_window": True, "rope_parameters": rope("default", rope_theta=900.0)},
        local_and_global(LOCAL.with_(qk_norm="head"), 2 * [Rotary(base=900.0)]),
    ),
    # every layer has the window; one without experts
    "qwen3-moe": Pair(
        "Qwen3Moe",
        {
            "num_hidden_layers": 1,
            "head_dim": DIM,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "mlp_only_layers": [0],
            "rope_parameters": rope("default", rope_theta=900.0),
        },
        OURS.with_(num_layers=1, attention=LOCAL.with_(qk_norm="head", rotary=Rotary(base=900.0))),
    ),
    # its layers before the experts; its attention is compared in test_latent_transformers.py
    "deepseek-v3": Pair(
        "DeepseekV3",
        {
            "num_hidden_layers": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": HEADS,
            "q_lora_rank": 16,
            "kv_lora_rank": 12,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
        OURS.with_(num_layers=1, attention=GroupedQuery(GROUPS)),
        another=True,
    ),
    "gemma2": Pair(
        "Gemma2",
        {**GEMMA, "attn_logit_softcapping": 2.5, "rope_parameters": rope("default", rope_theta=500.0)},
        local_and_global(LOCAL.with_(scale=40**-0.5, softcap=2.5), 2 * [Rotary(base=500.0)], activation="gelu_tanh"),
        one_plus=True,
    ),
    "gemma3": Pair(
        "Gemma3Text",
        {
            **GEMMA,
            "hidden_activation": "gelu",
            "rope_parameters": {
                "sliding_attention": rope("default", rope_theta=300.0),
                "full_attention": rope("linear", rope_theta=5000.0, factor=4.0),
            },
        },
        local_and_global(
            LOCAL.with_(scale=40**-0.5, qk_norm="head"),
            [Rotary(base=300.0), Rotary(base=5000.0, scaling="linear", factor=4.0)],
            activation="gelu",
        ),
        one_plus=True,
    ),
    "gpt-oss": Pair(
        "GptOss",
        {**BOTH, "head_dim": DIM, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": OSS_YARN},
        local_and_global(LOCAL.with_(sinks=True, out_bias=True), 2 * [OSS], qkv_bias=True),
        rest=("model.norm",),
    ),
    "olmo3": Pair(
        "Olmo3",
        {**BOTH, "rope_parameters": {"sliding_attention": OLMO_LOCAL, "full_attention": OLMO_FULL}},
        local_and_global(OLMO, [Rotary(base=300.0), OLMO_TURNED]),
    ),
    # as its checkpoints write it; the base of sliding layers stays at its default
    "olmo3-hub": Pair(
        "Olmo3",
        {**BOTH, "rope_theta": 2000.0, "rope_scaling": OLMO_YARN},
        local_and_global(OLMO, [Rotary(base=500_000.0), OLMO_TURNED]),
        rest=(),
    ),
    "cohere2": Pair(
        "Cohere2",
        {**BOTH, "layer_norm_eps": EPS, "attention_bias": True, "rope_parameters": rope("default", rope_theta=250.0)},
        local_and_global(
            GroupedQuery(GROUPS, window=WINDOW, out_bias=True),
            [Rotary(base=250.0), None],
            qkv_bias=True,
            norm="layer_norm",
        ),
        side_by_side=True,
    ),
    "qwen3-next": gated("Qwen3Next", 600.0, 0.25, mlp_only_layers=[0]),
    "qwen3.5": gated("Qwen3_5Text", 800.0, 0.5),
}
PARTS = [(name, path) for name, pair in PAIRS.items() for path in pair.paths]
TURNING = [(name, i) for name, pair in PAIRS.items() for i, entry in enumerate(pair.ours.attention) if entry.rotary]


@functools.cache
def signals():
    """(input, cotangent) float32 [B, T, E]; rows of different size, so that a norm's epsilon shows."""
    rng = np.random.default_rng(3)
    sizes = rng.uniform(0.3, 2.0, (BATCH, LENGTH, 1))
    x, cotangent = (rng.standard_normal((BATCH, LENGTH, EMBED)) for _ in range(2))
    return (sizes * x).astype(np.float32), cotangent.astype(np.float32)


def outside(name, **changes):
    """Their model with every parameter random, norms, biases and sinks too."""
    transformers = pytest.importorskip("transformers")
    pair = PAIRS[name]
    settings = copy.deepcopy({**COMMON, **pair.settings, **changes})  # configs write into what they are given
    config = getattr(transformers, f"{pair.theirs}Config")(**settings)
    kind = getattr(transformers, f"{pair.theirs}Model")
    theirs = kind._from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for label, p in theirs.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(1.5 * noise / p.shape[-1] ** 0.5)
            else:
                p.copy_(0.5 * noise + (1.0 if "norm" in label and not pair.one_plus else 0.0))
    return theirs


theirs_of = functools.cache(outside)


def handed(theirs):
    """What their model hands to the attention of every layer: its mask, its cosines and sines."""
    found = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda _, args, given: found.append(given), with_kwargs=True)
        for layer in theirs.layers
    ]
    with torch.no_grad():
        theirs(inputs_embeds=torch.from_numpy(signals()[0]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def run(theirs, path, x):
    """Their module at a path of ours."""
    module = theirs.get_submodule(path.removeprefix("model."))
    if not path.endswith("self_attn"):
        return module(x)
    given = handed(theirs)[int(path.split(".")[2])]
    return module(**(given | {"hidden_states": x}))[0]


@functools.cache
def truth(name, path):
    """(output, gradient of the input) of theirs."""
    x, cotangent = (torch.from_numpy(array) for array in signals())
    x = x.clone().requires_grad_()
    out = run(theirs_of(name), path, x)
    (grad,) = torch.autograd.grad((out * cotangent).sum(), x)
    return out.detach().numpy(), grad.numpy()


def ours(pair, label, theirs):
    """(their name, the tensor as ours) behind a name of ours."""
    part, source = label.split(".")[-2], label.removeprefix("model.")
    if pair.gated and ".self_attn." in label and part in ("q_proj", "gate_proj"):
        source = source.replace("gate_proj", "q_proj")
        both = theirs[source].reshape(HEADS, 2, DIM, EMBED)
        return source, both[:, int(part == "gate_proj")].reshape(HEADS * DIM, EMBED)
    if label == "model.norm.bias":  # Cohere's norm has none
        return source, np.zeros(EMBED, np.float32)
    value = theirs[source]
    if pair.one_plus and part.endswith("norm"):
        value = 1 + value
    if pair.side_by_side and part in ("q_proj", "k_proj"):
        value = rotary.interleaved_to_halves(value, pair.ours.head_dim)
    return source, value


@functools.cache
def weights_of(name):
    """Theirs under our names; what is not compared stays random. None of theirs may be left over."""
    pair = PAIRS[name]
    compared = tuple(f"{path}." for path in pair.paths)
    theirs = {label: p.detach().numpy() for label, p in theirs_of(name).named_parameters()}
    weights, used = params.randomise(pair.ours, 7), set()
    for label in [label for label in weights if label.startswith(compared)]:
        source, weights[label] = ours(pair, label, theirs)
        used.add(source)
    left = {label for label in theirs if f"model.{label}".startswith(compared)} - used
    assert not left, left
    return weights


@functools.cache
def built(name, wing):
    return backend.load(wing).build(PAIRS[name].ours, weights_of(name), Execution(dtype="float32"))


def by_oracle(config, weights, path):
    """The oracle's output at a path: without the gradient, which costs it a pass for every number."""
    model = backend.load("numpy").build(config, weights, Execution(dtype="float64"))
    positions = np.arange(LENGTH, dtype=np.int32)[None]
    return backend.call(model.net.at(path).__call__, signals()[0].astype(np.float64), positions)


def distance(got, want):
    """The largest difference, relative to the largest value."""
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


# --- equality ---------------------------------------------------------------------------------------------------------


# JAX computes one layer of every kind here; the others, which PyTorch and the oracle compute, for `make test-full`
KINDS = {"llama-llama3": 0, "gemma2": 0, "gpt-oss": 0, "olmo3": 1, "cohere2": 1, "qwen3-next": 0}
OTHERS = [(name, path) for name, path in PARTS if f".layers.{KINDS.get(name)}." not in path]


@pytest.mark.full_for(*(f"{name}-{path}-jax" for name, path in OTHERS))
@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize(("name", "path"), PARTS)
def test_outputs_and_input_gradients(name, path, wing):
    out, gradients = built(name, wing).component(path, *signals())
    want, slope = truth(name, path)
    assert distance(out, want) < BOUND
    assert distance(gradients.grads["input"], slope) < BOUND


@pytest.mark.parametrize(("name", "path"), PARTS)
def test_outputs_of_the_oracle(name, path):
    assert distance(by_oracle(PAIRS[name].ours, weights_of(name), path), truth(name, path)[0]) < BOUND


@pytest.mark.parametrize(("name", "layer"), TURNING)
def test_angles(name, layer):
    """Cosines and sines of every position, YaRN's factor included, against our table."""
    pair = PAIRS[name]
    entry = pair.ours.attention_of(layer)
    table = rotary.table(entry.rotary, entry.heads(pair.ours)[2], LENGTH)
    for got, theirs in zip(table, handed(theirs_of(name))[layer]["position_embeddings"], strict=True):
        # of each angle, which stands there twice, one
        want = theirs[0, :, ::2] if pair.side_by_side else theirs[0, :, : got.shape[-1]]
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=ANGLE)


# --- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_every_setting_counts(name):
    """With any one setting moved, we are far from theirs: the bound tells."""
    config = PAIRS[name].ours
    entries = [config.attention_of(layer) for layer in range(config.num_layers)]
    for layer, entry in enumerate(entries):
        path = f"model.layers.{layer}.self_attn"
        for what, other in moved(entry):
            changed = config.with_(attention=(*entries[:layer], other, *entries[layer + 1 :]))
            gap = distance(by_oracle(changed, weights_of(name), path), truth(name, path)[0])
            assert gap > 10 * BOUND, (layer, what)


# --- where transformers deviates --------------------------------------------------------------------------------------


def test_olmo_stretches_full_layers_alone():
    """Not sliding layers, as the book's code does (features.md, D-24). And a base given as checkpoints give it reaches
    full layers only: `Olmo3Config.convert_rope_params_to_dict` takes it out for the first of two."""
    config, path = PAIRS["olmo3-hub"].ours, "model.layers.0.self_attn"
    local, full = config.attention
    for turned in (full.rotary, Rotary(base=full.rotary.base)):
        other = config.with_(attention=(local.with_(rotary=turned), full))
        gap = distance(by_oracle(other, weights_of("olmo3-hub"), path), truth("olmo3-hub", path)[0])
        assert gap > 1e-2


UNREAD = {
    "gemma3": {"attn_logit_softcapping": 0.5},  # Gemma3Attention hands no cap to its kernel
    # _compute_yarn_parameters looks for it beside the kinds of layers, not inside
    "olmo3": {"rope_parameters": {"sliding_attention": OLMO_LOCAL, "full_attention": {**OLMO_FULL, "truncate": False}}},
}


@pytest.mark.parametrize("name", UNREAD)
def test_settings_that_theirs_does_not_read(name):
    """transformers 5.23: what these would do is not compared above."""
    other, x = outside(name, **UNREAD[name]), torch.from_numpy(signals()[0])
    for layer in range(2):
        path = f"model.layers.{layer}.self_attn"
        with torch.no_grad():
            got = run(other, path, x).numpy()
        assert distance(got, truth(name, path)[0]) < 1e-6
