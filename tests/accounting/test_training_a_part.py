"""What a run that trains some parameters multiplies and keeps: in closed form, and as both wings do it."""

import functools

import numpy as np
import pytest

from common import params
from common.accounting import activations, flops, memory
from common.adapters import Adapter
from common.backend import load
from common.config import PRECISIONS, Execution, GPTConfig, TrainConfig
from common.errors import UserError
from common.variants import GatedMLP, GroupedQuery, Latent, MixtureOfExperts, Sparse

SMALL = GPTConfig(31, 16, 12, 3, 2, ff_dim=20)
EVERYWHERE = Adapter(targets=("*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj", "*.up_proj", "*.down_proj"), rank=2)
TODAY = SMALL.with_(feed_forward=GatedMLP(), norm="rms_norm", num_heads=2, num_labels=3)
GROUPED = GroupedQuery(1, qk_norm="head", sinks=True, gate=True)
LAST = ("model.layers.2.*", "model.norm.*")

RUNS = {
    "adapters everywhere": (SMALL.with_(adapters=EVERYWHERE), ()),
    "adapters of queries": (SMALL.with_(adapters=EVERYWHERE.with_(targets=("*.q_proj",))), ()),
    "adapters of values in the second layer": (
        SMALL.with_(adapters=EVERYWHERE.with_(targets=("model.layers.1.*.v_proj",))),
        (),
    ),
    "an adapter of the head": (
        SMALL.with_(tie_embeddings=False, adapters=EVERYWHERE.with_(targets=("*.down_proj", "lm_head"), dora=True)),
        (),
    ),
    "B alone": (SMALL.with_(adapters=EVERYWHERE), ("*.lora_B.*",)),
    "adapters and what is below": (SMALL.with_(adapters=EVERYWHERE), ("*.lora_*", "model.embed_positions.*")),
    "last block and head": (SMALL.with_(num_labels=3), (*LAST, "score.*")),
    "last block of a tied model": (SMALL, LAST),
    "head alone": (SMALL.with_(num_labels=3), ("score.*",)),
    "bias of the head": (SMALL.with_(num_labels=3), ("score.bias",)),
    "keys": (SMALL, ("*.k_proj.weight",)),
    "norms": (SMALL, ("*norm*",)),
    "embeddings": (SMALL, ("model.embed_tokens.*",)),
    "grouped, last block and head": (TODAY.with_(attention=GROUPED), (*LAST, "score.*")),
    "grouped, sinks": (TODAY.with_(attention=GROUPED), ("*.sinks",)),
    "grouped, gates": (TODAY.with_(attention=GROUPED), ("*.gate_proj.*",)),
    "latent, last block": (TODAY.with_(attention=Latent(rank=4)), (*LAST, "score.*")),
    "experts, last block": (SMALL.with_(feed_forward=MixtureOfExperts(4, 2, expert_dim=6)), LAST),
}


@functools.cache
def begun(wing, name, dtype="float32", **how):
    config, trained = RUNS[name]
    if wing == "jax" and config.feed_forward[0].kind == "mixture_of_experts":
        how = how | {"experts": "gathered"}
    model = load(wing).build(config, params.initialise(config, 0), Execution(dtype, **how))
    model.start_training(TrainConfig(trained=trained))
    return model


def chosen(name):
    config, trained = RUNS[name]
    return params.trained(config, TrainConfig(trained=trained))


@pytest.mark.full_for(*(f"jax-{name}" for name in list(RUNS)[1::2]))
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_a_step_multiplies_what_the_closed_form_says(wing, name):
    config, shape = RUNS[name][0], (2, 7)
    want = flops.flops_full(config, "train", *shape, trained=chosen(name))
    assert begun(wing, name).matmul_flops("train", *shape) == want
    forward, everything = (flops.flops_full(config, task, *shape) for task in ("forward", "train"))
    assert forward <= want < everything
    assert begun(wing, name).matmul_flops("gradients", *shape) == everything


@pytest.mark.parametrize("name", ["adapters everywhere", "adapters of queries", "keys", "last block of a tied model"])
def test_a_fused_kernel_is_asked_for_all_or_nothing(name):
    config, shape = RUNS[name][0], (2, 7)
    want = flops.flops_full(config, "train", *shape, attention="fused", trained=chosen(name))
    assert begun("torch", name, attention="fused").matmul_flops("train", *shape) == want


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("head", ["tied", "adapted"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_a_chunked_loss_makes_no_gradient_of_a_frozen_head(wing, head):
    """Its own products are made in place, where the counter does not see them; its memory is seen."""
    config = GPTConfig(4001, 16, 12, 1, 2, adapters=EVERYWHERE)
    if head == "adapted":
        config = config.with_(tie_embeddings=False, adapters=EVERYWHERE.with_(targets=("*",)))
    frozen, all_of_it = (
        load(wing).build(config, params.initialise(config, 0), Execution(loss="chunked")) for _ in range(2)
    )
    own = ("*.lora_*",) if head == "tied" else ("*.lora_*", "lm_head.weight")
    frozen.start_training(TrainConfig())
    all_of_it.start_training(TrainConfig(trained=("*",) if head == "tied" else own))
    less, more = (one.planned_bytes("train", 1, 4)["planned"] for one in (frozen, all_of_it))
    slots, fewer = (sum(array.nbytes for array in one.optimizer_slots().values()) for one in (all_of_it, frozen))
    assert more - (slots - fewer) - less >= 4 * 4001 * 12


def test_components_by_hand():
    """With adapters of queries alone: of the first layer's maps that read its input nothing goes back."""
    config, _ = RUNS["adapters of queries"]
    found = flops.training(config, 2, 7, trained=chosen("adapters of queries"))
    forward = flops.forward(config, 2, 7)
    maps, tokens, (e, f) = forward["attention projections"], 2 * 7, (12, 20)
    one = 2 * tokens * e * e
    assert maps == 3 * 4 * one
    assert found["attention projections"] == maps + (4 + 4 + 1) * one
    scores = forward["attention scores and values"]
    first = scores // 3 + 2 * scores // 6  # the softmax's and the query's
    assert found["attention scores and values"] == first + 2 * scores
    assert found["feed-forward"] == 2 * forward["feed-forward"] == 2 * 3 * 2 * 2 * tokens * e * f
    assert found["head"] == 2 * forward["head"]
    own = 2 * tokens * 2 * e  # A and B of a map are as large
    assert forward["adapters"] == 3 * 2 * own
    assert found["adapters"] == 3 * 3 * 2 * own - own


def test_training_everything_is_what_it_was():
    everything = dict.fromkeys(params.table(SMALL), True)
    assert flops.training(SMALL, 2, 7, trained=everything) == flops.training(SMALL, 2, 7)
    nothing = dict.fromkeys(params.table(SMALL), False)
    assert flops.training(SMALL, 2, 7, trained=nothing) == flops.forward(SMALL, 2, 7)


def test_what_has_no_closed_form_is_refused():
    sparse = SMALL.with_(attention=Sparse(1, top_k=4, index_heads=1, index_dim=4), adapters=EVERYWHERE)
    with pytest.raises(UserError, match=r"model\.layers\.0\.self_attn, of the kind 'sparse', is trained in part"):
        flops.training(sparse, 2, 7, trained=params.trained(sparse, TrainConfig()))
    with pytest.raises(UserError, match="Checkpointed blocks"):
        flops.training(SMALL, 2, 7, attention="checkpointed", trained=params.trained(SMALL, TrainConfig(trained=LAST)))


@pytest.mark.full_for("jax-head", "jax-last", "jax-adapters", "muon-bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["adapters everywhere", "last block and head", "head alone"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_bytes_of_what_a_run_trains(wing, name, optimizer, dtype):
    """Of the arrays that a run's optimizer holds, and of the parameters that a step changed."""
    (config, trained), kept = RUNS[name], PRECISIONS[dtype].param
    train = TrainConfig(trained=trained, optimizer=optimizer, learning_rate=0.1, warmup_steps=0)
    model = load(wing).build(config, params.randomise(config, 0), Execution(dtype))
    before = {key: array.copy() for key, array in model.weights().items()}
    model.start_training(train)
    tokens = np.arange(14, dtype=np.int32).reshape(2, 7) % 3
    model.train_step(tokens[None], tokens[None])
    moved = {key: array for key, array in model.weights().items() if not np.array_equal(array, before[key])}
    dead = {key for key, one in params.table(config).items() if one.dead}
    assert set(moved) | dead == {key for key, on in params.trained(config, train).items() if on} | dead
    assert memory.gradients(config, kept, train) == 4 * memory.learning(config, train)
    slots = sum(array.nbytes for array in model.optimizer_slots().values())
    assert slots == memory.optimizer_slots(config, kept, train)
    whole = memory.training(config, kept, train)
    assert whole == memory.weights(config, kept) + memory.gradients(config, kept, train) + slots
    if optimizer == "adamw" and dtype == "float32" and wing == "torch":
        live = model.planned_bytes("train", 2, 7)["planned"]
        assert whole <= live <= whole + sum(activations.saved(config, 2, 7).values()) + 4 * 4 * 2 * 7 * config.outputs


def test_a_run_that_froze_parameters_leaves_accounts_as_they_were():
    config, _ = RUNS["adapters everywhere"]
    model = load("torch").build(config, params.initialise(config, 0), Execution())
    kept, shape = model.saved_bytes(2, 7), (2, 7, config.embed_dim)
    x = params.draw(0, "x", shape).astype(np.float32)
    path = "model.layers.0.mlp"
    _, before = model.component(path, x, np.ones(shape, np.float32))
    model.start_training(TrainConfig())
    model.matmul_flops("train", 2, 7)
    _, after = model.component(path, x, np.ones(shape, np.float32))
    assert all(np.array_equal(before.grads[name], after.grads[name]) for name in before.grads)
    model.matmul_flops("train", 2, 7)
    assert model.saved_bytes(2, 7) == kept
