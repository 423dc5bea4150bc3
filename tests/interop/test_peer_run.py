"""60 training steps that somebody else's PyTorch implementation took (the book's package): ours take the same ones."""

import json

import numpy as np
import pytest

from common import backend
from common.config import Execution, GPTConfig, TrainConfig

BOOK = {
    "att.W_query": "self_attn.q_proj",
    "att.W_key": "self_attn.k_proj",
    "att.W_value": "self_attn.v_proj",
    "att.out_proj": "self_attn.o_proj",
    "ff.layers.0": "mlp.up_proj",
    "ff.layers.2": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
OUTER = {
    "tok_emb": "model.embed_tokens",
    "pos_emb": "model.embed_positions",
    "final_norm": "model.norm",
    "out_head": "lm_head",
}
CONV1D = {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
NORMS = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}


@pytest.fixture(scope="module")
def run(data_dir):
    return json.loads((data_dir / "peer_run_verdict" / "run.json").read_text())


@pytest.fixture(scope="module")
def config(run):
    c = run["config"]
    assert (c["gelu"], c["tied_head"]) == ("tanh", False)
    return GPTConfig(
        vocab_size=c["vocab_size"],
        context_length=c["context_length"],
        embed_dim=c["emb_dim"],
        num_layers=c["n_layers"],
        num_heads=c["n_heads"],
        qkv_bias=c["qkv_bias"],
        tie_embeddings=c["tied_head"],
        norm_eps=c["layernorm_eps"],
    )


@pytest.fixture(scope="module")
def initial(data_dir, config):
    """The starting point under our names; the map is this test's own."""
    from safetensors.numpy import load_file

    theirs, weights = load_file(data_dir / "peer_run_verdict" / "initial.safetensors"), {}
    for name, value in theirs.items():
        if name == "lm_head.weight":
            weights[name] = value
            continue
        parts = name.removeprefix("transformer.").split(".")
        if parts[0] != "h":
            ours = {"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"}[parts[0]]
            weights[f"{ours}.{parts[1]}"] = value
            continue
        layer, part, kind = f"model.layers.{parts[1]}", ".".join(parts[2:-1]), parts[-1]
        value = value.T if value.ndim == 2 else value
        if part == "attn.c_attn":
            for letter, third in zip("qkv", np.split(value, 3), strict=True):
                weights[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
        else:
            weights[f"{layer}.{({**CONV1D, **NORMS})[part]}.{kind}"] = value
    return weights


@pytest.fixture(scope="module")
def batches(data_dir, run, config):
    """(inputs, targets) of every step: windows of the text's bytes at the recorded offsets."""
    text = np.frombuffer((data_dir / run["text"]).read_bytes(), np.uint8).astype(np.int32)
    length = config.context_length
    windows = [np.stack([text[s : s + length + 1] for s in starts]) for starts in run["batch_starts"]]
    return [(w[:, :-1], w[:, 1:]) for w in windows]


@pytest.fixture(scope="module")
def recipe(run):
    o = run["optimizer"]
    assert (o["name"], o["decays"], set(o["lr"])) == ("AdamW", "every parameter", {1e-3})
    return TrainConfig(
        steps=60,
        batch_size=4,
        learning_rate=o["lr"][0],
        schedule="constant",
        beta1=o["betas"][0],
        beta2=o["betas"][1],
        adam_eps=o["eps"],
        weight_decay=o["weight_decay"],
        decay="all",
        clip_norm=o["clip_grad_norm"],
    )


def compare_with(run, recorded, model, recipe, batches, loss_bound, norm_bound):
    model.start_training(recipe)
    results = [model.train_step(*batch) for batch in batches]
    losses, norms = np.array([(r.loss, r.grad_norm) for r in results]).T
    np.testing.assert_allclose(losses, run[f"losses_{recorded}"], rtol=loss_bound)
    np.testing.assert_allclose(norms, run[f"grad_norms_{recorded}"], rtol=norm_bound)


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["torch", "jax"])
@pytest.mark.parametrize(
    ("dtype", "loss_bound", "norm_bound"),
    # float64: their GELU holds sqrt(2/pi) as a float32, 2.8e-8 away. float32: 60 steps of rounding.
    [("float64", 1e-9, 2.8e-8), ("float32", 1e-4, 1e-4)],
)
def test_all_60_steps(run, config, initial, batches, recipe, wing, dtype, loss_bound, norm_bound):
    model = backend.load(wing).build(config, initial, Execution(dtype=dtype))
    compare_with(run, dtype, model, recipe, batches, loss_bound, norm_bound)


def give_torch_their_gelu(monkeypatch):
    import torch

    from torch_impl import layers

    monkeypatch.setitem(layers.ACTIVATIONS, "gelu_tanh", lambda x: their_gelu(torch, x))


def give_jax_their_gelu(monkeypatch):
    import jax.numpy as jnp

    from jax_impl import layers, programs

    monkeypatch.setitem(layers.ACTIVATIONS, "gelu_tanh", lambda x: their_gelu(jnp, x))
    # compiled programs are shared by config: this model needs its own, and leaves none behind
    monkeypatch.setattr("jax_impl.backend.programs", programs.Programs)


def their_gelu(xp, x):
    root = float(np.float32(np.sqrt(2 / np.pi)))
    return 0.5 * x * (1 + xp.tanh(root * (x + 0.044715 * x**3)))


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_with_their_gelu_constant_not_even_the_last_digits_differ(
    run, config, initial, batches, recipe, wing, monkeypatch
):
    {"torch": give_torch_their_gelu, "jax": give_jax_their_gelu}[wing](monkeypatch)
    model = backend.load(wing).build(config, initial, Execution(dtype="float64"))
    compare_with(run, "float64", model, recipe, batches, 1e-12, 1e-12)
    check_norms(model.weights(), run["final_weight_norms_float64"])


def check_norms(weights, theirs):
    """Every final weight has the norm that theirs has; a key bias wanders on rounding noise."""
    seen = set()
    for name, norm in theirs.items():
        if name.startswith("trf_blocks."):
            _, index, part = name.split(".", 2)
            part, _, kind = part.rpartition(".")
            ours = f"model.layers.{index}.{BOOK[part]}.{kind}"
        else:
            part, _, kind = name.rpartition(".")
            ours = f"{OUTER[part]}.{kind}"
        ours = ours.removesuffix(".scale").removesuffix(".shift")
        if kind in ("scale", "shift"):
            ours += {"scale": ".weight", "shift": ".bias"}[kind]
        seen.add(ours)
        # its gradient is zero: Adam moves it by at most about the rate per step, here 60 * 1e-3 * sqrt(64)
        rtol = 0.5 if ours.endswith("k_proj.bias") else 1e-12
        np.testing.assert_allclose(np.linalg.norm(weights[ours]), norm, rtol=rtol, err_msg=ours)
    assert seen == set(weights)
