"""Bytes in closed form are those of the arrays that the wings hold; a compiler's plan contains them."""

import numpy as np
import pytest

from common import params
from common.accounting import memory
from common.backend import load
from common.cases import CASES
from common.config import DTYPES, PRECISIONS, Execution, TrainConfig
from common.errors import UserError

TIED, UNTIED = CASES["gpt"].config, CASES["gpt_untied"].config


def build(wing, config, dtype="float32", **how):
    return load(wing).build(config, params.initialise(config, 0), Execution(dtype, **how))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_the_cache(wing, dtype):
    for config, batch, slots in ((TIED, 1, 1), (TIED, 3, 16), (CASES["gpt_wide"].config, 2, 300)):
        cache = build(wing, config, dtype).new_cache(batch, slots)
        assert cache.nbytes == memory.kv_cache(config, batch, slots, dtype)


@pytest.mark.full_for("jax-float64", "jax-bfloat16")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_parameters_gradients_and_averages(wing, dtype):
    """As the wings keep them: bfloat16 computes with float32 parameters."""
    model, kept = build(wing, TIED, dtype), PRECISIONS[dtype].param
    tokens = np.ones((2, 5), np.int32)
    model.start_training(TrainConfig())
    held = [model.weights(), model.gradients(tokens, tokens).grads, model.optimizer_slots()]
    found = [sum(array.nbytes for array in arrays.values()) for arrays in held]
    assert found == [rule(TIED, kept) for rule in (memory.weights, memory.gradients, memory.optimizer_slots)]
    assert sum(found) == memory.training(TIED, kept) == params.count(TIED) * {"float64": 32}.get(dtype, 16)
    model.start_training(TrainConfig(optimizer="muon"))
    muon = sum(array.nbytes for array in model.optimizer_slots().values())
    assert (
        muon == memory.optimizer_slots(TIED, kept, TrainConfig(optimizer="muon")) < memory.optimizer_slots(TIED, kept)
    )


def served(wing, model):
    """The arrays that a wing decodes with, by name."""
    if wing == "torch":
        return dict(model._serving().named_parameters())
    with model.scope():
        return dict(model._serving())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_what_a_decode_step_moves(wing, config, dtype):
    """From the arrays themselves: all but tables that are looked up, one row of these for every row of the batch."""
    model, (batch, slots) = build(wing, config, dtype), (3, 7)
    arrays = served(wing, model)
    positions = arrays.pop("model.embed_positions.weight")
    read = sum(array.nbytes for array in arrays.values()) + positions[:batch].nbytes
    if not config.tie_embeddings:
        read -= arrays["model.embed_tokens.weight"][batch:].nbytes
    want = {
        "weights read": read,
        "cache read": model.new_cache(batch, slots).nbytes,
        "cache written": model.new_cache(batch, 1).nbytes,
    }
    assert memory.decode_bytes(config, batch, slots, dtype) == want
    bigger = memory.decode_bytes(config, 2 * batch, slots, dtype)
    assert bigger["cache read"] == 2 * want["cache read"]  # a batch shares the weights, not the cache
    assert want["weights read"] < bigger["weights read"] < 1.2 * want["weights read"]


@pytest.mark.full_for("scan")
@pytest.mark.parametrize("layers", ["loop", "scan"])
def test_the_compilers_plan_contains_the_closed_forms(layers):
    """Arguments of a step are parameters, averages, two batches of ids and what is small; donation shares them with the
    outputs, so nothing is held twice."""
    model, ids = build("jax", TIED, layers=layers), 4 * 2 * 7
    step = model.planned_bytes("train", 2, 7)
    state = memory.weights(TIED) + memory.optimizer_slots(TIED)
    assert state + 2 * ids <= step["arguments"] < state + 2 * ids + 100
    assert step["aliased"] == state
    assert step["temporaries"] > memory.gradients(TIED)
    assert step["planned"] == step["arguments"] + step["outputs"] + step["temporaries"] - step["aliased"]


def test_the_compilers_plan_of_what_is_not_donated():
    model = build("jax", TIED)
    forward = model.planned_bytes("forward", 2, 7)
    assert forward["arguments"] == memory.weights(TIED) + 4 * 2 * 7 + 4 * 7
    assert forward["outputs"] == 4 * 2 * 7 * TIED.vocab_size
    assert forward["aliased"] == 0
    assert model.planned_bytes("decode", 2, 16)["aliased"] >= memory.kv_cache(TIED, 2, 16)  # the cache is donated


def test_what_lives_at_the_peak_contains_the_closed_forms():
    """Of PyTorch: parameters and gradients of a step, its averages where training has begun, the cache of a decoder."""
    model, state = build("torch", TIED), memory.weights(TIED) + memory.gradients(TIED)
    step = model.planned_bytes("train", 2, 7)["planned"]
    assert state <= step <= state + model.saved_bytes(2, 7) + 4 * 4 * 2 * 7 * TIED.vocab_size
    model.start_training(TrainConfig())
    assert model.planned_bytes("train", 2, 7)["planned"] == step + memory.optimizer_slots(TIED)
    forward = model.planned_bytes("forward", 2, 7)["planned"]
    assert memory.weights(TIED) + 4 * 2 * 7 * TIED.vocab_size <= forward < step
    assert model.planned_bytes("decode", 2, 16)["planned"] >= memory.weights(TIED) + memory.kv_cache(TIED, 2, 16)


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_plans_of_what_multiplies_nothing(wing):
    """Of an optimizer's step weights, gradients and averages; of dropout what comes and what goes; of a draw the
    logits; the shared generator makes its numbers of several of the same size. The model stays as it is."""
    model, held = build(wing, TIED), memory.weights(TIED)
    with pytest.raises(UserError, match="once `start_training` has been called"):
        model.planned_bytes("optimizer", 2, 7)
    model.start_training(TrainConfig())
    before, state = model.weights(), 2 * held + memory.optimizer_slots(TIED)
    assert state <= model.planned_bytes("optimizer", 2, 7)["planned"] < state + held
    dropped, drawn = (model.planned_bytes(what, 2, 7)["planned"] for what in ("dropout", "sample"))
    activation, logits = 4 * 2 * 7 * TIED.embed_dim, 4 * 2 * TIED.vocab_size
    assert 2 * activation <= dropped <= 20 * activation
    assert logits <= drawn <= 20 * logits
    assert all(np.array_equal(before[name], w) for name, w in model.weights().items())


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_plans_of_a_component_are_about_it_alone(wing):
    """Its parameters, input and cotangent, and for gradients as much again."""
    model, path = build(wing, TIED), "model.layers.0.mlp"
    own = sum(4 * w.size for name, w in model.weights().items() if name.startswith(path))
    x = 4 * 2 * 7 * TIED.embed_dim
    found = model.planned_bytes("gradients", 2, 7, path)["planned"]
    assert 2 * own + 3 * x <= found < 2 * own + 3 * x + 12 * 4 * 2 * 7 * TIED.ff_dim


def test_each_wing_says_what_it_does_not_know():
    torch, jax = build("torch", TIED), build("jax", TIED)
    assert torch.reported_flops("train", 2, 7) is None
    assert jax.saved_bytes(2, 7) is None
