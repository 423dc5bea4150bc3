"""C4: the same tokens in every way of generating; a planted fault fails, a choice within rounding is a listed tie."""

from dataclasses import replace

import numpy as np
import pytest
from altered import failed, rows, session, with_config, with_methods

from common import backend as door
from common.cases import CASES
from common.config import SamplingConfig
from common.oracle.sampling import sample
from common.parity import decisions, margins
from common.parity.rows import Exhibit
from common.parity.thresholds import NOISE, RULES
from common.parity.trial import Session, Trial, truth

TORCH = ("torch", "torch")


@pytest.mark.full  # the quick part is tests/parity/test_cases.py
def test_honest_wings_choose_the_same_tokens():
    found = rows(decisions, session(), "gpt")
    assert not failed(found), [found[key] for key in failed(found)]
    assert all(row.size > 10 for row in found.values())
    variants = {what.split()[-1] for what, tier in found if tier == "float64" and what.startswith("tokens")}
    assert variants == set(decisions.VARIANTS)


def test_a_component_decides_nothing():
    assert not rows(decisions, session(), "mlp")


def other_filter(generate, prompts, sampling):
    return generate(prompts, sampling.with_(top_k=sampling.top_k and sampling.top_k + 1))


def other_noise(generate, prompts, sampling):
    return generate(prompts, sampling.with_(seed=sampling.seed + 1))


def one_short(generate, prompts, sampling):
    return [row[:-1] for row in generate(prompts, sampling)]


def stale_cache(generate, prompts, sampling):
    """Chunked prefill that forgets the first chunk."""
    if sampling.prefill_chunk is None:
        return generate(prompts, sampling)
    return generate([prompt[-sampling.prefill_chunk :] for prompt in prompts], sampling)


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (with_methods(generate=other_noise), "top-k cached"),
        (with_methods(generate=one_short), "greedy cached"),
        (with_methods(generate=stale_cache), "chunked"),
        (with_config(norm_eps=0.3), "first choices"),
    ],
    ids=["seed", "length", "chunks", "norm eps"],
)
def test_a_fault_fails(fault, where):
    found = rows(decisions, session(fault, TORCH, tiers=("float64",)), "gpt")
    assert any(where in what for what, _ in failed(found)), failed(found)


def test_a_choice_that_rounding_explains_is_a_listed_tie(monkeypatch):
    """With bounds as wide as all margins every fault is a tie: listed, with its margin, and not a failure."""
    wide = session(with_methods(generate=other_noise), TORCH, tiers=("bfloat16",))
    assert failed(rows(decisions, wide, "gpt"))
    monkeypatch.setitem(NOISE, "bfloat16", 1e9)
    truth.cache_clear()
    trial = Trial(session(with_methods(generate=other_noise), TORCH, tiers=("bfloat16",)), CASES["gpt"])
    found = list(decisions.for_case(trial))
    assert all(item.passed for item in found if not isinstance(item, Exhibit))
    (ties,) = (item.data for item in found if isinstance(item, Exhibit))
    assert {tie["wing"] for tie in ties} == {"altered"}
    assert all(tie["margin"] <= tie["rounding"] for tie in ties)
    truth.cache_clear()


@pytest.mark.parametrize("number", range(1, len(CASES["gpt"].sampling)))
def test_margins_are_what_it_takes_to_change_the_choice(number):
    """Logits that move apart by less than the margin choose the same token; beyond it some choose another."""
    sampling, fact = CASES["gpt"].sampling[number], truth("gpt")
    logits = fact.forward.logits[0]
    random = np.random.default_rng(0)
    changed = 0
    for position, own in enumerate(logits):
        needed = margins.margin(own, sampling, position, 0) * sampling.temperature
        chosen = sample(own[None], [position], sampling, sampling.seed)[0]
        for _ in range(200):
            signs = random.choice([-0.5, 0.5], own.shape)
            assert sample((own + 0.9 * needed * signs)[None], [position], sampling, sampling.seed)[0] == chosen
            changed += sample((own + 1.3 * needed * signs)[None], [position], sampling, sampling.seed)[0] != chosen
    assert changed > 100


def test_the_margin_of_a_greedy_choice():
    assert margins.margin(np.array([2.0, 1.5, 0.2, -1.0]), SamplingConfig(1), 0, 0) == 0.5


def test_room_in_a_nucleus():
    """The odds of the tokens before the third are 4; they must fall to those of p, while it does not overtake them."""
    logits, p = np.log([0.5, 0.3, 0.15, 0.05]), 0.78
    room = margins.nucleus_room(logits, p)
    assert (room > 0).tolist() == [True, True, False, False]
    assert room[2] == pytest.approx(-np.log(4 / (p / (1 - p))))
    assert room[0] == pytest.approx(margins.FAR) or room[0] > room[1]


def test_first_differences():
    assert decisions.first_difference([1, 2], [1, 2]) is None
    assert decisions.first_difference([1, 2, 4], [1, 3, 4]) == 1
    assert decisions.first_difference([1], [1, 2]) == 1


def test_a_full_session_tries_all_variants_in_all_tiers():
    whole = Trial(Session({"torch": door.load("torch")}), CASES["gpt"])
    count = len(CASES["gpt"].sampling) * len(decisions.VARIANTS) + 1
    assert len(decisions.declared(whole)) == count * len(decisions.TIERS)


# --- inside the model -------------------------------------------------------------------------------------------------

OWN, ROUTED = decisions.OWN, decisions.ROUTED


@pytest.mark.parametrize("case", ["gpt_experts", "gpt_sparse"])
def test_layers_choose_by_their_own_scores(case):
    found = rows(decisions, session(None, TORCH, tiers=("float64", "bfloat16")), case)
    inner = {key: row for key, row in found.items() if key[0] in (OWN, ROUTED)}
    assert {what for what, _ in inner} == ({OWN, ROUTED} if case == "gpt_experts" else {OWN})
    assert not failed(inner)
    assert {row.size for row in inner.values()} == {2 * 2 * 11}  # layers, rows, tokens


def next_expert(forward, ids, **options):
    """The first of a token's experts is said to be the next one, or a key that is not chosen to be one that is."""
    found = forward(ids, **options)
    for tap, value in found.taps.items():
        if tap.endswith(".chosen"):
            found.taps[tap] = value.copy()
            found.taps[tap][0, 7, 0] = ~value[0, 7, 0] if value.dtype == bool else (value[0, 7, 0] + 1) % 4
    return found


@pytest.mark.parametrize(("case", "wrong"), [("gpt_experts", {OWN, ROUTED}), ("gpt_sparse", {OWN})])
def test_another_choice_fails(case, wrong):
    found = rows(decisions, session(with_methods(forward=next_expert), TORCH, tiers=("float64",)), case)
    assert {what for what, _ in failed(found)} == wrong
    assert all(found[what, "float64"].errors == {"torch": 0.0, "altered": 2.0} for what in wrong)  # one in each layer


def test_other_experts_that_rounding_explains_are_listed_ties(monkeypatch):
    """With bounds as wide as all margins nothing fails beside the oracle; what own scores do not give fails anyway."""
    wide = replace(RULES["matmul"], bounds=lambda errors, inputs: dict.fromkeys(errors, 1e9))
    monkeypatch.setitem(RULES, "matmul", wide)
    trial = Trial(session(with_methods(forward=next_expert), TORCH, tiers=("float32",)), CASES["gpt_experts"])
    found = list(decisions.for_case(trial))
    assert {item.what for item in found if not isinstance(item, Exhibit) and not item.passed} == {OWN}
    (ties,) = (item.data for item in found if isinstance(item, Exhibit))
    own = [tie for tie in ties if tie["what"].startswith("experts of model.layers.")]
    assert {(tie["wing"], tie["row"], tie["step"]) for tie in own} == {("altered", 0, 7)}
    assert len(own) == 2
    assert all(0 < tie["margin"] <= tie["rounding"] for tie in own)
