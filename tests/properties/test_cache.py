"""A KV cache changes nothing, in any split, and neither does padding; and a cache refuses what does not fit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.accounting import memory
from common.errors import UserError

LENGTH, BOUND = 8, 1e-12  # float64 rounding in sums of another order: 1e-14 here
CAPACITY = 10


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=BOUND * np.abs(want).max())


SHORT = 6  # tokens, so that JAX compiles few chunk lengths
CUTS = st.sets(st.integers(1, SHORT - 1)).map(sorted)


@settings(max_examples=8, deadline=None)
@example(cuts=[], seed=0)  # one shot
@example(cuts=list(range(1, SHORT)), seed=1)  # token by token
@example(cuts=[4], seed=2)  # a chunked prefill with a shorter last chunk
@given(cuts=CUTS, seed=st.integers(0, 99))
def test_any_split(cuts, seed, case, case_model, late):
    """Through a cache, in chunks of any lengths: the full forward's logits at every position."""
    ids, positions = late(case, 2, SHORT, seed)
    want = case_model("numpy", case).forward(ids, positions).logits
    for name in ("numpy", "torch", "jax"):
        model = case_model(name, case)
        cache = model.new_cache(2, CAPACITY)
        got = [model.extend(cache, ids[:, a:b], positions[:, a:b]) for a, b in pairwise([0, *cuts, SHORT])]
        assert (cache.used, cache.capacity) == (SHORT, CAPACITY)
        close(np.concatenate(got, axis=1), want)
        close(model.forward(ids, positions).logits, want)


@settings(max_examples=8, deadline=None)
@example(slots=[set(range(SHORT - 3, SHORT)), set(range(SHORT))], split=4, filler=1, seed=0)  # padding on the left
@example(slots=[set(range(3)), set(range(SHORT))], split=3, filler=1, seed=0)  # on the right
@example(slots=[{5}, set()], split=3, filler=0, seed=0)  # a row of nothing but padding
@given(
    slots=st.lists(st.sets(st.integers(0, SHORT - 1)), min_size=2, max_size=2),
    split=st.sampled_from([3, 4]),
    filler=st.integers(0, 18),
    seed=st.integers(0, 99),
)
def test_a_padded_batch_equals_its_rows(slots, split, filler, seed, case, case_model, late):
    """Rows padded anywhere, in one forward and through a cache in two parts, equal each row alone.

    What stands in the padding changes no bit.
    """
    tokens, places = late(case, 2, SHORT, seed)
    ids, positions = np.zeros((2, SHORT), np.int32), np.full((2, SHORT), -1, np.int32)
    for row, where in enumerate(map(sorted, slots)):
        ids[row, where], positions[row, where] = tokens[row, : len(where)], places[row, : len(where)]
    alone = [
        case_model("numpy", case).forward(tokens[[row], : len(w)], places[[row], : len(w)]).logits[0] if w else None
        for row, w in enumerate(slots)
    ]
    for name in ("numpy", "torch", "jax"):
        model = case_model(name, case)
        whole = model.forward(ids, positions).logits
        cache = model.new_cache(2, CAPACITY)
        parts = [model.extend(cache, ids[:, p], positions[:, p]) for p in (slice(split), slice(split, SHORT))]
        other = model.forward(np.where(positions < 0, filler % case.config.vocab_size, ids), positions).logits
        np.testing.assert_array_equal(other[positions >= 0], whole[positions >= 0])
        for got in (whole, np.concatenate(parts, axis=1)):
            assert np.isfinite(got).all()
            for row, where in enumerate(map(sorted, slots)):
                if where:
                    close(got[row, where], alone[row])


def test_a_write_past_the_end_is_refused_and_the_cache_lives_on(model_of, tokens, name):
    """Also: the last slot can be used, one more cannot."""
    model, ids = model_of(name), tokens(2, 10)
    cache = model.new_cache(2, CAPACITY)
    parts = [model.extend(cache, ids[:, :7])]
    with pytest.raises(UserError, match="holds 7 of 10 tokens; 4 more do not fit"):
        model.extend(cache, ids[:, :4])
    assert cache.used == 7
    parts += [model.extend(cache, ids[:, 7:9]), model.extend(cache, ids[:, 9:])]
    close(np.concatenate(parts, axis=1), model.forward(ids).logits)
    with pytest.raises(UserError, match="holds 10 of 10"):
        model.extend(cache, ids[:, :1])


def test_a_position_past_the_context_is_refused_and_the_cache_lives_on(model_of, tokens, name, small):
    model, ids = model_of(name), tokens(1, small.context_length)
    cache = model.new_cache(1, small.context_length + 5)
    first = model.extend(cache, ids[:, :-1])
    with pytest.raises(UserError, match="context of 24"):
        model.extend(cache, ids[:, :2])
    last = model.extend(cache, ids[:, -1:])
    close(np.concatenate([first, last], axis=1), model.forward(ids).logits)


def test_a_batch_of_another_size_is_refused_and_the_cache_lives_on(model_of, tokens, name):
    """A cache of two rows takes two rows: one would be spread over both, three would not fit."""
    model, ids = model_of(name), tokens(3, LENGTH)
    cache = model.new_cache(2, CAPACITY)
    first = model.extend(cache, ids[:2, :5])
    for rows in (1, 3):
        with pytest.raises(UserError, match="2 rows"):
            model.extend(cache, ids[:rows, 5:])
    rest = model.extend(cache, ids[:2, 5:])
    close(np.concatenate([first, rest], axis=1), model.forward(ids[:2]).logits)


def test_two_caches_do_not_know_each_other(model_of, tokens, name):
    model, ids = model_of(name), tokens(4, LENGTH)
    one, two = model.new_cache(2, CAPACITY), model.new_cache(2, CAPACITY)
    got = [[], []]
    for part in (slice(0, 5), slice(5, LENGTH)):
        got[0].append(model.extend(one, ids[:2, part]))
        got[1].append(model.extend(two, ids[2:, part]))
    close(np.concatenate(got[0], axis=1), model.forward(ids[:2]).logits)
    close(np.concatenate(got[1], axis=1), model.forward(ids[2:]).logits)


OFFERED = [("numpy", "float64"), *((wing, d) for wing in ("torch", "jax") for d in memory.ITEM_BYTES)]


@pytest.mark.parametrize(("name", "dtype"), OFFERED)
def test_bytes_are_those_of_the_closed_form(model_of, small, name, dtype):
    cache = model_of(name, dtype=dtype).new_cache(3, CAPACITY)
    assert cache.nbytes == memory.kv_cache(small, 3, CAPACITY, dtype)
    layers, keys_and_values, width = 2, 2, 32
    size = {"float32": 4, "float64": 8, "bfloat16": 2}[dtype]
    assert cache.nbytes == layers * keys_and_values * 3 * CAPACITY * width * size
