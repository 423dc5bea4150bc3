"""What the gate lets in: honest outputs, as many as were asked for, of weights that hide nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.harness import contenders, contest, gate, judging
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.recipe import Recipe
from benchmarks.suites.scope import wing
from common import backend as door
from common import params
from common.adapters import Adapter
from common.compare import UNIT_ROUNDOFF
from common.config import Execution, GPTConfig, SamplingConfig, mode, preset
from common.quantised import quantised

CONFIG = GPTConfig(31, 24, 12, 2, 3, ff_dim=20)
CELL = Cell("decode", "decode", "tiny", CONFIG, 2, 5, "float32", (), new=4)


@pytest.mark.parametrize(
    ("rows", "passed"),
    [
        ([[1, 2, 3, 4], [5, 6, 7, 30]], True),
        ([[1, 2, 3, 4]], False),
        ([[1], [5]], False),
        ([[1, 2, 3, 4], [5, 6, 7]], False),
        ([[1, 2, 3, 4], [5, 6, 7, 31]], False),
        ([[1, 2, 3, 4], [5, 6, 7, -1]], False),
    ],
)
def test_tokens_count_only_if_all_of_them_are_there(rows, passed):
    (verdict,) = contest.choice(CELL, rows, lambda tokens: 0.0)
    assert verdict.passed is passed
    (verdict,) = contest.choice(CELL, rows, lambda tokens: 10.0)
    assert not verdict.passed


def test_uneven_weights_have_no_ones_and_zeros_and_are_otherwise_the_initial_ones():
    initial, uneven = (Recipe(kind, CONFIG, 3).weights() for kind in ("initial", "uneven"))
    for name, parameter in params.table(CONFIG).items():
        if len(parameter.shape) > 1:
            assert np.array_equal(initial[name], uneven[name])
        else:
            assert uneven[name].dtype == np.float32
            assert np.abs(uneven[name] - initial[name]).min() > 0
            assert 0.02 < np.std(uneven[name] - initial[name]) < 0.2


def test_uneven_weights_of_adapters_and_in_four_bits():
    """B is not zero; what 4 bits stand for stays what it is when it is put into 4 bits."""
    config = CONFIG.with_(adapters=Adapter(targets=("model.layers.*",), rank=2))
    uneven, small = (Recipe(kind, config, 3).weights() for kind in ("uneven", "uneven nf4"))
    for name in params.table(config):
        assert np.count_nonzero(uneven[name]) > 0.9 * uneven[name].size
    changed = {name for name in uneven if not np.array_equal(uneven[name], small[name])}
    assert changed == {name for name in uneven if ".layers." in name and name.endswith("_proj.weight")}
    again = quantised(config, small, "nf4")
    assert all(np.array_equal(again[name], small[name]) for name in small)


@pytest.mark.parametrize("forgotten", ["mlp.down_proj.bias", "self_attn.v_proj.bias", "input_layernorm.weight"])
def test_a_forward_pass_that_forgets_a_vector_is_refused(forgotten):
    cell = Cell("forward", "forward", "tiny", CONFIG, 2, 8, "float32", ())
    weights = dict(Recipe("uneven", CONFIG).weights())
    left_out = {**weights, **{n: np.round(w) for n, w in weights.items() if n.endswith(f"layers.1.{forgotten}")}}
    assert sum(not np.array_equal(weights[name], left_out[name]) for name in weights) == 1
    logits = [door.load("numpy").build(CONFIG, w, Execution(dtype="float64")).forward(cell.tokens()[0]).logits
              for w in (weights, left_out)]  # fmt: skip
    right, wrong = ({"logits": gate.digest(one)} for one in logits)
    one = Contender("x", "x", "x", "x")
    (verdict,) = contest.verdicts(cell, one, wrong, right)
    assert verdict.error > 10 * verdict.bound


@pytest.mark.full_for("jax", "mode1-torch")
@pytest.mark.parametrize("wing", ["torch", "jax"])
@pytest.mark.parametrize("mode", [{}, {"decode": "streamed"}])
def test_a_filled_cache_is_continued_as_often_as_one_likes(wing, mode):
    model = door.load(wing).build(CONFIG, Recipe("uneven", CONFIG).weights(), Execution(**mode))
    ids = np.random.default_rng(0).integers(0, 31, (2, 9)).astype(np.int32)
    for new in (1, 2, 6):
        sampling = SamplingConfig(max_new_tokens=new, temperature=0.7, seed=5)
        run = model.prepare("continue", ids, sampling=sampling)
        want = model.generate(ids.tolist(), sampling)
        for _ in range(3):
            assert np.asarray(run()["tokens"]).tolist() == want


def test_autocast_keeps_float32_and_multiplies_in_bfloat16_as_the_wings_do():
    pytest.importorskip("transformers")
    weights, ids = Recipe("uneven", CONFIG).weights(), np.random.default_rng(0).integers(0, 31, (2, 9)).astype(np.int32)
    cast, narrow, wide = (
        contenders.load(source).build(CONFIG, weights, Execution(dtype))
        for source, dtype in (
            ("benchmarks.outside.transformers_gpt2:autocast", "bfloat16"),
            ("transformers", "bfloat16"),
            ("transformers", "float32"),
        )
    )
    own, theirs = (dict(model.net.named_parameters()) for model in (cast, wide))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert [model.about()["param"] for model in (cast, narrow, wide)] == ["float32", "bfloat16", "float32"]
    assert cast.about()["compute"] == "bfloat16"
    assert {p.dtype for p in narrow.net.parameters()} == {torch.bfloat16}
    cell, one = Cell("forward", "forward", "tiny", CONFIG, 2, 9, "bfloat16", ()), Contender("x", "x", "x", "x")
    got, want = (
        {"logits": gate.digest(contenders.numpy(model.prepare("forward", ids)()["logits"]))} for model in (cast, wide)
    )
    assert all(v.passed for v in contest.verdicts(cell, one, got, want))
    assert not all(v.passed for v in contest.verdicts(replace(cell, dtype="float32"), one, got, want))


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_a_step_shows_its_judge_more_than_sums(wing):
    ids = np.random.default_rng(0).integers(0, 31, (2, 9)).astype(np.int32)
    shown = {}
    for name, dtype in ((wing, "bfloat16"), ("torch", "float64"), (wing, "float32")):
        model = door.load(name).build(CONFIG, Recipe("uneven", CONFIG).weights(), Execution(dtype=dtype))
        model.start_training(TRAIN)
        found = model.prepare("train", ids[:, :-1], ids[:, 1:])()
        shown[dtype] = {key: gate.digest(contenders.numpy(value)) for key, value in found.items()}
    averages = [f"exp_avg/{name}" for name in door.SHOWN]
    assert set(averages) <= set(shown["float64"])
    cell = Cell("train", "train", "tiny", CONFIG, 2, 8, "bfloat16", ())
    one = Contender("x", "x", "x", "x")
    assert all(v.passed for v in contest.verdicts(cell, one, shown["bfloat16"], shown["float64"]))
    # a row that says bfloat16 and computes in float32
    found = {v.what: v for v in contest.verdicts(cell, one, shown["float32"], shown["float64"])}
    assert all(found[name].error < found[name].least for name in averages)


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_a_step_of_adapters_shows_what_it_trains(wing):
    """In the fast modes, one of which keeps the layers' averages together; a wrong scale is noticed."""
    ids = np.random.default_rng(0).integers(0, 31, (2, 9)).astype(np.int32)
    adapted = CONFIG.with_(adapters=Adapter(targets=("model.layers.*",), rank=2, alpha=4.0))
    wrong = adapted.with_(adapters=adapted.adapters[0].with_(alpha=2.0))
    shown = {}
    for label, name, config, dtype, how in (
        ("judge", "torch", adapted, "float64", {}),
        ("fast", wing, adapted, "float32", mode("fast", wing)),
        ("wrong", "torch", wrong, "float32", {}),
    ):
        model = door.load(name).build(config, Recipe("uneven", config).weights(), Execution(dtype=dtype, **how))
        model.start_training(TRAIN)
        run = model.prepare("train", ids[:, :-1], ids[:, 1:])
        shown[label] = {
            f"{key} {number}": gate.digest(contenders.numpy(value)) for number in (1, 2) for key, value in run().items()
        }
    names = door.shown(adapted, TRAIN)
    assert names == (
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.1.mlp.down_proj.lora_B.default.weight",
    )
    averages = {f"exp_avg/{name} {number}" for name in names for number in (1, 2)}
    assert averages <= set(shown["judge"]) == set(shown["fast"])
    cell = Cell("train", "train", "tiny", adapted, 2, 8, "float32", ())
    one = Contender("x", "x", "x", "x")
    assert all(v.passed for v in contest.verdicts(cell, one, shown["fast"], shown["judge"]))
    assert not all(v.passed for v in contest.verdicts(cell, one, shown["wrong"], shown["judge"]))


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_an_optimizer_that_moves_nothing_is_refused(wing):
    ids = np.random.default_rng(0).integers(0, 31, (2, 9)).astype(np.int32)
    cell = Cell("optimizer", "optimizer", "tiny", CONFIG, 2, 8, "float32", ())
    shown = {}
    for name, dtype in (("torch", "float64"), (wing, "float32")):
        model = door.load(name).build(CONFIG, Recipe("uneven", CONFIG).weights(), Execution(dtype=dtype))
        model.start_training(TRAIN)
        before = model.weights()
        found = model.prepare("optimizer", ids[:, :-1], ids[:, 1:])()
        shown[dtype] = {key: gate.digest(contenders.numpy(value)) for key, value in found.items()}
    one = Contender("x", "x", "x", "x")
    assert all(v.passed for v in contest.verdicts(cell, one, shown["float32"], shown["float64"]))
    still = {f"param/{name}": gate.digest(before[name]) for name in door.SHOWN}
    refused = contest.verdicts(cell, one, {**shown["float32"], **still}, shown["float64"])
    assert [v.what for v in refused if not v.passed] == list(still)


def test_draws_of_another_generator_are_held_to_what_they_can_be_held_to():
    rng, x = np.random.default_rng(0), np.random.default_rng(1).standard_normal((40, 500))

    def dropped(scale=1 / 0.9):
        return {"output": gate.digest(np.where(rng.random(x.shape) < 0.9, x * scale, 0.0))}

    assert all(v.passed for v in gate.judge_drawn(dropped(), dropped(), 31))
    assert not all(v.passed for v in gate.judge_drawn(dropped(scale=1.0), dropped(), 31))
    tokens = {"tokens": gate.digest(np.array([3, 30]))}
    assert gate.judge_drawn(tokens, tokens, 31)[0].passed
    assert math.isinf(gate.judge_drawn(tokens, tokens, 30)[0].error)
    assert math.isinf(gate.judge_drawn({"tokens": gate.digest(np.array([3, 3]))}, tokens, 31)[0].error)


def test_gradients_are_sums_whose_roundings_partly_cancel():
    """An average of gradients 0.65 u off is honest in bfloat16 (measured: 2.6e-3), one of float32 numbers is not."""
    want = {"exp_avg/model.norm.weight": gate.digest(params.draw(0, "w", (400,)))}
    u = 2.0**-8
    for off, passed in ((0.65 * u, True), (0.05 * u, False)):
        got = {name: gate.digest(params.draw(0, "w", (400,)) * (1 + off)) for name in want}
        (verdict,) = gate.judge(got, want, "bfloat16", CONFIG)
        assert verdict.passed == passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_over_the_vocabulary_may_be_made_one_term_after_the_other(dtype):
    """The gradient that a head hands back, from softmax less one: kernels for GPUs add its terms in order."""
    count, generator = 50257, np.random.default_rng(0)
    chances = np.exp(generator.normal(size=count))
    slopes = (chances / chances.sum() - (np.arange(count) == 17)).astype(np.float32)
    terms = slopes[:, None] * generator.normal(size=(count, 64)).astype(np.float32)
    want = terms.astype(np.float64).sum(0)
    gap = np.add.accumulate(terms, axis=0)[-1] - want
    error = np.sqrt(np.mean(np.square(gap)) / np.mean(np.square(want)))
    without, within = gate.bounds("float32", 1, 64)[1], gate.bounds("float32", 1, 64, count)[1]
    assert 2 * without < error < within < 2 * error
    looser = gate.bounds(dtype, 12, 64, count)[1] / gate.bounds(dtype, 12, 64)[1]
    assert 1.5 < looser < 2 if dtype == "float32" else looser < 1.001


def test_who_says_tf32_must_have_cut_something():
    """No more than its roundoff allows, and more than float32 could be off."""
    for layers in (1, 4, 12, 48):
        least, most = gate.bounds("tf32", layers, 1000)
        assert gate.bounds("float32", layers, 1000)[1] < least < UNIT_ROUNDOFF["tf32"] < most
    one = wing("torch", "tf32")
    cell = Cell("train", "train", "nano", preset("nano"), 1, 8, "float32", (one, wing("torch")))
    assert [judging.arithmetic(cell, who) for who in cell.contenders] == ["tf32", "float32"]
