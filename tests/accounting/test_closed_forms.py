"""Closed forms by hand, against published numbers and against the oracle's own operations."""

import math

import numpy as np
import pytest

from common import params
from common.accounting import activations, elementwise, flops, parts
from common.backend import load
from common.cases import CASES
from common.config import Execution, GPTConfig, TrainConfig
from common.errors import UserError
from common.oracle import loss, optim
from common.oracle.models import MODELS

BOOK = GPTConfig(50257, 1024, 768, 12, 12)
SMALL = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)


class Counted(np.ndarray):
    """An array that counts what NumPy computes with it: matmuls in `matmul`, all other numbers made in `elements`."""

    matmul = elements = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        if out is not None:
            options["out"] = tuple(x.view(np.ndarray) if isinstance(x, Counted) else x for x in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counted.matmul += 2 * result.size * plain[0].shape[-1]
        elif method == "reduce":
            Counted.elements += plain[0].size if plain[0].dtype.kind == "f" else 0
        elif np.ndim(result) and result.dtype.kind == "f":
            Counted.elements += result.size
        return np.asarray(result).view(Counted)

    def __array_function__(self, function, types, args, options):
        result = super().__array_function__(function, types, args, options)  # np.where would forget the class
        return result.view(Counted) if isinstance(result, np.ndarray) else result


@pytest.fixture
def counted():
    """counted(): (matmul FLOPs, elementwise FLOPs) since the test began."""
    Counted.matmul = Counted.elements = 0
    return lambda: (Counted.matmul, Counted.elements)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.config.activation == "gelu_tanh"])
def test_the_oracle_does_what_is_counted(name, counted):
    """The oracle's own NumPy calls, matmuls and elementwise; its error function is not one of NumPy's."""
    case = CASES[name]
    weights = {key: array.astype(np.float64).view(Counted) for key, array in case.weights().items()}
    module = MODELS[case.config.family](case.config)
    module.load(weights)
    for path, parameter in weights.items():  # loading takes the plain array out
        owner, _, leaf = path.rpartition(".")
        setattr(module.at(owner), leaf, parameter)
    positions = np.arange(case.length)[None]
    if case.path:
        part = module.at(case.path)
        x = case.signals()[0].astype(np.float64).view(Counted)
        part(x, positions) if parts.kind(case.path) in ("self_attn", "layers.#") else part(x)
    else:
        module(case.tokens()[0], positions)
    matmul = flops.flops_full(case.config, "forward", case.batch, case.length, path=case.path)
    others = elementwise.forward(case.config, case.batch, case.length, case.path)
    assert counted() == (matmul, sum(others.values()))


def test_the_oracle_loss_does_what_is_counted(counted):
    logits = params.draw(0, "logits", (2, 7, SMALL.vocab_size)).view(Counted)
    loss.token_loss(logits, np.zeros((2, 7), int))
    assert counted() == (0, elementwise.loss(SMALL, 2, 7))


def test_the_oracle_optimizer_does_what_is_counted(counted):
    train = TrainConfig()
    weights = {p.name: np.ones(p.shape).view(Counted) for p in params.table(SMALL).values()}
    grads, _ = optim.clip_by_global_norm(weights, train.clip_norm)
    slots = {f"{name}.{slot}": p for name, p in weights.items() for slot in ("exp_avg", "exp_avg_sq")}
    optim.adamw(weights, grads, slots, train.adam_scalars(0), train, dict.fromkeys(weights, True))
    assert counted() == (0, elementwise.optimizer(SMALL))


def test_causal_and_full_differ_in_visible_pairs_alone():
    for task in ("forward", "train", "prefill"):
        full, causal = (flops.TASKS[task](BOOK, 2, 1024, causal=c) for c in (False, True))
        assert {n for n in full if full[n] != causal[n]} == {"attention scores and values"}
        assert full["attention scores and values"] * 1025 == causal["attention scores and values"] * 2 * 1024
        assert flops.flops_full(BOOK, task, 2, 1024) == sum(full.values())
        assert flops.flops_causal(BOOK, task, 2, 1024) == sum(causal.values())


def test_decoding_token_by_token_is_one_causal_forward():
    """The work that has to be done does not depend on the cache; the head aside, which prefill spares."""
    length = 9
    steps = [flops.decode_step(SMALL, 2, 16, causal=True, visible=seen + 1) for seen in range(length)]
    forward = flops.forward(SMALL, 2, length, causal=True)
    assert {name: sum(step[name] for step in steps) for name in forward} == forward
    assert flops.decode_step(SMALL, 2, 16)["attention scores and values"] == 2 * 2 * 2 * 16 * 12 * 2
    prefill = flops.prefill(SMALL, 2, length, causal=True)
    assert prefill.pop("head") * length == forward.pop("head")
    assert prefill == forward


def test_a_fused_kernel_costs_three_and_a_half():
    forward, plain, fused = (
        flops.forward(SMALL, 2, 7),
        flops.training(SMALL, 2, 7),
        flops.training(SMALL, 2, 7, attention="fused"),
    )
    for name, once in forward.items():
        assert plain[name] == 3 * once
        assert 2 * fused[name] == (7 if name == "attention scores and values" else 6) * once
    with pytest.raises(UserError, match=r"attention kernel 'flash'"):
        flops.training(SMALL, 2, 7, attention="flash")


def test_components_add_up_to_the_model():
    """The model is its blocks and its head; a block is its parts; norms multiply nothing."""
    shape, path = (2, 7), "model.layers.0"
    block = flops.flops_full(SMALL, "forward", *shape, path=path)
    inner = [flops.flops_full(SMALL, "forward", *shape, path=f"{path}.{name}") for name in ("self_attn", "mlp")]
    assert block == sum(inner) > 0
    head = 2 * 14 * 31 * 12
    assert flops.flops_full(SMALL, "forward", *shape) == 2 * block + head
    untied = SMALL.with_(tie_embeddings=False)
    assert flops.flops_full(untied, "forward", *shape) == 2 * block + head
    assert flops.flops_full(untied, "forward", *shape, path="lm_head") == head
    assert flops.flops_full(untied, "forward", *shape, path="model.norm") == 0


def test_a_component_without_a_rule_is_refused(monkeypatch):
    """A new kind of module is not counted as nothing."""

    def table(config):
        yield from gpt(config)
        yield params.Parameter("model.layers.1.mlp.sieve.weight", (20, 12), part="sieve")

    gpt = params.TABLES["gpt"]
    monkeypatch.setitem(params.TABLES, "gpt", table)
    for rule in (flops.forward, elementwise.forward, activations.saved):
        with pytest.raises(UserError, match=r"'model\.layers\.1\.mlp\.sieve' has no rule: there is none for 'sieve'"):
            rule(SMALL, 2, 7)
        assert rule(SMALL, 2, 7, path="model.layers.0") is not None
    with pytest.raises(UserError, match=r"Unknown component 'model\.layer'"):
        flops.forward(SMALL, 2, 7, path="model.layer")


def test_saved_activations_by_hand():
    """A float32 block at F = 4 E: 18 B T E + B H T^2 + 2 B T numbers, and masks of T^2 + T bytes."""
    config, (b, t) = GPTConfig(31, 16, 12, 1, 3), (2, 7)
    found = sum(activations.saved(config, b, t, path="model.layers.0").values())
    assert found == 4 * (18 * b * t * 12 + b * 3 * t * t + 2 * b * t) + t * t + t
    fused = sum(activations.saved(config, b, t, attention="fused", path="model.layers.0").values())
    assert fused == 4 * (18 * b * t * 12 + b * 3 * t + 2 * b * t)


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_what_cannot_be_counted_is_refused(wing):
    model = load(wing).build(SMALL, params.initialise(SMALL, 0), Execution())
    for words, call in {
        "Unknown task to count 'backward'": lambda: model.matmul_flops("backward", 1, 4),
        "Unknown component 'model.layers.7'": lambda: model.matmul_flops("forward", 1, 4, "model.layers.7"),
        "but no 'decode'": lambda: model.matmul_flops("decode", 1, 4, "model.norm"),
        "has no room for 5 tokens": lambda: model.matmul_flops("prefill", 1, 5, slots=4),
        "17 tokens do not fit": lambda: model.saved_bytes(1, 17),
    }.items():
        with pytest.raises(UserError, match=words):
            call()


def test_published_sizes():
    """GPT-2 124M, 2 x 1024 tokens: 5.83e11 forward (Raschka, FLOPs analysis); the textbook's 6 N D within a tenth."""
    assert math.isclose(flops.flops_full(BOOK, "forward", 2, 1024), 5.83e11, rel_tol=1e-3)
    six_n_d = 6 * params.count(BOOK) * 2048
    assert 1 < flops.flops_full(BOOK, "train", 2, 1024) / six_n_d < 1.2
