"""The balance loss of mixtures of experts, and their accounts: FLOPs, bytes, parameters."""

from itertools import pairwise

import numpy as np
import pytest
from mixtures import BOUND, CONFIG, ENTRY, FULL, PLAIN, batch, of, softmax

from common import backend, params
from common.accounting import flops, memory
from common.backend import IGNORED
from common.config import Execution, GPTConfig, TrainConfig
from common.oracle.gradient import slope
from common.variants.grouped_query import GroupedQuery
from common.variants.mixture_of_experts import MixtureOfExperts
from common.variants.rotary import Rotary

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims


# --- balance ----------------------------------------------------------------------------------------------------------

BALANCED = ENTRY.with_(balance=0.7)


def terms(model, ids):
    """What every layer adds, by hand from its logits: weight X sum of (part of choices) (mean probability)."""
    taps = model.forward(ids, taps=("*.mlp.router", "*.mlp.chosen", "*.mlp.balance")).taps
    found = []
    for layer in range(2):
        at = f"model.layers.{layer}.mlp."
        logits, chosen = taps[f"{at}router"], taps[f"{at}chosen"]
        parts = np.bincount(chosen.ravel(), minlength=5) / chosen.size
        found.append(0.7 * 5 * (parts * softmax(logits).mean((0, 1))).sum())
        assert float(taps[f"{at}balance"]) == pytest.approx(found[-1], rel=BOUND)
    return sum(found)


def trained_value(model, ids, targets):
    if hasattr(model, "loss_of"):
        return float(model.loss_of(model.params, ids, targets))
    return model.gradients(ids, targets).value


@pytest.mark.full_for("jax")
def test_training_adds_the_balance_and_evaluation_does_not(model_of, name):
    ids, targets = batch()
    model = model_of(name, of(BALANCED))
    assert model.loss(ids, targets) == model_of(name, of(ENTRY)).loss(ids, targets)
    assert trained_value(model, ids, targets) == pytest.approx(model.loss(ids, targets) + terms(model, ids), rel=BOUND)


@pytest.mark.full_for("jax")
def test_micro_batches_weigh_like_their_targets(model_of, name):
    """Each has a balance of its own, so that together they are not one batch."""
    ids, targets = batch(3)
    targets[2] = IGNORED
    model, counts = model_of(name, of(BALANCED)), (targets != IGNORED).sum(1)
    alone = [model.loss(ids[[r]], targets[[r]]) + terms(model, ids[[r]]) for r in (0, 1)]
    want = np.average(alone, weights=counts[:2])
    assert trained_value(model, ids[:, None], targets[:, None]) == pytest.approx(want, rel=BOUND)


@pytest.mark.full_for("jax-{}", "jax-{'experts'", "jax-{'layers': 'scan'")
@pytest.mark.parametrize("how", [{}, {"experts": "gathered"}, {"layers": "scan"}, {"layers": "checkpointed"}], ids=str)
def test_gradients_of_the_balance_are_the_oracles(model_of, wing, how):
    """Along one random direction for every tensor."""
    if wing == "torch" and "layers" in how:
        pytest.skip("PyTorch runs its layers in a loop")
    (ids, targets), config = batch(), of(BALANCED.with_(balance=5.0))
    oracle, got = model_of("numpy", config), model_of(wing, config, **how).gradients(ids, targets)
    without = model_of("numpy", of(ENTRY))
    for name, parameter in params.table(config).items():
        direction = np.sign(params.draw(1, name, parameter.shape))
        along = {name: direction}
        true, plain = (slope(lambda p, m=m: m.loss_of(p, ids, targets), m.params, along) for m in (oracle, without))
        assert float((got.grads[name] * direction).sum()) == pytest.approx(float(true), rel=1e-9, abs=1e-10)
        if name.endswith("router.weight"):
            assert abs(true - plain) > 1e-6, "the balance does not reach the router"


def test_an_even_router_has_balance_one(fresh_model, name):
    """Whatever is chosen: all mean probabilities are 1 / X."""
    config, ids = of(BALANCED), batch()[0]
    weights = {n: np.zeros_like(w) if ".router." in n else w for n, w in params.randomise(config, 8).items()}
    taps = fresh_model(name, config, weights=weights).forward(ids, taps=("*.mlp.balance",)).taps
    assert [float(value) for value in taps.values()] == pytest.approx([0.7, 0.7], rel=BOUND)


# --- accounts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wing", "form"), [("torch", "loop"), *((w, f) for w in ("torch", "jax") for f in ("grouped", "gathered"))]
)
@pytest.mark.parametrize("entry", [ENTRY, PLAIN, FULL], ids=["shared", "plain", "full"])
def test_counters_equal_the_closed_form_of_active_parameters(wing, form, entry):
    config = of(entry)
    model = backend.load(wing).build(config, params.initialise(config, 0), Execution(experts=form))
    for task, what in (("forward", "forward"), ("train", "gradients")):
        assert model.matmul_flops(what, 2, 7) == flops.flops_full(config, task, 2, 7)


def test_jaxs_loop_multiplies_all_tokens_by_all_experts():
    config = of(PLAIN)
    model = backend.load("jax").build(config, params.initialise(config, 0), Execution())
    more = (4 - 2) * 2 * 14 * 3 * 16 * 8 * 2  # experts not chosen, 2 FLOPs, tokens, three matrices, layers
    assert model.matmul_flops("forward", 2, 7) == flops.flops_full(config, "forward", 2, 7) + more


def test_a_decoding_step_reads_the_experts_that_its_rows_may_take():
    """2 of 5 for one row, 4 for two, all for three; a row more looks up two rows of tables."""
    one, tables = 3 * 16 * 8 * 2 * 4, 2 * 16 * 4  # an expert in both layers; bytes of a token and a position
    read = [memory.decode_bytes(of(ENTRY), rows, 7)["weights read"] for rows in (1, 2, 3, 9)]
    assert [b - a for a, b in pairwise(read)] == [2 * one + tables, one + tables, 6 * tables]


def test_jax_streams_the_matrices_of_a_tokens_own_experts_alone():
    config = of(PLAIN)
    model = backend.load("jax").build(config, params.initialise(config, 0), Execution(decode="streamed"))
    assert model.matmul_flops("decode", 1, 9) == flops.flops_full(config, "decode", 1, 9)


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_biases_of_experts_decode_in_the_type_of_parameters(fresh_model, wing):
    """As vectors do, though those of several experts lie one on the other; matrices are multiplied in 16 bits."""
    model = fresh_model(wing, of(FULL), "bfloat16", compile=False)
    if wing == "torch":
        served = {name: str(p.dtype) for name, p in model._serving().named_parameters()}
    else:
        with model.scope():
            served = {name: str(p.dtype) for name, p in model._serving().items()}
    kinds = {which: served[f"model.layers.0.mlp.experts.{which}"] for which in ("up_bias", "down_bias", "up_proj")}
    assert [kind.removeprefix("torch.") for kind in kinds.values()] == ["float32", "float32", "bfloat16"]
    bare = of(FULL.with_(expert_bias=False))
    read = [memory.decode_bytes(config, 1, 7, "bfloat16")["weights read"] for config in (of(FULL), bare)]
    assert read[0] - read[1] == 2 * 3 * (8 + 8 + 16) * 4  # layers, experts, biases, bytes


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_a_bias_that_only_chooses_does_not_fade(fresh_model, wing):
    """Not even where all parameters decay: no gradient would bring it back."""
    config = of(FULL)
    weights, train = params.randomise(config, 3), TrainConfig(steps=3, weight_decay=0.5, decay="all")
    model = fresh_model(wing, config, weights=weights)
    model.start_training(train)
    ids, targets = batch()
    for _ in range(2):
        model.train_step(ids, targets)
    after = model.weights()
    for layer in range(2):
        at = f"model.layers.{layer}.mlp."
        np.testing.assert_array_equal(after[f"{at}choice_bias"], weights[f"{at}choice_bias"])
        assert (after[f"{at}experts.up_bias"] != weights[f"{at}experts.up_bias"]).all()


def test_what_only_chooses_is_named_where_it_does():
    """Of a single choice that always weighs 1 the router learns nothing, and decides all the same."""
    alone = {p.name: p for p in MixtureOfExperts(4, 1, choice_bias=True).parameters(CONFIG, "mlp")}
    everyone = {p.name: p for p in MixtureOfExperts(4, 4, choice_bias=True).parameters(CONFIG, "mlp")}
    one = {p.name: p for p in MixtureOfExperts(1, 1, choice_bias=True).parameters(CONFIG, "mlp")}
    found = [(p["mlp.router.weight"], p["mlp.choice_bias"]) for p in (alone, everyone, one)]
    assert [(r.dead, r.chooses, b.dead, b.chooses) for r, b in found] == [
        (True, True, True, True),
        (False, False, True, False),
        (True, False, True, False),
    ]


def sizes(entry, config):
    """(router, one expert, all) parameters of a layer."""
    found = {p.name: p.size for p in entry.parameters(config, "mlp")}
    router = found.pop("mlp.router.weight")
    return router, sum(found.values()) // entry.num_experts, router + sum(found.values())


def test_published_sizes():
    """F-066: 8 experts of 1792 in a model of 7168, top-2. F-100: Qwen3 30B-A3B."""
    entry = MixtureOfExperts(8, 2, expert_dim=1792)
    config = GPTConfig(8, 8, 7168, 1, 56, feed_forward=entry)
    router, expert, total = sizes(entry, config)
    assert (router, expert, total) == (57_344, 38_535_168, 308_338_688)
    assert router + 2 * expert == 77_127_680
    assert flops.forward(config, 1, 1)["feed-forward"] == 2 * 77_127_680
    qwen = GPTConfig(
        151_936,
        262_144,
        2048,
        48,
        32,
        qkv_bias=False,
        tie_embeddings=False,
        activation="silu",
        norm="rms_norm",
        positions="none",
        attention=GroupedQuery(4, head_dim=128, rotary=Rotary(base=1e7), qk_norm="head"),
        feed_forward=MixtureOfExperts(128, 8, expert_dim=768),
    )
    assert params.count(qwen) == 30_532_122_624
