"""C4: the same tokens in every way of generating; a planted fault fails, a choice within rounding is a listed tie."""

import numpy as np
import pytest
from altered import failed, rows, session, with_config, with_methods

from common import backend as door
from common.cases import CASES
from common.config import SamplingConfig
from common.oracle.sampling import sample
from common.parity import decisions, margins
from common.parity.rows import Exhibit
from common.parity.thresholds import NOISE
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
