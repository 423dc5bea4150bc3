"""A KV cache changes nothing: every split, every chunk, padded batches; and it refuses what does not fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.accounting import memory
from common.decoding import padded
from common.errors import UserError

LENGTH, BOUND = 8, 1e-12  # float64 rounding in sums of another order: 1e-14 here
CAPACITY = 10


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=BOUND * np.abs(want).max())


@pytest.mark.parametrize("split", range(1, LENGTH))
def test_every_split(model_of, tokens, name, split):
    """Prefill `split` tokens, then the rest at once: the full forward's logits at every position."""
    model, ids = model_of(name), tokens(2, LENGTH)
    cache = model.new_cache(2, CAPACITY)
    got = [model.extend(cache, ids[:, :split]), model.extend(cache, ids[:, split:])]
    assert (cache.used, cache.capacity) == (LENGTH, CAPACITY)
    close(np.concatenate(got, axis=1), model.forward(ids).logits)


@pytest.mark.parametrize("chunk", range(1, LENGTH + 1))
def test_every_chunk_length(model_of, tokens, name, chunk):
    """Chunk 1 is token by token; most lengths leave a shorter last chunk."""
    model, ids = model_of(name), tokens(2, LENGTH)
    cache = model.new_cache(2, CAPACITY)
    got = [model.extend(cache, ids[:, s : s + chunk]) for s in range(0, LENGTH, chunk)]
    close(np.concatenate(got, axis=1), model.forward(ids).logits)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_ragged_batch_equals_its_rows(data, model_of, small):
    """Rows padded on the left, in one forward and through a cache in two parts, equal each row alone."""
    lengths = data.draw(st.lists(st.integers(1, LENGTH), min_size=2, max_size=2), label="lengths")
    split = data.draw(st.sampled_from([3, 5]), label="split")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    rows = [rng.integers(0, small.vocab_size, n).tolist() for n in lengths]
    ids, positions = padded(rows, LENGTH)
    for name in ("numpy", "torch", "jax"):
        model = model_of(name)
        whole = model.forward(ids, positions).logits
        cache = model.new_cache(2, CAPACITY)
        parts = [model.extend(cache, ids[:, p], positions[:, p]) for p in (slice(split), slice(split, LENGTH))]
        for got in (whole, np.concatenate(parts, axis=1)):
            assert np.isfinite(got).all()
            for row, tokens in enumerate(rows):
                alone = model_of("numpy").forward(np.array([tokens])).logits[0]
                close(got[row, LENGTH - len(tokens) :], alone)


@pytest.mark.parametrize("width", [8, 11])
def test_padding_may_hold_any_token(model_of, tokens, name, width):
    """What stands in the padding, and how much of it there is, changes nothing."""
    model, row = model_of(name), tokens(1, 5)
    ids, positions = padded(row.tolist(), width)
    want = model.forward(row).logits
    for filler in (0, 60):
        other = np.where(positions < 0, filler, ids)
        close(model.forward(other, positions).logits[:, width - 5 :], want)


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
