"""The judge from outside: transformers' GPT2LMHeadModel with the same numbers gives the same everything.

The map of names below is this test's own, so that a fault in `common/weights` cannot hide here.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common import backend, compare, params
from common.config import Execution, GPTConfig, SamplingConfig

WINGS = ("torch", "jax")
BATCH, LENGTH, NEW = 2, 41, 64
CONFIGS = {
    "tied, tanh gelu": GPTConfig(97, 112, 48, 2, 3, ff_dim=80, activation="gelu_tanh"),
    "untied, exact gelu": GPTConfig(97, 112, 48, 2, 3, ff_dim=80, activation="gelu", tie_embeddings=False),
}
RENAMED = {
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
}


def outside(config):
    """Their model with every parameter random, norms and biases too."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel._from_config(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.embed_dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.ff_dim,
            activation_function={"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
            layer_norm_epsilon=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        ),
        attn_implementation="eager",
    ).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 2:
                p.copy_(noise * 1.5 / config.embed_dim**0.5)
            else:
                p.copy_(0.5 * noise + (1.0 if ".ln_" in name and name.endswith("weight") else 0.0))
    return theirs


def ours(tensors, config):
    """Their tensors (values or gradients) under our names: c_attn cut in three, Conv1D turned to [out, in]."""
    embed, found = config.embed_dim, {}
    for name in params.table(config):
        if name == "lm_head.weight":
            found[name] = tensors[name]
        elif name.startswith("model.layers."):
            _, _, index, part = name.split(".", 3)
            part, _, kind = part.rpartition(".")
            if part[-6:] in ("q_proj", "k_proj", "v_proj"):
                third = "qkv".index(part[-6])
                whole = tensors[f"transformer.h.{index}.attn.c_attn.{kind}"]
                value = whole[..., third * embed : (third + 1) * embed]
            else:
                value = tensors[f"transformer.h.{index}.{RENAMED[part]}.{kind}"]
            found[name] = value.T if value.ndim == 2 else value
        else:
            short = {"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f"}[name.split(".")[1]]
            found[name] = tensors[f"transformer.{short}.{name.rpartition('.')[2]}"]
    return {name: np.ascontiguousarray(value.detach().numpy()) for name, value in found.items()}


@pytest.fixture(scope="module", params=CONFIGS, ids=[name.replace(", ", "-") for name in CONFIGS])
def case(request):
    config = CONFIGS[request.param]
    theirs = outside(config)
    weights = ours(dict(theirs.named_parameters()), config)
    rng = np.random.default_rng(3)
    ids = rng.integers(0, config.vocab_size, (BATCH, LENGTH))
    targets = rng.integers(0, config.vocab_size, (BATCH, LENGTH))
    targets[0, :7] = -100
    theirs.double()
    logits = theirs(torch.from_numpy(ids)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    grads = ours({name: p.grad for name, p in theirs.named_parameters()}, config)
    return SimpleNamespace(
        config=config,
        theirs=theirs,
        weights=weights,
        ids=ids,
        targets=targets,
        logits=logits.detach().numpy(),
        loss=loss.item(),
        grads=grads,
    )


@pytest.fixture(scope="module")
def built():
    """Models by (case, wing, dtype), each built once."""
    models = {}

    def build(case, wing, dtype):
        at = (id(case), wing, dtype)
        if at not in models:
            models[at] = backend.load(wing).build(case.config, case.weights, Execution(dtype=dtype))
        return models[at]

    return build


def test_every_parameter_is_mapped_and_none_is_at_its_default(case):
    assert sum(v.size for v in case.weights.values()) == sum(p.numel() for p in case.theirs.parameters())
    for name, value in case.weights.items():
        assert value.shape == params.table(case.config)[name].shape
        assert value.std() > 0.1


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", [*WINGS, "numpy"])
def test_logits_and_loss_in_float64(case, built, wing):
    model = built(case, wing, "float64")
    # 1e-10 is 10^5 above float64 rounding here and below every known fault of a port
    assert compare.difference("logits", model.forward(case.ids).logits, case.logits).relative < 1e-10
    assert model.loss(case.ids, case.targets) == pytest.approx(case.loss, rel=1e-12)


@pytest.mark.full_for("float32-1e-05-jax", "untied-exact gelu-float64-1e-10-jax")
@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
def test_every_gradient(case, built, wing, dtype, bound):
    got = built(case, wing, dtype).gradients(case.ids, case.targets)
    assert got.value == pytest.approx(case.loss, rel=bound)
    assert set(got.grads) == set(case.grads)
    whole = np.sqrt(np.mean([compare.rms(g) ** 2 for g in case.grads.values()]))
    for name, parameter in params.table(case.config).items():
        if parameter.dead:  # zero in theory; both sides hold rounding noise
            assert max(compare.rms(got.grads[name]), compare.rms(case.grads[name])) < bound * whole, name
        else:
            assert compare.difference(name, got.grads[name], case.grads[name]).relative < bound, name


@pytest.mark.full_for("jax")  # in float32 tests/diverge/test_honest_pairs.py compares it with their folder
@pytest.mark.parametrize("wing", WINGS)
def test_logits_and_loss_in_float32(case, built, wing):
    model = built(case, wing, "float32")
    assert compare.difference("logits", model.forward(case.ids).logits, case.logits).relative < 1e-5
    assert model.loss(case.ids, case.targets) == pytest.approx(case.loss, rel=1e-5)


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", WINGS)
def test_greedy_tokens_over_64_steps(case, built, wing):
    """One batch of equal lengths, and a batch of unequal lengths against theirs row by row."""
    model, sampling = built(case, wing, "float64"), SamplingConfig(max_new_tokens=NEW)
    prompts = [case.ids[0, :40].tolist(), case.ids[1, :40].tolist()]
    assert model.generate(prompts, sampling) == [theirs_greedy(case, p) for p in prompts]
    ragged = [case.ids[0].tolist(), case.ids[1, :3].tolist(), case.ids[0, 5:6].tolist(), case.ids[1, :17].tolist()]
    want = [theirs_greedy(case, p) for p in ragged]
    assert len({token for row in want for token in row}) > 4, "the fixture repeats one token"
    assert model.generate(ragged, sampling) == want


_GREEDY = {}


def theirs_greedy(case, prompt):
    at = (id(case), tuple(prompt))
    if at not in _GREEDY:
        ids = torch.tensor([prompt])
        out = case.theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0
        )
        _GREEDY[at] = out[0, len(prompt) :].tolist()
    return _GREEDY[at]
