"""Continuing prompts: every way of doing it gives the tokens of the plain loop written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.config import SamplingConfig
from common.errors import UserError

PROMPTS = [[5, 17, 33, 2, 60, 41, 8], [9], [12, 0, 3, 44]]
NEW = 12
GREEDY = SamplingConfig(max_new_tokens=NEW)


def by_hand(model, prompt, new):
    """Greedy, one full forward per token over the last `context_length` tokens: the book's loop."""
    row = list(prompt)
    for _ in range(new):
        window = np.array([row[-model.config.context_length :]])
        row.append(int(model.forward(window).logits[0, -1].argmax()))
    return row[len(prompt) :]


@pytest.fixture(scope="module")
def expected(model_of):
    rows = [by_hand(model_of("numpy"), prompt, NEW) for prompt in PROMPTS]
    assert len({token for row in rows for token in row}) > 8, "a model that repeats itself proves little"
    return rows


def test_greedy_is_the_argmax_of_the_full_forward(model_of, expected, name):
    assert model_of(name).generate(PROMPTS, GREEDY) == expected


@pytest.mark.full_for("jax")
def test_rows_one_by_one(model_of, expected, name):
    assert [model_of(name).generate([prompt], GREEDY)[0] for prompt in PROMPTS] == expected


def test_without_the_cache(model_of, expected, name):
    assert model_of(name).generate(PROMPTS, GREEDY.with_(cache=False)) == expected


def test_a_stream_gives_the_same_step_by_step(model_of, expected, name):
    steps = list(model_of(name).stream(PROMPTS, GREEDY))
    assert steps == [list(step) for step in zip(*expected, strict=True)]


def test_a_stream_can_be_left(model_of, expected, name):
    """Whoever stops reading leaves the model as it was."""
    model = model_of(name)
    stream = model.stream(PROMPTS, GREEDY)
    assert next(stream) == [row[0] for row in expected]
    stream.close()
    assert model.generate(PROMPTS, GREEDY) == expected


def switches():
    """What a computation may set in either framework for as long as it lasts."""
    modes = (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_num_threads())
    return (*modes, jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision, str(jnp.ones(1).devices()))


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("cache", [True, False])
def test_a_stream_leaves_the_callers_world_alone(fresh_model, expected, wing, cache):
    """Between two steps the caller may differentiate, and finds the switches of the framework as they were."""
    model, other = fresh_model(wing), fresh_model(wing)
    ids, before = np.array([PROMPTS[0]]), switches()
    want, found = other.gradients(ids[:, :-1], ids[:, 1:]).grads, []
    for step in model.stream(PROMPTS, GREEDY.with_(cache=cache, max_new_tokens=3)):
        found.append(step)
        assert switches() == before
        for parameter, own in other.gradients(ids[:, :-1], ids[:, 1:]).grads.items():
            np.testing.assert_array_equal(own, want[parameter])
    assert found == [list(step) for step in zip(*expected, strict=True)][:3]


@pytest.mark.full_for("jax-2", "jax-7", "jax-16")
@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 16, 99])
def test_any_prefill_chunk(model_of, expected, name, chunk):
    assert model_of(name).generate(PROMPTS, GREEDY.with_(prefill_chunk=chunk)) == expected


@pytest.mark.parametrize("cached", [True, False])
def test_an_end_token_ends_its_row_and_the_others_go_on(model_of, expected, name, cached):
    """The end token is not part of the text, and a stream shows None from then on."""
    end = expected[0][3]
    want = [row[: row.index(end)] if end in row else row for row in expected]
    assert len({len(row) for row in want}) > 1
    sampling = GREEDY.with_(end_token=end, cache=cached)
    assert model_of(name).generate(PROMPTS, sampling) == want
    steps = list(model_of(name).stream(PROMPTS, sampling))
    assert len(steps) == min(NEW, max(len(row) + 1 for row in want))
    for at, step in enumerate(steps):
        assert step == [row[at] if at < len(row) else None for row in want]


def test_when_every_row_has_ended_it_is_over(model_of, expected, name):
    sampling = GREEDY.with_(end_token=expected[1][0])
    assert model_of(name).generate(PROMPTS[1:2], sampling) == [[]]
    assert list(model_of(name).stream(PROMPTS[1:2], sampling)) == [[None]]


SETTINGS = {
    "temperature": {"temperature": 1.3},
    "top-k": {"temperature": 0.9, "top_k": 5},
    "top-p": {"temperature": 2.5, "top_p": 0.8},
    "all": {"temperature": 3.0, "top_k": 20, "top_p": 0.7},
}


@pytest.mark.full_for("top", "temperature")
@pytest.mark.parametrize("setting", SETTINGS)
def test_sampled_tokens_are_equal_everywhere(model_of, setting):
    """Equal seeds, equal tokens in all three, cached and plain; other seeds, other tokens."""
    found = []
    for seed in (0, 1, 2**32 - 1):
        sampling = SamplingConfig(max_new_tokens=NEW, seed=seed, **SETTINGS[setting])
        want = model_of("numpy").generate(PROMPTS, sampling)
        for name in ("torch", "jax"):
            assert model_of(name).generate(PROMPTS, sampling) == want, (name, seed)
        found.append(want)
    plain = sampling.with_(cache=False)
    for name in ("numpy", "torch", "jax"):
        assert model_of(name).generate(PROMPTS, plain) == want, name
    assert found[0] != found[1] != found[2]


def test_a_streamed_sample_is_the_same_too(model_of, name):
    sampling = SamplingConfig(max_new_tokens=NEW, seed=3, temperature=1.3)
    want = model_of("numpy").generate(PROMPTS, sampling)
    assert list(model_of(name).stream(PROMPTS, sampling)) == [list(step) for step in zip(*want, strict=True)]


@pytest.mark.full_for("jax")
def test_top_k_1_is_greedy(model_of, expected, name):
    assert model_of(name).generate(PROMPTS, GREEDY.with_(temperature=1.0, top_k=1)) == expected


def test_draws_have_the_probabilities_of_the_softmax():
    """4,000 draws over five tokens: every share within five standard deviations."""
    from common.oracle.sampling import sample

    logits, count = np.array([2.0, 1.0, 0.0, -1.0, 0.5]), 4_000
    sampling = SamplingConfig(temperature=2.0, top_k=4)
    drawn = sample(np.tile(logits, (count, 1)), np.zeros(count, np.int64), sampling, 11)
    p = np.where(logits > -1, np.exp(logits / 2), 0)
    p /= p.sum()
    share = np.bincount(drawn, minlength=5) / count
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / count)).all()


# --- the rule for prompts that outgrow the context (24 here) ----------------------------------------------------------


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("cached", [True, False])
def test_crop_keeps_the_last_tokens_as_the_book_does(model_of, tokens, name, cached):
    """One row starts over-long, one outgrows the context on its way, one never does."""
    prompts = [tokens(30, seed=1).tolist(), tokens(19, seed=2).tolist(), [7]]
    sampling = GREEDY.with_(overflow="crop", cache=cached)
    want = [by_hand(model_of("numpy"), prompt, NEW) for prompt in prompts]
    assert model_of(name).generate(prompts, sampling) == want
    assert list(model_of(name).stream(prompts, sampling)) == [list(step) for step in zip(*want, strict=True)]
    assert model_of(name).generate(prompts[1:2], sampling) == want[1:2]


@pytest.mark.parametrize("cached", [True, False])
def test_the_exact_boundary(model_of, tokens, name, cached):
    """prompt + new - 1 == context works; one more is refused with one sentence, and the model goes on working."""
    model, prompt = model_of(name), tokens(13, seed=4).tolist()
    fits = GREEDY.with_(cache=cached)
    want = by_hand(model_of("numpy"), prompt, NEW)
    assert model.generate([prompt], fits) == [want]
    with pytest.raises(UserError, match=r"Prompt 1 has 14 tokens and 12 more are asked for.*context holds 24"):
        model.generate([prompt, [*prompt, 1]], fits)
    with pytest.raises(UserError, match="13 more"):
        list(model.stream([prompt], fits.with_(max_new_tokens=NEW + 1)))
    assert model.generate([prompt], fits) == [want]


def test_a_full_context_still_gives_one_token(model_of, tokens, name):
    prompt = tokens(24, seed=5).tolist()
    want = by_hand(model_of("numpy"), prompt, 1)
    assert model_of(name).generate([prompt], GREEDY.with_(max_new_tokens=1)) == [want]


@pytest.mark.parametrize(
    ("prompts", "sampling", "sentence"),
    [
        ([], {}, "There is no prompt"),
        ([[1], []], {}, "Prompt 1 is empty"),
        ([[1, 61]], {}, "Token id 61"),
        ([[1, -1]], {}, "Token id -1"),
        ([[0.5]], {}, "whole numbers"),
        ([[1]], {"end_token": 61}, "end token 61"),
    ],
)
def test_bad_prompts_get_one_sentence(model_of, name, prompts, sampling, sentence):
    with pytest.raises(UserError, match=sentence):
        model_of(name).generate(prompts, GREEDY.with_(**sampling))
