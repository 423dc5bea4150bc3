"""Mixtures of experts from outside: transformers' Qwen3-MoE, Qwen3-Next, DeepSeek-V3 and gpt-oss, same numbers.

The maps of names below are this test's own. Their experts lie as one [X, 2 F, E] (gate and up one on the other). Those
of gpt-oss are transposed, with gate and up side by side; what bends them, x sigmoid(1.702 x), is the quick GELU, here
between limits that a third of all numbers pass. DeepSeek-V3's bias that only chooses is a buffer there.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moved import moved

from common import backend, compare, params
from common.config import Execution, GPTConfig
from common.variants.mixture_of_experts import MixtureOfExperts

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims

transformers = pytest.importorskip("transformers")
EMBED, EXPERTS, WIDTH, SHARED, TOP_K = 24, 8, 20, 12, 3
PATH = "model.layers.1.mlp"
CONFIG = GPTConfig(31, 96, EMBED, 2, 2, ff_dim=16, activation="silu", tie_embeddings=False)
LIMIT = 1.5
ENTRY = MixtureOfExperts(EXPERTS, TOP_K, expert_dim=WIDTH)
BOUND = 1e-4  # far above the rounding of float32 and below every mistake of routing


def qwen3(normalise):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = transformers.Qwen3MoeConfig(
        hidden_size=EMBED,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=WIDTH,
        norm_topk_prob=normalise,
        hidden_act="silu",
    )
    return Qwen3MoeSparseMoeBlock(config), ENTRY.with_(normalise=normalise)


def qwen3_next(normalise):
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextSparseMoeBlock

    config = transformers.Qwen3NextConfig(
        hidden_size=EMBED,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=WIDTH,
        shared_expert_intermediate_size=SHARED,
        norm_topk_prob=normalise,
        hidden_act="silu",
    )
    return Qwen3NextSparseMoeBlock(config), ENTRY.with_(normalise=normalise, shared_dim=SHARED, shared_gate=True)


def deepseek_v3(normalise):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = transformers.DeepseekV3Config(
        hidden_size=EMBED,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=WIDTH,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        norm_topk_prob=normalise,
        routed_scaling_factor=1.7,  # 2.5 is the default
        hidden_act="silu",
    )
    groups = {"choice_bias": True, "num_groups": 4, "top_groups": 2, "shared_dim": 2 * WIDTH}
    return DeepseekV3MoE(config), ENTRY.with_(routing="top_k_then_sigmoid", normalise=normalise, scale=1.7, **groups)


def gpt_oss():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    config = transformers.GptOssConfig(
        hidden_size=EMBED,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        intermediate_size=WIDTH,
        swiglu_limit=LIMIT,
    )
    assert config.swiglu_alpha == 1.702
    biases = {"router_bias": True, "expert_bias": True, "limit": LIMIT, "offset": 1.0}
    return GptOssMLP(config), ENTRY.with_(routing="top_k_then_softmax", normalise=False, **biases)


BLOCKS = {
    "qwen3 normalised": lambda: qwen3(True),
    "qwen3 not normalised": lambda: qwen3(False),
    "qwen3-next normalised": lambda: qwen3_next(True),
    "qwen3-next not normalised": lambda: qwen3_next(False),
    "deepseek-v3 normalised": lambda: deepseek_v3(True),
    "deepseek-v3 not normalised": lambda: deepseek_v3(False),
    "gpt-oss": gpt_oss,
}


def randomised(block):
    """Every parameter random, and the bias of a choice."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in state(block).items():
            spread = 0.2 if name.endswith("bias") else 1.5 / p.shape[-1] ** 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * spread)
    return block.eval()


def state(block):
    """Parameters and buffers by name."""
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def ours(tensors):
    """Their tensors (values or gradients) under our names."""
    both, down, found = tensors["experts.gate_up_proj"], tensors["experts.down_proj"], {}
    if "router.weight" in tensors:  # gpt-oss
        both, down, biases = both.mT, down.mT, tensors["experts.gate_up_proj_bias"]
        gate, up, router = both[:, ::2], both[:, 1::2], tensors["router.weight"]
        found = {"experts.gate_bias": biases[:, ::2], "experts.up_bias": biases[:, 1::2]}
        found |= {"experts.down_bias": tensors["experts.down_proj_bias"], "router.bias": tensors["router.bias"]}
    else:
        gate, up, router = both[:, :WIDTH], both[:, WIDTH:], tensors["gate.weight"]
    if "gate.e_score_correction_bias" in tensors:
        found = {"choice_bias": tensors["gate.e_score_correction_bias"]}
    found |= {
        "router.weight": router,
        "experts.gate_proj": gate,
        "experts.up_proj": up,
        "experts.down_proj": down,
        **{n.replace("experts.", "expert."): value for n, value in tensors.items() if n.startswith("shared_expert")},
    }
    return {f"{PATH}.{name}": np.ascontiguousarray(value.detach().numpy()) for name, value in found.items()}


def run(block, x, cotangent):
    """(output, gradients by our names) of their block."""
    x = torch.from_numpy(x).to(next(block.parameters()).dtype).requires_grad_()
    block.zero_grad()
    out = block(x)
    out = out[0] if isinstance(out, tuple) else out
    (out * torch.from_numpy(cotangent).to(out.dtype)).sum().backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in state(block).items()}
    return out.detach().numpy(), {"input": x.grad.numpy(), **ours(grads)}


@pytest.fixture(scope="module", params=BLOCKS, ids=[name.replace(" ", "-") for name in BLOCKS])
def case(request):
    block, entry = BLOCKS[request.param]()
    randomised(block)
    config = CONFIG.with_(feed_forward=entry, activation="quick_gelu" if entry.limit else "silu")
    own = ours(state(block))
    weights = {**params.randomise(config, 0), **own}
    assert {name for name in params.table(config) if name.startswith(f"{PATH}.")} == set(own)
    rng = np.random.default_rng(3)
    x, cotangent = (rng.standard_normal((2, 80, EMBED)).astype(np.float32) for _ in range(2))
    assert nearest(entry, own, x.reshape(-1, EMBED)) > 1e-6, "the fixture has a tie"
    return SimpleNamespace(config=config, weights=weights, block=block, x=x, cotangent=cotangent)


def nearest(entry, own, x):
    """By how little a choice of experts, or of their groups, is what it is."""
    scores = x @ own[f"{PATH}.router.weight"].T + own.get(f"{PATH}.router.bias", 0.0)
    if not entry.choice_bias:
        return lead(scores, TOP_K)
    scores = (1 / (1 + np.exp(-scores)) + own[f"{PATH}.choice_bias"]).reshape(len(x), entry.num_groups, -1)
    sums = np.sort(scores, -1)[..., -2:].sum(-1)
    kept = sums >= np.sort(sums, -1)[:, -entry.top_groups, None]
    left = np.where(kept[..., None], scores, -9.0).reshape(len(x), -1)
    everywhere = np.sort(np.argsort(-scores.reshape(len(x), -1), -1)[:, :TOP_K])
    assert (everywhere != np.sort(np.argsort(-left, -1)[:, :TOP_K])).any(-1).mean() > 0.1, "groups decide nothing"
    return min(lead(sums, entry.top_groups), lead(left, TOP_K))


def lead(scores, count):
    """By how much the last of the `count` largest leads, where it does least."""
    ranked = np.sort(scores, -1)[:, ::-1]
    return (ranked[:, count - 1] - ranked[:, count]).min()


def component(case, name, **how):
    """(output, gradients) of ours; the oracle, which would take a forward pass for every number, gives no gradients."""
    model = backend.load(name).build(case.config, case.weights, Execution(**how))
    if name == "numpy":
        return model.net.at(PATH)(case.x.astype(np.float64)), {}
    out, found = model.component(PATH, case.x, case.cotangent)
    return out, found.grads


@pytest.mark.full_for("jax-gathered")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("torch", {}),
        ("torch", {"experts": "grouped"}),
        ("torch", {"experts": "gathered"}),
        ("jax", {}),
        ("jax", {"experts": "grouped"}),
        ("jax", {"experts": "gathered"}),
        ("numpy", {"dtype": "float64"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()) or "loop",
)
def test_outputs_and_gradients_in_float32(case, name, how):
    want, grads = run(case.block.float(), case.x, case.cotangent)
    got, found = component(case, name, **how)
    assert np.abs(got - want).max() < BOUND * np.abs(want).max()
    assert set(found) == (set(grads) if name != "numpy" else set())
    for key, value in found.items():
        assert np.abs(value - grads[key]).max() <= BOUND * np.abs(grads[key]).max(), key


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("name", ["torch", "jax", "numpy"])
def test_outputs_in_float64(case, name):
    """The routers of Qwen and DeepSeek compute in float32 whatever the model's type: so near, and no nearer."""
    want, _ = run(case.block.double(), case.x, case.cotangent)
    case.block.float()
    got, _ = component(case, name, dtype="float64")
    bound = 1e-6 if hasattr(case.block, "gate") else 1e-10
    assert compare.difference("output", got, want).relative < bound


def test_every_setting_counts(case):
    """With any one setting moved, we are far from theirs: the bound tells."""
    (entry,), (want, _) = case.config.feed_forward, run(case.block.float(), case.x, case.cotangent)
    others = {what: case.config.with_(feed_forward=other) for what, other in moved(entry)}
    if entry.routing == "top_k_then_softmax":  # whose sum is 1 anyway
        del others["normalise"]
    for what, config in {**others, "activation": case.config.with_(activation="gelu_tanh")}.items():
        got, _ = component(SimpleNamespace(**{**vars(case), "config": config}), "numpy", dtype="float64")
        assert np.abs(got - want).max() > 10 * BOUND * np.abs(want).max(), what


@pytest.mark.parametrize("name", ["torch", "jax", "numpy"])
def test_the_balance_is_theirs_of_one_layer(name):
    """Theirs counts tokens, not choices, so it is top_k times ours. Of several layers it takes means of parts and of
    probabilities first, where ours adds up a term for every layer.
    """
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    config = CONFIG.with_(feed_forward=ENTRY.with_(balance=0.25))
    model = backend.load(name).build(config, params.randomise(config, 2), Execution(dtype="float64"))
    ids = np.random.default_rng(0).integers(0, 31, (2, 80)).astype(np.int32)
    taps = model.forward(ids, taps=("*.mlp.router", "*.mlp.balance")).taps
    for layer in range(2):
        logits = torch.from_numpy(taps[f"model.layers.{layer}.mlp.router"]).reshape(-1, EXPERTS)
        theirs = load_balancing_loss_func((logits,), EXPERTS, TOP_K).item()
        assert float(taps[f"model.layers.{layer}.mlp.balance"]) == pytest.approx(0.25 * theirs / TOP_K, rel=1e-6)
