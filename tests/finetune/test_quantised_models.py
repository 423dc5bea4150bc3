"""Models with a base in 4 bits are those with the weights that the bits stand for, in both wings, and small as said."""

import numpy as np
import pytest
import torch

from common import adapters, backend, nf4, params, quantised
from common.accounting import memory
from common.adapters import Adapter
from common.config import Execution, GPTConfig, SamplingConfig, TrainConfig
from common.errors import UserError
from common.variants import GatedMLP, Latent, MixtureOfExperts

CONFIG = GPTConfig(61, 24, 32, 2, 2, ff_dim=44, tie_embeddings=False)
WEIGHTS = params.randomise(CONFIG, 3)
IDS = np.arange(48, dtype=np.int32).reshape(2, 24) % 61
TARGETS = (IDS * 7) % 61
WAYS = [
    ("torch", {}), ("torch", {"projections": "joined"}), ("torch", {"decode": "streamed", "compile": False}),
    ("jax", {}), ("jax", {"layers": "scan"}),
]  # fmt: skip


def build(wing, weights, dtype="float32", config=CONFIG, **how):
    return backend.load(wing).build(config, weights, Execution(dtype, **how))


def standing(base, config=CONFIG, weights=WEIGHTS):
    return quantised.quantised(config, weights, base)


@pytest.mark.full_for("jax-")
@pytest.mark.parametrize("base", ["nf4", "nf4_double"])
@pytest.mark.parametrize(("wing", "how"), WAYS, ids=str)
def test_they_compute_what_the_dequantised_weights_do(wing, how, base):
    """To the bit in PyTorch; XLA may fuse what surrounds a product otherwise, so within float32's rounding."""
    small, plain = build(wing, WEIGHTS, base=base, **how), build(wing, standing(base), **how)
    found, want = small.forward(IDS).logits, plain.forward(IDS).logits
    assert np.array_equal(found, want) if wing == "torch" else np.abs(found - want).max() < 1e-5
    grads, others = small.gradients(IDS, TARGETS).grads, plain.gradients(IDS, TARGETS).grads
    assert set(grads) == set(others) - set(nf4.names(CONFIG))
    assert max(np.abs(grads[name] - others[name]).max() for name in grads) < 1e-5
    prompts, sampling = [[1, 2], [3]], SamplingConfig(5)
    assert small.generate(prompts, sampling) == plain.generate(prompts, sampling)
    assert small.loss(IDS, TARGETS) != pytest.approx(build(wing, WEIGHTS, **how).loss(IDS, TARGETS), rel=1e-6)


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("base", ["nf4", "nf4_double"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_the_oracle_agrees_in_float64(wing, base):
    small, oracle = build(wing, WEIGHTS, "float64", base=base), build("numpy", standing(base), "float64")
    assert np.abs(small.forward(IDS).logits - oracle.forward(IDS).logits).max() < 1e-12


@pytest.mark.full_for("jax")  # in JAX the certificate's own row, tests/parity/test_four_bits.py
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_weights_come_out_as_the_bits_stand_for(wing):
    for base, how in (("nf4", {}), ("nf4_double", {"layers": "scan"} if wing == "jax" else {})):
        model, want = build(wing, WEIGHTS, base=base, **how), standing(base)
        found = model.weights()
        assert set(found) == set(want)
        assert all(np.array_equal(found[name], want[name]) for name in want)
        assert model.state_shapes() == {name: array.shape for name, array in want.items()}


KINDS = CONFIG.with_(
    attention=({"kind": "latent", "rank": 8},), feed_forward=(GatedMLP(), MixtureOfExperts(num_experts=3, top_k=2))
)


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_other_kinds_of_layers(wing):
    """Latent attention, whose maps absorb each other while it decodes; experts and routers stay as they are."""
    weights = params.randomise(KINDS, 5)
    small = nf4.names(KINDS)
    assert not [name for name in small if "experts" in name or "router" in name]
    assert {name.split(".")[-2] for name in small} >= {"k_up_proj", "gate_proj", "o_proj"}
    one = build(wing, weights, "float64", KINDS, base="nf4", latent="absorbed")
    two = build(wing, standing("nf4", KINDS, weights), "float64", KINDS, latent="absorbed")
    assert np.abs(one.forward(IDS).logits - two.forward(IDS).logits).max() < 1e-12
    assert isinstance(KINDS.attention[0], Latent)


def held(wing, model):
    """Bytes of the arrays that a model consists of."""
    if wing == "torch":
        own = [*model.net.parameters(), *model.net.buffers()]
        return sum(one.untyped_storage().nbytes() for one in own)
    return sum(array.nbytes for array in model.params.values())


@pytest.mark.full_for("jax-plain", "jax-nf4_double")
@pytest.mark.parametrize("base", ["plain", "nf4", "nf4_double"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_bytes_are_those_of_the_closed_form(wing, base):
    for config in (CONFIG, CONFIG.with_(embed_dim=36, ff_dim=41)):  # the latter has blocks and bytes that are not full
        model = build(wing, params.randomise(config, 1), config=config, base=base)
        assert held(wing, model) == memory.base(config, "float32", base)
    assert memory.base(CONFIG) == memory.weights(CONFIG)


def test_bits_a_weight():
    """4 and 32 / 64 as published; 4 + 8/64 + 32/(64 * 256) with absmax in 8 bits. QLoRA, section 3."""
    size = 64 * 256 * 1000
    assert 8 * memory.matrix(size, "nf4") / size == 4.5
    assert 8 * memory.matrix(size, "nf4_double") / size == pytest.approx(4.127, abs=5e-4)


def test_pytorch_keeps_no_dequantised_matrix_for_the_way_back():
    """What autograd saves of four products are their inputs' graph and bits, not matrices [256, 256]."""
    from torch_impl.layers import Linear
    from torch_impl.quantise import QuantisedLinear, quantise

    matrix = torch.randn(256, 256)
    linear = QuantisedLinear(Linear(256, 256, True, Execution()), "nf4")
    linear.bias.data.zero_()
    linear.fill(quantise(matrix))
    x, saved = torch.randn(2, 256, requires_grad=True), []

    def note(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = linear(linear(x).tanh())
    assert max(saved, default=0) <= x.numel()
    (grad,) = torch.autograd.grad(y.sum(), x)
    again = x.detach().requires_grad_()
    plain = torch.nn.functional.linear(torch.nn.functional.linear(again, linear.weight).tanh(), linear.weight)
    assert torch.allclose(grad, torch.autograd.grad(plain.sum(), again)[0], atol=1e-4)


def test_jax_keeps_no_dequantised_matrix_for_the_way_back():
    import jax
    import jax.numpy as jnp

    from jax_impl.layers import Linear
    from jax_impl.quantise import QuantisedLinear, quantise

    linear = QuantisedLinear(Linear(256, 256, True, Execution()), "nf4")
    linear.fill(quantise(np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)))
    _, back = jax.vjp(lambda x: linear(jnp.tanh(linear(x))), jnp.ones((2, 256)))
    floats = [leaf for leaf in jax.tree.leaves(back) if hasattr(leaf, "dtype") and leaf.dtype == jnp.float32]
    assert max(leaf.size for leaf in floats) < 256 * 256


ADAPTERS = (Adapter("plain", ("*.q_proj", "*.down_proj"), 4), Adapter("dora", ("*.v_proj",), 3, 6.0, 0.2, dora=True))


@pytest.mark.full_for("jax-")
@pytest.mark.parametrize("base", ["nf4", "nf4_double"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_adapters_on_it_train_as_on_the_dequantised_weights(wing, base):
    """QLoRA, with dropout and DoRA: ten steps in float64, then the model without adapters, which shares the bits."""
    config, given = CONFIG, standing(base)
    for adapter in ADAPTERS:  # magnitudes are those of what the model computes with
        config, given = adapters.add(config, given, adapter)
    weights = dict(given) | {name: WEIGHTS[name] for name in nf4.names(CONFIG)}
    small, plain = build(wing, weights, "float64", config, base=base), build(wing, given, "float64", config)
    train = TrainConfig(learning_rate=1e-2, warmup_steps=1)
    for model in (small, plain):
        model.start_training(train)
    for _ in range(10):
        one, two = (model.train_step(IDS, TARGETS) for model in (small, plain))
        assert one.loss == pytest.approx(two.loss, rel=1e-12)
    found, want = small.weights(), plain.weights()
    assert all(np.abs(found[name] - want[name]).max() < 1e-9 for name in want)
    assert set(small.optimizer_slots()) == set(plain.optimizer_slots())
    assert small.loss(IDS, TARGETS) != pytest.approx(small.base().loss(IDS, TARGETS), rel=1e-3)
    assert small.base().loss(IDS, TARGETS) == pytest.approx(plain.base().loss(IDS, TARGETS), rel=1e-12)
    sampling = SamplingConfig(4)
    assert small.generate([[5, 6]], sampling) == plain.generate([[5, 6]], sampling)


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_what_is_in_4_bits_is_not_trained(wing):
    with pytest.raises(UserError, match="in 4 bits, which cannot be trained"):
        build(wing, WEIGHTS, base="nf4").start_training(TrainConfig())


def test_refusals():
    with pytest.raises(UserError, match=r"did you mean 'nf4'"):
        Execution(base="nf44")
    with pytest.raises(UserError, match="base='nf4'"):
        build("numpy", WEIGHTS, "float64", base="nf4")
    damaged = dict(WEIGHTS)
    name = nf4.names(CONFIG)[3]
    damaged[name] = np.full_like(WEIGHTS[name], np.nan)
    for wing in ("torch", "jax"):
        with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
            build(wing, damaged, base="nf4")
