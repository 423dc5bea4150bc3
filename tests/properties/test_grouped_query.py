"""What is known of grouped-query attention, windows, rotary positions, sharing: identities and published numbers."""

import math

import numpy as np
import pytest

from common import params
from common.accounting import memory
from common.config import GPTConfig
from common.errors import UserError
from common.variants import GroupedQuery, rotary
from common.variants.rotary import Rotary

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims

BOUND = 1e-12  # float64 rounding in sums of another order: 1e-14 here
HEADS = GPTConfig(23, 96, 16, 2, 4, ff_dim=12, tie_embeddings=False)
TURNED = GroupedQuery(2, head_dim=6, rotary=Rotary(base=300.0, fraction=0.7), qk_norm="head")


def close(got, want, bound=BOUND):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


def ids_of(config, rows=2, length=None, seed=1):
    shape = (rows, length or config.context_length)
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


def with_(entry, **changes):
    return HEADS.with_(attention=entry, **changes)


# --- identities -------------------------------------------------------------------------------------------------------


def test_as_many_groups_as_heads_are_multi_head_attention(fresh_model, name):
    """On the same parameters; a query-key bias is dead in both."""
    grouped = with_(GroupedQuery(4, out_bias=True))
    weights, ids = params.randomise(HEADS, 3), ids_of(HEADS)
    assert list(params.table(grouped)) == list(params.table(HEADS))
    want = fresh_model(name, HEADS, weights=weights).forward(ids).logits
    close(fresh_model(name, grouped, weights=weights).forward(ids).logits, want)


def test_groups_are_heads_whose_keys_are_repeated(fresh_model, name):
    """Query head h reads key head h K / H: the same as multi-head attention with those keys written out."""
    few, many = with_(GroupedQuery(2)), with_(GroupedQuery(4))
    weights = params.randomise(few, 3)
    repeated = dict(weights)
    for key in [key for key in weights if "k_proj" in key or "v_proj" in key]:
        twice = [part for part in np.split(weights[key], 2) for _ in range(2)]
        repeated[key] = np.concatenate(twice)
    want = fresh_model(name, few, weights=weights).forward(ids_of(HEADS)).logits
    close(fresh_model(name, many, weights=repeated).forward(ids_of(HEADS)).logits, want)


@pytest.mark.parametrize("groups", [2, 4])
def test_one_group_is_groups_that_are_equal(fresh_model, name, groups):
    """Multi-query attention, with all that is done to its keys: the same as groups with the weights of the one."""
    one = TURNED.with_(num_kv_heads=1)
    few, many = with_(one), with_(one.with_(num_kv_heads=groups))
    weights = params.randomise(few, 4)
    there = {key for key in weights if "k_proj" in key or "v_proj" in key}
    repeated = {key: np.concatenate([w] * groups) if key in there else w for key, w in weights.items()}
    want = fresh_model(name, few, weights=weights).forward(ids_of(HEADS)).logits
    close(fresh_model(name, many, weights=repeated).forward(ids_of(HEADS)).logits, want)


def test_sharing_among_layers_that_all_produce_is_no_sharing(fresh_model, name):
    """Every layer hands its keys on, as the pattern says, and no layer that would read them is in the model."""
    local = TURNED.with_(window=9)
    alone, shared = with_((local, TURNED)), with_((local, TURNED, local.with_(shares=True)))
    assert [one.hands_on(shared) for one in shared.attention] == [True] * 3
    assert list(params.table(shared)) == list(params.table(alone))
    weights, ids = params.randomise(alone, 3), ids_of(HEADS)
    want = fresh_model(name, alone, weights=weights).forward(ids).logits
    np.testing.assert_array_equal(fresh_model(name, shared, weights=weights).forward(ids).logits, want)


def test_sharing_equals_making_the_same_keys_again(fresh_model, name):
    """The first block adds nothing, so the second one's input is its own: with its weights it makes the same keys."""
    alone, shared = with_(TURNED), with_((TURNED, TURNED.with_(shares=True)))
    weights, ids = params.randomise(alone, 3), ids_of(HEADS)
    first, second = "model.layers.0.", "model.layers.1."
    for key in [key for key in weights if key.startswith(first)]:
        if "o_proj" in key or "down_proj" in key:
            weights[key] = np.zeros_like(weights[key])
        if "input_layernorm" in key or ".k_" in key or ".v_" in key:
            weights[key.replace(first, second)] = weights[key]
    fewer = {key: weights[key] for key in params.table(shared)}
    assert len(weights) - len(fewer) == 5  # k and v with biases, and the norm of k
    want = fresh_model(name, alone, weights=weights).forward(ids).logits
    close(fresh_model(name, shared, weights=fewer).forward(ids).logits, want)


@pytest.mark.parametrize("window", [96, 500])
def test_a_window_as_long_as_the_text_hides_nothing(model_of, name, window):
    ids = ids_of(HEADS)
    want = model_of(name, with_(TURNED)).forward(ids).logits
    close(model_of(name, with_(TURNED.with_(window=window))).forward(ids).logits, want)
    other = model_of(name, with_(TURNED.with_(window=95))).forward(ids).logits
    close(other[:, :95], want[:, :95])
    assert np.abs(other[:, 95] - want[:, 95]).max() > 1e-6


@pytest.mark.full_for("jax-2147", "jax-1099")
@pytest.mark.parametrize("window", [2**31 - 1, 2**31, 2**32 + 3, 2**40])
def test_a_window_longer_than_32_bits_hides_nothing(model_of, name, window):
    """Whoever held it in 32 bits would see none, or three keys."""
    config, ids = with_(TURNED), ids_of(HEADS, length=12)
    want, model = model_of("numpy", config).forward(ids).logits, model_of(name, with_(TURNED.with_(window=window)))
    cache = model.new_cache(2, 12)
    close(np.concatenate([model.extend(cache, ids[:, :6]), model.extend(cache, ids[:, 6:])], axis=1), want)


@pytest.mark.parametrize("scaling", ["linear", "llama3", "yarn"])
def test_rotary_positions_stretched_by_one_are_plain(scaling):
    plain, other = Rotary(base=500.0), Rotary(base=500.0, scaling=scaling, factor=1.0)
    np.testing.assert_allclose(other.frequencies(32), plain.frequencies(32), rtol=1e-15)
    assert other.amplitude == 1


def test_scores_of_rotary_positions_depend_on_distances_alone(model_of, name):
    """Without other positions: the same text 17 places later."""
    config, ids = with_(TURNED, positions="none"), ids_of(HEADS, 1, 40)
    at = np.arange(40, dtype=np.int32)[None]
    model = model_of(name, config)
    close(model.forward(ids, at + 17).logits, model.forward(ids, at).logits, 1e-11)


def test_pairs_side_by_side_become_pairs_half_a_width_apart():
    """Rows that are sorted back are the same; and what turns is what Su et al. 2021 turn, side by side."""
    heads, dim, width, length = 3, 10, 6, 7
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(heads * dim, 5)), rng.normal(size=(length, 5))
    ours = rotary.interleaved_to_halves(weight, dim, width)
    np.testing.assert_array_equal(rotary.halves_to_interleaved(ours, dim, width), weight)
    cosines, sines = rotary.table(Rotary(base=100.0, fraction=0.6), dim, length)
    theirs = (x @ weight.T).reshape(length, heads, dim)
    pairs = theirs[..., :width].reshape(length, heads, width // 2, 2)
    matrices = np.moveaxis(np.array([[cosines, -sines], [sines, cosines]]), (0, 1), (2, 3))
    turned = np.einsum("thpc,tpdc->thpd", pairs, matrices)
    mine = (x @ ours.T).reshape(length, heads, dim)
    first, second = mine[..., : width // 2], mine[..., width // 2 : width]
    c, s = cosines[:, None], sines[:, None]
    both = np.stack([first * c - second * s, second * c + first * s], -1)
    np.testing.assert_allclose(both, turned, atol=1e-12)
    np.testing.assert_allclose(mine[..., width:], theirs[..., width:], atol=1e-12)


def test_a_layer_that_shares_reads_what_the_latest_maker_made(fresh_model, name):
    """Here by hand: the second layer's weights are those of its own queries with the first one's keys."""
    maker = GroupedQuery(2, window=9, rotary=Rotary(base=100.0))
    config = HEADS.with_(attention=(maker, maker.with_(shares=True)), positions="none")
    names = [key for key in params.table(config) if key.startswith("model.layers.1.self_attn.")]
    assert [key.split(".")[4] for key in names if key.endswith("weight")] == ["q_proj", "o_proj"]
    weights, ids = params.randomise(config, 5), ids_of(config)
    model = fresh_model(name, config, weights=weights)
    taps = model.forward(ids, taps=("model.layers.*.self_attn.*",)).taps
    assert "model.layers.1.self_attn.k" not in taps
    q, k, v = (taps[f"model.layers.{i}.self_attn.{what}"] for i, what in ((1, "turned_q"), (0, "turned_k"), (0, "v")))
    k, v = np.repeat(k, 2, 1), np.repeat(v, 2, 1)
    scores = q @ np.swapaxes(k, 2, 3) / math.sqrt(q.shape[-1])
    far = np.arange(ids.shape[1])[:, None] - np.arange(ids.shape[1])
    scores = np.where((far >= 0) & (far < 9), scores, -np.inf)
    weights_ = np.exp(scores - scores.max(-1, keepdims=True))
    close(taps["model.layers.1.self_attn.weights"], weights_ / weights_.sum(-1, keepdims=True), 1e-11)


PLAIN = GroupedQuery(2)
SHARERS = {  # what a layer may do with the keys of another, and whether it reads what they share
    "plain": ({}, False),
    "normed": ({"qk_norm": "head"}, False),
    "alibi": ({"alibi": True}, False),
    "gate": ({"gate": True, "scale": 0.3}, False),
    "softcap": ({"softcap": 2.0}, True),
    "sinks": ({"sinks": True}, True),
}


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("sharer", SHARERS)
def test_a_dead_bias_is_one_without_gradient(fresh_model, wing, sharer):
    """Of two makers the second one's keys are shared, by a plain layer and by another, and one more has a window."""
    changes, read = SHARERS[sharer]
    other, local = PLAIN.with_(shares=True, **changes), PLAIN.with_(window=3)
    config = HEADS.with_(
        num_layers=6,
        context_length=12,
        attention=(PLAIN, PLAIN, local, PLAIN.with_(shares=True), other, local.with_(shares=True)),
    )
    table, ids = params.table(config), ids_of(config, 2, 12)
    grads = fresh_model(wing, config).gradients(ids[:, :-1], ids[:, 1:]).grads
    largest = max(np.abs(grad).max() for grad in grads.values())
    # rounding leaves some 1e-18 of the largest gradient here, the least of the others is 1e-4 of it
    assert {key for key in table if np.abs(grads[key]).max() < 1e-12 * largest} == {
        key for key, parameter in table.items() if parameter.dead
    }
    dead = {int(key.split(".")[2]) for key, parameter in table.items() if parameter.dead}
    assert dead == ({0, 2} if read else {0, 1, 2})


LONG = HEADS.with_(context_length=3000, attention=(TURNED, TURNED.with_(window=5)), positions="none")


@pytest.mark.parametrize("layers", ["loop", pytest.param("scan", marks=pytest.mark.full)])
@pytest.mark.parametrize("task", ["forward", "gradients", "decode"])
def test_a_program_has_one_table_however_many_layers(model_of, task, layers):
    """Of JAX: cosines and sines, in the precision of reductions, for queries and keys of all layers."""
    found = {}
    for count in (2, 6):
        model = model_of("jax", LONG.with_(num_layers=count), "float32", layers=layers)
        with model.scope():
            program, *args = model._counted(task, 1, 4, "", None)
            found[count] = [one.nbytes for one in program.trace(*args).jaxpr.consts if one.nbytes > 1000]
    assert found[2] == found[6] == [LONG.context_length * 2 * 4] * 2


def test_all_layers_hold_one_table(model_of):
    """Of PyTorch: one pair of tensors, that of the host's memory on a CPU, and none of them among the weights."""
    model = model_of("torch", LONG.with_(num_layers=6), "float32")
    turns = [layer.self_attn.turn for layer in model.net.model.layers]
    assert len({(turn.cosines_PR.data_ptr(), turn.sines_PR.data_ptr()) for turn in turns}) == 1
    cosines, _ = rotary.table(TURNED.rotary, 6, LONG.context_length, "float32")
    assert turns[0].cosines_PR.data_ptr() == cosines.ctypes.data
    assert list(model.net.state_dict()) == list(params.table(model.config))


# --- caches -----------------------------------------------------------------------------------------------------------

RING = HEADS.with_(attention=(TURNED.with_(window=5, sinks=True), TURNED.with_(alibi=True)), positions="none")


@pytest.mark.full_for("jax-1", "jax-6")
@pytest.mark.parametrize("parts", [[96], [30, 30, 36], [1] * 96, [7, 1, 1, 13, 1, 73]], ids=len)
def test_a_ring_that_goes_round_many_times(model_of, name, parts):
    """Chunks longer than the window, and single tokens, equal the full forward at every position."""
    model, ids = model_of(name, RING), ids_of(RING)
    cache, at, got = model.new_cache(2, 96), 0, []
    for part in parts:
        got.append(model.extend(cache, ids[:, at : at + part]))
        at += part
    close(np.concatenate(got, axis=1), model.forward(ids).logits)
    assert model.cache_contents(cache)["layers.0.keys"].shape == (2, 2, 5, 6)


def test_a_cache_shorter_than_the_window_keeps_all(model_of, name):
    """Positions 2 and 10 would lie in one slot of eight, and 10 sees 2."""
    config = HEADS.with_(attention=TURNED.with_(window=20))
    ids, positions = ids_of(HEADS, length=6), np.tile(np.array([0, 1, 2, 10, 11, 12]), (2, 1))
    model = model_of(name, config)
    cache = model.new_cache(2, 8)
    got = [model.extend(cache, ids[:, p], positions[:, p]) for p in (slice(3), slice(3, 6))]
    close(np.concatenate(got, axis=1), model_of("numpy", config).forward(ids, positions).logits)
    assert cache.nbytes == memory.kv_cache(config, 2, 8, "float64")


@pytest.mark.full_for("jax")
def test_a_refused_chunk_leaves_a_ring_as_it_was(model_of, name):
    model, ids = model_of(name, RING), ids_of(RING)
    cache = model.new_cache(2, 20)
    first = model.extend(cache, ids[:, :18])
    with pytest.raises(UserError, match="holds 18 of 20"):
        model.extend(cache, ids[:, 18:21])
    close(np.concatenate([first, model.extend(cache, ids[:, 18:20])], axis=1), model.forward(ids[:, :20]).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_hold_what_the_closed_form_says(model_of, wing, dtype):
    """A ring no more than its window; a layer that shares nothing."""
    shared = HEADS.with_(num_layers=4, attention=(*RING.attention, *(e.with_(shares=True) for e in RING.attention)))
    for config in (RING, shared):
        cache = model_of(wing, config, dtype).new_cache(3, 40)
        assert cache.nbytes == memory.kv_cache(config, 3, 40, dtype)
        assert cache.nbytes == 2 * 3 * (5 + 40) * 2 * 6 * memory.ITEM_BYTES[dtype]


# --- published numbers ------------------------------------------------------------------------------------------------


def test_slopes_are_those_of_the_paper():
    """Press et al. 2022, section 3: eight heads 1/2 … 1/256, sixteen from 2^-0.5; else those between."""
    for module in ("common.oracle", "torch_impl", "jax_impl"):
        slopes = __import__(f"{module}.positions", fromlist=["x"]).alibi_slopes
        np.testing.assert_allclose(slopes(8), [2.0**-i for i in range(1, 9)])
        np.testing.assert_allclose(slopes(16), [2.0 ** (-i / 2) for i in range(1, 17)])
        np.testing.assert_allclose(slopes(6), [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])


def test_long_positions_keep_their_digits():
    """Angles are made in float64: position 100,000 turns by what it should, to 1e-10."""
    cosines, sines = rotary.table(Rotary(base=10_000.0), 64, 100_001)
    for pair in (0, 7, 31):
        angle = 100_000 * 10_000.0 ** (-2 * pair / 64)
        assert cosines[100_000, pair] == pytest.approx(math.cos(angle), abs=1e-9)
        assert sines[100_000, pair] == pytest.approx(math.sin(angle), abs=1e-9)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_kv_heads": 3}, "a divisor of num_heads"),
        ({"window": 0}, "window is 0"),
        ({"window": 2.5}, "window is 2.5"),
        ({"head_dim": 3, "rotary": Rotary()}, "heads of size 3 are odd"),
        ({"qk_norm": "heads"}, "did you mean 'head'"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"shares": True}, "no layer before it makes them"),
    ],
)
def test_what_a_layer_cannot_be(change, told):
    with pytest.raises(UserError, match=told):
        HEADS.with_(attention=GroupedQuery(2).with_(**change))


def test_a_layer_that_shares_other_heads_is_refused():
    maker = GroupedQuery(2)
    with pytest.raises(UserError, match="the heads of the layer that makes them"):
        HEADS.with_(attention=(maker, GroupedQuery(1, shares=True)))
    with pytest.raises(UserError, match="for a window of 4"):
        HEADS.with_(attention=(maker, GroupedQuery(2, window=4, shares=True)))
    own = maker.with_(rotary=Rotary(base=500.0))
    for turned in (Rotary(base=100.0), None):
        with pytest.raises(UserError, match="the rotary positions of the layer that makes them"):
            HEADS.with_(attention=(own, own.with_(shares=True, rotary=turned)))
    shared = maker.with_(shares=True)  # the second one reads what the third layer made
    with pytest.raises(UserError, match="the heads of the layer that makes them"):
        HEADS.with_(num_layers=4, attention=(maker, shared, GroupedQuery(4), shared))
    assert HEADS.with_(num_layers=1, attention=(maker, shared)).attention_of(0) == maker


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("group_query", "did you mean 'grouped_query'"),
        ([], "is empty"),
        ({"kind": "grouped_query", "windw": 3}, "windw"),
        (7, "7 is no kind of attention"),
    ],
)
def test_a_pattern_that_names_nothing(given, told):
    with pytest.raises(UserError, match=told):
        HEADS.with_(attention=given)


def test_another_kernel_is_refused(fresh_model, wing):
    for name, value in (("attention", "fused"), ("projections", "joined")):
        with pytest.raises(UserError, match=f"Grouped-query attention has no {name}='{value}'"):
            fresh_model(wing, with_(TURNED), "float32", **{name: value})
