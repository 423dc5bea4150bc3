"""Gated DeltaNet: three forms of one recurrence, its short convolution, and a cache that does not grow."""

from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest

from common import params
from common.accounting import estimate, flops
from common.config import Execution, GPTConfig
from common.errors import UserError
from common.variants import ATTENTIONS
from common.variants.gated_deltanet import GatedDeltaNet

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims

BOUND = 1e-12  # float64 rounding in sums of another order: 1e-15 to 1e-14 is reported for this recurrence
PACKAGES = {"numpy": "common.oracle", "torch": "torch_impl", "jax": "jax_impl"}
LENGTH = 70  # past a chunk of 64, and no multiple of one
ENTRY = GatedDeltaNet(num_key_heads=2, num_value_heads=4, key_dim=5, value_dim=6, kernel=4, out_bias=True)
DELTA = GPTConfig(
    61, 90, 16, 2, 2, ff_dim=20, tie_embeddings=False, attention=(ENTRY,), norm="rms_norm", positions="none"
)
CHANNELS = DELTA.with_(attention=(ENTRY.with_(beta="channel"),))
SIZES = {"float32": 4, "float64": 8, "bfloat16": 2}
WAYS = [("numpy", "recurrent"), *((wing, form) for wing in ("torch", "jax") for form in ("recurrent", "chunked"))]
BETAS = pytest.mark.parametrize("config", [DELTA, CHANNELS], ids=["head", "channel"])
FORMS = pytest.mark.parametrize(("name", "form"), WAYS)  # the oracle computes its model in one form


def close(got, want, bound=BOUND):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


def call(name, function, *arrays, **options):
    """A function of an implementation's file, on NumPy's arrays in float64."""
    module = import_module(f"{PACKAGES[name]}.attention.gated_deltanet")
    if name == "numpy":
        return getattr(module, function)(*arrays, **options)
    if name == "torch":
        import torch

        found = getattr(module, function)(*map(torch.from_numpy, arrays), **options)
        return [tensor.numpy() for tensor in found]
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        return [np.asarray(array) for array in getattr(module, function)(*map(jnp.asarray, arrays), **options)]


def mixed(name, x, weight, inputs, there):
    """`convolve`; the wings are told in which precision to sum."""
    import jax.numpy as jnp
    import torch

    reduce = {"numpy": {}, "torch": {"reduce": torch.float64}, "jax": {"reduce": jnp.float64}}[name]
    return call(name, "convolve", x, weight, inputs, there, **reduce)


def recurrence(length=LENGTH, beta=None, log_decay=None, same_keys=False, strengths=1, seed=0):
    """q, k, v, log decay, beta and a state that is not empty: 2 rows, 3 heads, keys of 4, values of 5 numbers; a beta
    for all of these, or for each."""
    draw = np.random.default_rng(seed)
    q, k = draw.standard_normal((2, 2, 3, length, 4))
    k = k[:, :, :1].repeat(length, 2) if same_keys else k
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    v, state = draw.standard_normal((2, 3, length, 5)), draw.standard_normal((2, 3, 4, 5))
    fade = -draw.exponential(0.3, (2, 3, length)) if log_decay is None else np.full((2, 3, length), log_decay)
    shape = 2, 3, length, strengths
    strength = draw.uniform(0, 1, shape) if beta is None else np.full(shape, beta)
    return q, k, v, fade, strength, state


EXTREMES = {
    "usual": {},
    "beta 0": {"beta": 0.0},
    "beta 1": {"beta": 1.0},
    "beta 1.99": {"beta": 1.99},
    "no decay": {"log_decay": 0.0},
    "decay e^-20": {"log_decay": -20.0},
    "decay e^-1000": {"log_decay": -1000.0},
    "one key": {"same_keys": True, "log_decay": 0.0},
    "one key, beta 1.99": {"same_keys": True, "beta": 1.99, "log_decay": 0.0},
    "channels": {"strengths": 5},
    "channels, one key": {"strengths": 5, "same_keys": True, "log_decay": 0.0},
    "channels, decay e^-1000": {"strengths": 5, "log_decay": -1000.0},
}


def chunked(kind):
    """The chunked form that such tokens need."""
    return "chunked_channels_rule" if "strengths" in EXTREMES[kind] else "chunked_rule"


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strengths", [1, 5])
def test_the_rule_is_that_of_the_paper(name, strengths):
    """S = decay (1 - beta k k^T) S + beta k v^T with the matrices written out, channel by channel; y = q^T S."""
    q, k, v, log_decay, beta, state = arrays = recurrence(9, strengths=strengths)
    got, last = call(name, "recurrent_rule", *arrays)
    want = np.empty_like(v)
    for row, head in np.ndindex(2, 3):
        s = state[row, head]
        for t in range(9):
            key, columns = k[row, head, t], []
            for channel, strength in enumerate(np.broadcast_to(beta[row, head, t], 5)):
                column = np.exp(log_decay[row, head, t]) * (np.eye(4) - strength * np.outer(key, key)) @ s[:, channel]
                columns.append(column + strength * v[row, head, t, channel] * key)
            s = np.stack(columns, 1)
            want[row, head, t] = q[row, head, t] @ s
        close(last[row, head], s)
    close(got, want)


@pytest.mark.full_for("jax-64", "jax-7-", "jax-16")
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("chunk", [1, 7, 16, 64, LENGTH, LENGTH + 5])
def test_chunks_of_any_length_are_the_recurrence(name, kind, chunk):
    arrays = recurrence(**EXTREMES[kind])
    want, state = call("numpy", "recurrent_rule", *arrays)
    got, last = call(name, chunked(kind), *arrays, chunk=chunk)
    assert np.isfinite(got).all()
    close(got, want, 10 * BOUND)
    close(last, state, 10 * BOUND)


@pytest.mark.parametrize("kind", EXTREMES)
def test_the_recurrence_is_the_oracles(wing, kind):
    arrays = recurrence(**EXTREMES[kind])
    for got, want in zip(call(wing, "recurrent_rule", *arrays), call("numpy", "recurrent_rule", *arrays), strict=True):
        close(got, want)


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("cut", [1, 33, 64, LENGTH - 1])
@pytest.mark.parametrize(("first", "second"), [("recurrent", "chunked"), ("chunked", "recurrent"), ("chunked",) * 2])
def test_the_state_is_all_that_goes_on(name, first, second, cut):
    """Part by part, in one form or the other."""
    *tokens, state = recurrence()
    want, last = call("numpy", "recurrent_rule", *tokens, state)
    early, between = call(name, f"{first}_rule", *(x[:, :, :cut] for x in tokens), state)
    late, end = call(name, f"{second}_rule", *(x[:, :, cut:] for x in tokens), between)
    close(np.concatenate([early, late], 2), want, 10 * BOUND)
    close(end, last, 10 * BOUND)


def test_channels_of_one_strength_are_a_head(name):
    """In both forms, to within rounding."""
    q, k, v, log_decay, beta, state = recurrence()
    for head, channels in (("recurrent_rule",) * 2, ("chunked_rule", "chunked_channels_rule")):
        want = call(name, head, q, k, v, log_decay, beta, state)
        got = call(name, channels, q, k, v, log_decay, beta.repeat(5, 3), state)
        for one, other in zip(got, want, strict=True):
            close(one, other, 10 * BOUND)


def test_what_was_written_with_beta_1_is_read_back(name):
    """Without decay the state answers to a key of length 1 with its value, whatever it held."""
    _q, k, v, log_decay, beta, state = recurrence(6, beta=1.0, log_decay=0.0)
    got, _ = call(name, "recurrent_rule", k, k, v, log_decay, beta, state)
    close(got, v)


# --- the convolution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 2, 4, 9])
def test_the_convolution_is_numpys(name, kernel):
    draw = np.random.default_rng(1)
    x, weight = draw.standard_normal((2, 7, 3)), draw.standard_normal((3, kernel))
    inputs = draw.standard_normal((2, kernel - 1, 3))
    got, last = mixed(name, x, weight, inputs, np.ones((1, 7), bool))
    whole = np.concatenate([inputs, x], 1)
    for row, channel in np.ndindex(2, 3):
        close(got[row, :, channel], np.convolve(whole[row, :, channel], weight[channel, ::-1], "valid"))
    np.testing.assert_array_equal(last, whole[:, 7:])


@pytest.mark.full_for("jax-cuts1", "jax-cuts3")
@pytest.mark.parametrize("cuts", [range(12), [0, 1, 3, 11], [0, 2, 11], [0, 5, 11]])
def test_the_convolution_in_parts_and_with_padding_anywhere(name, cuts):
    """Parts shorter than the kernel, rows of other lengths, a part that is nothing but padding in a row."""
    draw = np.random.default_rng(2)
    x, weight, length = draw.standard_normal((3, 11, 4)), draw.standard_normal((4, 5)), 11
    there = np.ones((3, length), bool)
    there[1, :6], there[2, [0, 3, 4, 5, 10]] = False, False
    inputs, found = np.zeros((3, 4, 4)), []
    for a, b in pairwise(cuts):
        part, inputs = mixed(name, x[:, a:b], weight, inputs, there[:, a:b])
        found.append(part)
    got = np.concatenate(found, 1)
    assert np.isfinite(got).all()
    for row in range(3):
        own = x[row, there[row]][None]
        want, last = mixed("numpy", own, weight, np.zeros((1, 4, 4)), np.ones((1, own.shape[1]), bool))
        close(got[row, there[row]], want[0])
        np.testing.assert_array_equal(inputs[row], last[0])


# --- the layer in a model --------------------------------------------------------------------------------------------


def texts(rows, length, seed=3):
    return np.random.default_rng(seed).integers(0, DELTA.vocab_size, (rows, length)).astype(np.int32)


@pytest.mark.full_for("jax")
@BETAS
def test_the_chunked_form_computes_the_same_model(model_of, wing, config):
    ids, targets = texts(2, LENGTH), texts(2, LENGTH, 4)
    plain, other = model_of(wing, config), model_of(wing, config, recurrence="chunked")
    close(other.forward(ids).logits, plain.forward(ids).logits, 10 * BOUND)
    want, got = plain.gradients(ids, targets), other.gradients(ids, targets)
    assert got.value == pytest.approx(want.value, rel=10 * BOUND)
    for name, grad in want.grads.items():
        close(got.grads[name], grad, 100 * BOUND)


@BETAS
def test_wings_and_oracle_compute_the_same_model(model_of, wing, config):
    ids = texts(2, LENGTH)
    close(model_of(wing, config).forward(ids).logits, model_of("numpy", config).forward(ids).logits)


def test_positions_are_not_looked_at(model_of, name):
    ids, positions = texts(2, 12), np.tile(np.arange(12, dtype=np.int32), (2, 1))
    model = model_of(name, DELTA)
    np.testing.assert_array_equal(model.forward(ids, positions + 50).logits, model.forward(ids, positions).logits)


@pytest.mark.full_for("jax-recurrent")
@FORMS
@pytest.mark.parametrize("cuts", [range(13), [0, 1, 3, 12], [0, 2, 12], [0, 11, 12], [0, 12]], ids=str)
def test_any_split_of_prefill_and_decoding(model_of, name, form, cuts):
    ids = texts(2, 12)
    want = model_of("numpy", DELTA).forward(ids).logits
    model = model_of(name, DELTA, recurrence=form)
    cache = model.new_cache(2, 12)
    close(np.concatenate([model.extend(cache, ids[:, a:b]) for a, b in pairwise(cuts)], 1), want, 10 * BOUND)


@pytest.mark.full_for("jax")
@BETAS
@FORMS
def test_long_rows_of_unequal_length_in_parts(model_of, name, form, config):
    """Padded on the left, past a chunk, then token by token: each row as it is alone."""
    ids, short = texts(3, LENGTH), (LENGTH, 37, 1)
    positions = np.stack([np.maximum(np.arange(LENGTH) - (LENGTH - n), -1) for n in short]).astype(np.int32)
    oracle, model = model_of("numpy", config), model_of(name, config, recurrence=form)
    cache, cuts = model.new_cache(3, LENGTH), [0, 33, 67, 68, 69, LENGTH]
    parts = [model.extend(cache, ids[:, a:b], positions[:, a:b]) for a, b in pairwise(cuts)]
    got, whole = np.concatenate(parts, 1), model.forward(ids, positions).logits
    assert np.isfinite(got).all()
    for row, length in enumerate(short):
        want = oracle.forward(ids[[row], -length:]).logits[0]
        close(got[row, -length:], want, 10 * BOUND)
        close(whole[row, -length:], want, 10 * BOUND)


@pytest.mark.full_for("jax")
@FORMS
def test_padding_in_the_middle_and_at_the_end_leaves_the_state_alone(model_of, name, form):
    """Where a zeroed input would still make the state fade: the cache is bit for bit what it was."""
    ids, model = texts(1, 9), model_of(name, DELTA, recurrence=form)
    cache = model.new_cache(1, 40)
    model.extend(cache, ids)
    before = {part: value.copy() for part, value in model.cache_contents(cache).items()}  # PyTorch writes in place
    model.extend(cache, texts(1, 5, 9), np.full((1, 5), -1, np.int32))
    model.extend(cache, texts(1, 1, 9), np.full((1, 1), -1, np.int32))
    after = model.cache_contents(cache)
    assert {part.rpartition(".")[2] for part in after} == {"state", "inputs"}
    for part, value in before.items():
        assert np.abs(value).max() > 0
        np.testing.assert_array_equal(after[part], value)


@pytest.mark.full_for("jax")
@FORMS
def test_an_overlong_input_is_refused_and_the_cache_lives_on(model_of, name, form):
    ids, model = texts(2, 10), model_of(name, DELTA, recurrence=form)
    cache = model.new_cache(2, 10)
    first = model.extend(cache, ids[:, :7])
    with pytest.raises(UserError, match="holds 7 of 10 tokens; 4 more do not fit"):
        model.extend(cache, ids[:, :4])
    last = model.extend(cache, ids[:, 7:])
    close(np.concatenate([first, last], 1), model_of("numpy", DELTA).forward(ids).logits, 10 * BOUND)


def test_two_caches_do_not_know_each_other(model_of, name):
    ids, model = texts(4, 8), model_of(name, DELTA)
    caches, got = [model.new_cache(2, 8), model.new_cache(2, 8)], [[], []]
    for part in (slice(0, 5), slice(5, 8)):
        for which, rows in enumerate((slice(0, 2), slice(2, 4))):
            got[which].append(model.extend(caches[which], ids[rows, part]))
    want = model_of("numpy", DELTA).forward(ids).logits
    for which, rows in enumerate((slice(0, 2), slice(2, 4))):
        close(np.concatenate(got[which], 1), want[rows])


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SIZES)
def test_bytes_of_the_cache_are_those_of_the_closed_form(model_of, wing, dtype):
    """States are kept in the precision of reductions; no capacity makes it larger."""
    model = model_of(wing, DELTA, dtype)
    states, inputs, layers = 3 * 4 * 5 * 6, 3 * 3 * (2 * 2 * 5 + 4 * 6), 2
    want = layers * (states * max(4, SIZES[dtype]) + inputs * SIZES[dtype])
    for capacity in (1, 80):
        assert model.new_cache(3, capacity).nbytes == want
        assert estimate.cache_bytes(DELTA, 3, capacity, dtype) == want


@pytest.mark.parametrize(("config", "strengths"), [(DELTA, 4), (CHANNELS, 24)], ids=["head", "channel"])
def test_matrix_products_are_counted_by_hand(model_of, wing, config, strengths):
    """Two products with a state for every token and head, forward; the projections; and no slots in a decoding step."""
    model, (batch, length) = model_of(wing, config, "float32"), (2, 7)
    path, tokens = "model.layers.1.self_attn", 14
    projections = 2 * tokens * 16 * (10 + 10 + 24 + 4 + strengths + 24 + 24)
    want = projections + 2 * 2 * tokens * 4 * 5 * 6
    assert flops.flops_full(config, "forward", batch, length, path=path) == want
    assert model.matmul_flops("forward", batch, length, path) == want
    assert model.matmul_flops("gradients", batch, length, path) == 3 * want
    assert flops.flops_causal(config, "forward", batch, length, path=path) == want
    decode = flops.flops_full(config, "decode", batch, 40)
    assert decode == flops.flops_full(config, "decode", batch, 80) == model.matmul_flops("decode", batch, 40)


@pytest.mark.parametrize("length", [7, 64, 65, 130])  # a short chunk, a whole one, one token more, two and some
@pytest.mark.parametrize("path", ["", "model.layers.0.self_attn"])
@BETAS
def test_counters_equal_the_closed_form_of_chunks(model_of, wing, config, path, length):
    """Forward in both wings alike; on the way back each leaves out, or makes twice, what its closed form says."""
    entry, forms = config.attention_of(0), {"recurrence": "chunked"}
    for own in (entry, entry.with_(key_dim=40, value_dim=30)):  # a triangle of fewer, and of more columns than rows
        config = config.with_(context_length=160, attention=(own,))
        model, closed = model_of(wing, config, "float32", **forms), {"path": path, "forms": forms}
        want = flops.flops_full(config, "forward", 2, length, **closed)
        assert model.matmul_flops("forward", 2, length, path) == want
        want = flops.flops_full(config, "train", 2, length, **closed, wing=wing)
        assert model.matmul_flops("gradients", 2, length, path) == want
        assert want != flops.flops_full(config, "train", 2, length, **closed)
    if not path:
        assert model.matmul_flops("train", 2, length) == want
        assert model.matmul_flops("prefill", 2, length) == flops.flops_full(config, "prefill", 2, length, forms=forms)
        assert model.matmul_flops("decode", 2, 9) == flops.flops_full(config, "decode", 2, 9, forms=forms)
    if not path and length == 130:
        again = model_of(wing, config, "float32", layers="checkpointed", **forms)
        closed = {"attention": "checkpointed", "forms": forms, "wing": wing}
        assert again.matmul_flops("gradients", 2, length) == flops.flops_full(config, "train", 2, length, **closed)
        scan = model_of("jax", config, "float32", layers="scan", **forms)
        assert wing == "torch" or scan.matmul_flops("gradients", 2, length) == want


def test_the_closed_form_of_chunks_by_hand():
    """Two heads of D 5 and P 6 that read 70 tokens: two chunks of 64, of which the second has 6."""
    config = DELTA.with_(attention=(ENTRY.with_(num_key_heads=2, num_value_heads=2),))
    options = {"path": "model.layers.0.self_attn", "forms": {"recurrence": "chunked"}}
    maps = flops.forward(config, 1, 70, **options)["attention projections"]
    square, state = 2 * 64 * 64, 2 * 64 * 5 * 6
    scores, triangles = 2 * 2 * (square * (5 + 5 + 6) + 3 * state), 2 * 2 * 64 * 64 * 11
    assert list(flops.forward(config, 1, 70, **options).values()) == [maps, scores, triangles]
    visible = 2 * (2 * (64 * 65 + 6 * 7) // 2 * 16 + 2 * 70 * 3 * 5 * 6)
    due = flops.forward(config, 1, 70, causal=True, **options)
    assert list(due.values())[1:] == [visible, 2 * (64**2 + 6**2) * 11]
    assert list(flops.training(config, 1, 70, **options).values()) == [3 * maps, 3 * scores, 4 * triangles]
    torch, jax = (list(flops.training(config, 1, 70, wing=name, **options).values()) for name in ("torch", "jax"))
    assert torch == [3 * maps, 3 * scores - 2 * 4 * state, 4 * triangles]
    assert jax == [3 * maps, 3 * scores, 5 * triangles]  # 11 columns are fewer than 64 rows: solved for them again
    channels = config.with_(attention=(ENTRY.with_(num_value_heads=2, beta="channel"),))  # six triangles a head
    assert list(flops.forward(channels, 1, 70, **options).values())[1:] == [scores, triangles // 11 * 6]
    assert list(flops.training(channels, 1, 70, wing="jax", **options).values())[2] == 5 * triangles // 11 * 6
    assert flops.forward(config, 1, 1, **options) == flops.forward(config, 1, 1, path=options["path"])
    assert import_module("common.variants.gated_deltanet").CHUNK == 64
    for package in PACKAGES.values():
        assert import_module(f"{package}.attention.gated_deltanet").CHUNK == 64


def test_published_sizes():
    """Parameters of Qwen3.5 0.8B, whose layers are three of these to one of gated attention; tied, and untied."""
    delta = GatedDeltaNet(num_key_heads=16, num_value_heads=16, key_dim=128, value_dim=128)
    full = ATTENTIONS["grouped_query"].from_dict(
        {"num_kv_heads": 2, "head_dim": 256, "qk_norm": "head", "gate": True, "rotary": {"base": 1e7, "fraction": 0.25}}
    )
    qwen = GPTConfig(
        248_320,
        262_144,
        1024,
        24,
        8,
        ff_dim=3584,
        qkv_bias=False,
        activation="silu",
        attention=(delta, delta, delta, full),
        feed_forward=("gated_mlp",),
        norm="rms_norm",
        positions="none",
    )
    assert params.count(qwen) == 752_393_024
    assert params.count(qwen.with_(tie_embeddings=False)) == 1_006_672_704


def test_heads_begin_with_rates_spread_over_0_to_16():
    table = params.table(GPTConfig(9, 8, 2048, 1, 2048, attention=("gated_deltanet",)))
    rates = np.exp(params.initial(table["model.layers.0.self_attn.A_log"], 0).astype(np.float64))
    assert 0 < rates.min() < 0.1
    assert 15.9 < rates.max() < 16
    assert abs(rates.mean() - 8) < 0.5  # 5 deviations of the mean of 2048 uniform numbers
    assert (params.initial(table["model.layers.0.self_attn.dt_bias"], 0) == 1).all()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernel": 0}, r"GatedDeltaNet\.kernel is 0; allowed is a whole number > 0"),
        ({"value_dim": 0}, r"GatedDeltaNet\.value_dim is 0; allowed is a whole number > 0"),
        ({"num_value_heads": 2.5}, r"GatedDeltaNet\.num_value_heads is 2\.5; allowed is a whole number > 0"),
        ({"out_bias": 1}, r"GatedDeltaNet\.out_bias is 1; allowed is true or false"),
        ({"beta": "chanel"}, "Unknown beta of a delta rule 'chanel': did you mean 'channel'"),
        ({"beta": True}, "Unknown beta of a delta rule 'True'"),
        ({"num_key_heads": 3, "num_value_heads": 4}, r"num_key_heads is 3; allowed is a divisor of num_value_heads"),
        ({"num_key_head": 1}, "did you mean 'num_key_heads'"),
        ({"kind": "gated_delta_net"}, "did you mean 'gated_deltanet'"),
    ],
)
def test_settings_that_make_no_layer_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        DELTA.with_(attention={"kind": "gated_deltanet", **settings})


@pytest.mark.parametrize(("field", "value"), [("attention", "fused"), ("projections", "joined")])
def test_it_has_no_kernel_but_its_own(model_of, wing, field, value):
    with pytest.raises(UserError, match=f"Gated DeltaNet attention has no {field}='{value}': use {field}='plain'"):
        model_of(wing, DELTA, "float32", **{field: value})


def test_unknown_forms_are_answered_with_near_matches():
    with pytest.raises(UserError, match="did you mean 'chunked'"):
        Execution(recurrence="chunks")
