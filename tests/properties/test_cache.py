"""A KV cache changes nothing, in any split, and neither does padding; and a cache refuses what does not fit."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import backend
from common.accounting import memory
from common.cases import CASES
from common.errors import UserError

LENGTH, BOUND = 8, 1e-12  # float64 rounding in sums of another order: 1e-14 here
CAPACITY = 10
# whose padding others stand for
ALIKE = ("muon", "dora", "dpo", "balance", "classifier", "untied", "wide", "long", "sharing")


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=BOUND * np.abs(want).max())


SHORT = 6  # tokens, so that JAX compiles few chunk lengths
CUTS = st.sets(st.integers(1, SHORT - 1)).map(sorted)


@pytest.fixture(params=["few", pytest.param("any", marks=pytest.mark.full)], scope="module")
def lengths(request):
    """Lengths of parts that JAX, which compiles each of them, takes: few (but any split of the first model), or any."""
    return request.param


@pytest.mark.full_for(
    "untied",
    "dropout",
    "wide",
    "balance",
    "long",
    "experts",
    "today",
    "muon",
    "sharing",
    "gpt_dora-few",
    "gpt_dpo-few",
    "gpt_classifier-few",
)
@settings(max_examples=8, deadline=None)
@example(cuts=[], seed=0)  # one shot
@example(cuts=list(range(1, SHORT)), seed=1)  # token by token
@example(cuts=[4], seed=2)  # a chunked prefill with a shorter last chunk
@given(cuts=CUTS, seed=st.integers(0, 99))
def test_any_split(cuts, seed, causal_case, case_model, late, lengths):
    """Through a cache, in chunks of any lengths: the full forward's logits at every position. Few lengths are halves,
    and single tokens in place of what has many cuts.
    """
    ids, positions = late(causal_case, 2, SHORT, seed)
    want = case_model("numpy", causal_case).forward(ids, positions).logits
    few = list(range(1, SHORT)) if len(cuts) > 2 else [SHORT // 2]
    for name in ("numpy", "torch", "jax"):
        model = case_model(name, causal_case)
        own = few if (name, lengths) == ("jax", "few") and causal_case.name != "gpt" else cuts
        cache = model.new_cache(2, CAPACITY)
        got = [model.extend(cache, ids[:, a:b], positions[:, a:b]) for a, b in pairwise([0, *own, SHORT])]
        assert (cache.used, cache.capacity) == (SHORT, CAPACITY)
        close(np.concatenate(got, axis=1), want)
        close(model.forward(ids, positions).logits, want)


@pytest.mark.full_for(*(f"gpt_{name}-few" for name in ALIKE))
@settings(max_examples=8, deadline=None)
@example(slots=[set(range(SHORT - 4, SHORT)), set(range(SHORT))], split=4, filler=1, seed=0)  # padding on the left
@example(slots=[set(range(3)), set(range(SHORT))], split=3, filler=1, seed=0)  # on the right
@example(slots=[{5}, set()], split=3, filler=0, seed=0)  # a row of nothing but padding
@given(
    slots=st.lists(st.sets(st.integers(0, SHORT - 1)), min_size=2, max_size=2),
    split=st.sampled_from([3, 4]),
    filler=st.integers(0, 18),
    seed=st.integers(0, 99),
)
def test_a_padded_batch_equals_its_rows(slots, split, filler, seed, causal_case, case_model, row_by_row, late, lengths):
    """Rows padded anywhere, in one forward and through a cache in two parts, equal each row alone.

    What stands in the padding changes no bit. Few lengths are halves.
    """
    tokens, places = late(causal_case, 2, SHORT, seed)
    ids, positions = np.zeros((2, SHORT), np.int32), np.full((2, SHORT), -1, np.int32)
    for row, where in enumerate(map(sorted, slots)):
        ids[row, where], positions[row, where] = tokens[row, : len(where)], places[row, : len(where)]
    alone = [
        case_model("numpy", causal_case).forward(tokens[[row], : len(w)], places[[row], : len(w)]).logits[0]
        if w
        else None
        for row, w in enumerate(slots)
    ]
    for name in ("numpy", "torch", "jax"):
        model = case_model(name, causal_case, **row_by_row(name, causal_case))
        whole = model.forward(ids, positions).logits
        cache = model.new_cache(2, CAPACITY)
        at = SHORT // 2 if (name, lengths) == ("jax", "few") else split
        parts = [model.extend(cache, ids[:, p], positions[:, p]) for p in (slice(at), slice(at, SHORT))]
        other = model.forward(np.where(positions < 0, filler % causal_case.config.vocab_size, ids), positions).logits
        np.testing.assert_array_equal(other[positions >= 0], whole[positions >= 0])
        for got in (whole, np.concatenate(parts, axis=1)):
            assert np.isfinite(got).all()
            for row, where in enumerate(map(sorted, slots)):
                if where:
                    close(got[row, where], alone[row])


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


def test_a_cache_of_another_model_is_refused_and_lives_on(model_of, tokens, name, small):
    """Of other layers; a model of the same config may go on with it."""
    model, ids = model_of(name), tokens(2, LENGTH)
    cache = model.new_cache(2, CAPACITY)
    first = model.extend(cache, ids[:, :5])
    with pytest.raises(UserError, match="another config, which differs in num_layers"):
        model_of(name, small.with_(num_layers=1)).extend(cache, ids[:, 5:])
    with pytest.raises(UserError, match="another config, which differs in num_layers"):
        model_of(name, small.with_(num_layers=1)).reset(cache)
    with pytest.raises(UserError, match="another config, which differs in context_length"):  # not that ids are too many
        model_of(name, small.with_(context_length=6)).extend(cache, ids[:, 5:])
    for other in (None, [1, 2]):
        for use in (lambda found: model.extend(found, ids[:, 5:]), model.reset):
            with pytest.raises(UserError, match=f"A cache is what `new_cache` .* gives, not {type(other).__name__}"):
                use(other)
    close(np.concatenate([first, model.extend(cache, ids[:, 5:])], axis=1), model.forward(ids).logits)


def in_parts(model, cache, ids, positions, cuts=(0, 4, 6, CAPACITY)):
    return np.concatenate([model.extend(cache, ids[:, a:b], positions[:, a:b]) for a, b in pairwise(cuts)], axis=1)


OTHERS = ("balance", "sharing", "experts", "sparse", "latent", "wide", "untied", "dropout", "muon", "long")
OF_JAX = (*(f"{name}-jax" for name in OTHERS), "gpt_lora-jax", "gpt_classifier-jax", "gpt_dpo-jax")


@pytest.mark.full_for(*OF_JAX)  # what is kept, rings and states stay
def test_what_does_not_fit_is_refused_and_the_cache_lives_on(causal_case, case_model, late, name):
    """Into the slots, or into the context: filled past its windows, a cache refuses it, and goes on as if nothing had
    been asked. The last slot can be used, one more cannot.
    """
    model, (ids, positions) = case_model(name, causal_case), late(causal_case, 2, CAPACITY)
    cache = model.new_cache(2, CAPACITY)
    parts = [in_parts(model, cache, ids, positions, (0, 4, 6))]
    with pytest.raises(UserError, match="holds 6 of 10 tokens; 5 more do not fit"):
        model.extend(cache, ids[::-1, 5:], positions[:, 5:])
    with pytest.raises(UserError, match=f"do not fit in the context of {causal_case.config.context_length}"):
        model.extend(cache, ids[::-1, 6:], positions[:, 6:] + 1)
    assert (cache.used, cache.capacity) == (6, CAPACITY)
    parts.append(model.extend(cache, ids[:, 6:], positions[:, 6:]))
    close(np.concatenate(parts, axis=1), case_model("numpy", causal_case).forward(ids, positions).logits)
    with pytest.raises(UserError, match="holds 10 of 10 tokens; 1 more do not fit"):
        model.extend(cache, ids[:, :1])


@pytest.mark.full_for(*OF_JAX)
def test_after_a_reset_a_cache_is_as_new(causal_case, case_model, late, name):
    """To the bit, after it was filled with another text, and rings went round."""
    model, (ids, positions) = case_model(name, causal_case), late(causal_case, 2, CAPACITY)
    fresh, used = model.new_cache(2, CAPACITY), model.new_cache(2, CAPACITY)
    in_parts(model, used, ids[::-1], positions)
    with pytest.raises(UserError, match="holds 10 of 10"):
        model.extend(used, ids[:, :1])
    model.reset(used)
    for stage in ("empty", "used"):
        assert used.used == fresh.used
        want, got = model.cache_contents(fresh), model.cache_contents(used)
        assert want.keys() == got.keys()
        for what in want:
            np.testing.assert_array_equal(got[what], want[what], err_msg=f"{stage}: {what}")
        if stage == "empty":
            logits = [in_parts(model, cache, ids, positions) for cache in (used, fresh)]
            np.testing.assert_array_equal(*logits)


def test_a_reset_takes_no_memory_of_its_own(model_of, tokens, wing):
    """PyTorch writes in place; JAX hands the donated buffers on."""
    model = model_of(wing)
    cache = model.new_cache(2, CAPACITY)
    model.extend(cache, tokens(2, LENGTH))
    places = [place(value) for layer in cache.layers for value in (layer.keys_BHSD, layer.values_BHSD)]
    model.reset(cache)
    after = [place(value) for layer in cache.layers for value in (layer.keys_BHSD, layer.values_BHSD)]
    assert sorted(after) == sorted(places)


def place(array):
    return array.data_ptr() if hasattr(array, "data_ptr") else array.unsafe_buffer_pointer()


WINDOWS = [
    name
    for name, case in CASES.items()
    if not case.path and any(entry.window is not None for entry in case.config.attention)
]
GAPS = np.array([[-1, -1, 0, 1, 2, 7, 8, 9, 12, 15], [0, 1, 2, 3, 8, -1, 10, 11, 14, 15]], np.int32)


@pytest.mark.full_for("jax-2-gpt_sharing", "jax-2-gpt_balance", "jax-10-gpt_sharing", "jax-10-gpt_balance")
@pytest.mark.parametrize("case_name", WINDOWS)
@pytest.mark.parametrize("slots", [CAPACITY, 2])
def test_positions_may_jump(case_model, late, name, case_name, slots):
    """Padding on the left and positions that are left out: in a ring, and in a cache shorter than the window, which is
    none, since two visible keys would lie in one slot."""
    case = CASES[case_name]
    ids, _ = late(case, 2, CAPACITY)
    cuts, positions = ([0, 4, 6, CAPACITY], GAPS) if slots == CAPACITY else ([0, 1, 2], np.array([[0, 2], [1, 3]]))
    ids = ids[:, : cuts[-1]]
    want = case_model("numpy", case).forward(ids, positions).logits
    model = case_model(name, case)
    got = in_parts(model, model.new_cache(2, slots), ids, positions, cuts)
    close(got[positions >= 0], want[positions >= 0])


@pytest.mark.parametrize("again", [[8, 9], [7, 8], [9, 9], [-1, 3]])
def test_a_ring_refuses_positions_that_do_not_rise_and_lives_on(case_model, late, name, again):
    """It holds the latest ones only: a query further back would miss what it has to see."""
    case = CASES[WINDOWS[0]]
    (ids, _), model = late(case, 2, 6), case_model(name, case)
    cache, positions = model.new_cache(2, CAPACITY), np.array([[0, 1, 2, 3, 4, 5], [0, 1, 4, 8, 9, 13]])
    first = model.extend(cache, ids[:, :4], positions[:, :4])
    with pytest.raises(UserError, match=r"Position \d of row 1 comes after position \d; .* must rise in every row"):
        model.extend(cache, ids[:, 4:], np.array([[4, 5], again]))
    got = np.concatenate([first, model.extend(cache, ids[:, 4:], positions[:, 4:])], axis=1)
    close(got, case_model("numpy", case).forward(ids, positions).logits)


MADE = ("numpy-float64", "torch-float64", "torch-bfloat16", "jax-float64", "jax-float32")


@pytest.mark.parametrize("case_name", ["gpt", "gpt_hybrid"])
@pytest.mark.parametrize(("made", "other"), [pair for pair in permutations(MADE, 2) if "float64" in pair[0]])
def test_a_cache_made_otherwise_is_refused_and_lives_on(case_model, late, case_name, made, other):
    """By another implementation, or in another precision: states would be taken over silently."""
    case, (name, _), (maker, dtype) = CASES[case_name], made.split("-"), other.split("-")
    mine, theirs = case_model(name, case), case_model(maker, case, dtype)
    (ids, positions), cache = late(case, 2, SHORT), mine.new_cache(2, CAPACITY)
    first = mine.extend(cache, ids[:, :4], positions[:, :4])
    made, own = (f"{backend.load(n).title} in {d} on cpu" for n, d in ((name, "float64"), (maker, dtype)))
    for refused in (lambda: theirs.extend(cache, ids[:, 4:], positions[:, 4:]), lambda: theirs.reset(cache)):
        with pytest.raises(UserError, match=f"^The cache was made by {made}; {own} cannot go on with it.$"):
            refused()
    got = np.concatenate([first, mine.extend(cache, ids[:, 4:], positions[:, 4:])], axis=1)
    close(got, mine.forward(ids, positions).logits)


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
