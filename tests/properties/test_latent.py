"""Latent attention, with keys and values made from latents or what makes them absorbed: one function, a small cache."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from common import compare, params
from common.accounting import flops, memory, parts
from common.accounting.work import Work
from common.adapters import Adapter
from common.backend import load
from common.config import Execution, GPTConfig, SamplingConfig
from common.errors import UserError
from common.variants import MultiHead
from common.variants.latent import Latent
from common.variants.rotary import Rotary

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims

BOUND = 1e-12  # float64 rounding in sums of another order: 1e-14 here
LENGTH, PADDED = 80, 23  # positions past 64; the second row begins with padding
FORMS = ("expanded", "absorbed")
DEEPSEEK = Latent(rank=10, query_rank=12, head_dim=6, value_dim=5, rotary=Rotary(base=100.0), rotary_dim=4, scale=0.35)
BOOK = Latent(norm=False, out_bias=True)  # its rank is 16, its heads have 8 numbers
COMMON = GPTConfig(61, 100, 32, 2, 4, ff_dim=44, tie_embeddings=False)
CONFIGS = {
    "deepseek": COMMON.with_(attention=DEEPSEEK, norm="rms_norm", positions="none"),
    "book": COMMON.with_(attention=BOOK, qkv_bias=False),
}
WAYS = {"numpy": {}, **{f"{wing} {form}": {"latent": form} for wing in ("torch", "jax") for form in FORMS}}


def close(got, want, bound=BOUND):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(params=WAYS)
def built(request, config, model_of):
    """The model of a config in every implementation and form."""
    return model_of(request.param.split()[0], config, **WAYS[request.param])


@pytest.fixture(scope="module")
def texts():
    """(ids, positions, where no padding is) of two rows, the second padded on the left."""
    ids = np.random.default_rng(3).integers(0, COMMON.vocab_size, (2, LENGTH)).astype(np.int32)
    positions = np.stack([np.arange(LENGTH), np.maximum(np.arange(LENGTH) - PADDED, -1)]).astype(np.int32)
    return ids, positions, positions >= 0


def test_adapters_of_what_is_not_absorbed_are_seen(model_of, texts, wing):
    """Absorbed or not: queries from their latent, and the latents of keys and values, are made by maps that adapters
    change."""
    adapter = Adapter(targets=("*.q_up_proj", "*.kv_down_proj"), rank=2, alpha=3.0)
    config, (ids, positions, there) = CONFIGS["deepseek"].with_(adapters=adapter), texts
    want, got = (model_of(wing, config, latent=form).forward(ids, positions).logits[there] for form in FORMS)
    close(got, want)
    plain = model_of(wing, CONFIGS["deepseek"]).forward(ids, positions).logits[there]
    assert np.abs(want - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize("target", ["k_up_proj", "v_up_proj", "q_up_proj"])
def test_streamed_decoding_sees_adapters(model_of, wing, target):
    """Where an adapter changes what would be absorbed, nothing is absorbed."""
    config = CONFIGS["deepseek"].with_(adapters=Adapter(targets=(f"*.{target}",), rank=2, alpha=30.0))
    prompts, sampling = [[3, 1, 4, 1, 5], [9, 2, 6]], SamplingConfig(max_new_tokens=8)
    want = model_of(wing, config).generate(prompts, sampling)
    eager = {"compile": False} if wing == "torch" else {}
    assert model_of(wing, config, decode="streamed", **eager).generate(prompts, sampling) == want
    assert model_of(wing, CONFIGS["deepseek"]).generate(prompts, sampling) != want
    absorbed = parts.decoding(config, Execution(decode="streamed"))
    assert absorbed == ({"latent": "absorbed"} if target == "q_up_proj" else {})


def test_absorbed_equals_expanded_in_every_intermediate_value(model_of, texts, wing, config):
    ids, positions, there = texts
    want, got = (model_of(wing, config, latent=form).forward(ids, positions, taps=("*",)) for form in FORMS)
    close(got.logits[there], want.logits[there])
    assert set(got.taps) == set(want.taps)
    assert {"latent", "scores", "weights", "context"} <= {name.rpartition(".")[2] for name in got.taps}
    for name, value in want.taps.items():
        assert compare.difference(name, got.taps[name], value).relative <= BOUND, name


@pytest.mark.full_for("jax")
def test_absorbed_equals_expanded_in_every_gradient(model_of, texts, wing, config):
    """With dropout on the weights: the masks must be the same too."""
    ids, config = texts[0], config.with_(dropout_attn=0.3)
    want, got = (
        model_of(wing, config, latent=form).gradients(ids[:, :-1], ids[:, 1:], dropout=(1, 2)) for form in FORMS
    )
    assert got.value == pytest.approx(want.value, rel=BOUND)
    for name in params.table(config):
        close(got.grads[name], want.grads[name], 10 * BOUND)


@pytest.mark.full_for("jax-book")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_what_streams_decodes_absorbed(model_of, texts, wing, config):
    """It reads texts in the expanded form, and continues them like the other; the counters see what is multiplied."""
    how = {"decode": "streamed"} | ({"compile": False} if wing == "torch" else {})
    plain, streamed = model_of(wing, config), model_of(wing, config, **how)
    for model, form in ((plain, "expanded"), (streamed, "absorbed")):
        assert model.matmul_flops("decode", 2, 9) == flops.flops_full(config, "decode", 2, 9, forms={"latent": form})
        assert model.matmul_flops("forward", 2, 9) == flops.flops_full(config, "forward", 2, 9)
    prompts, sampling = [row[:9].tolist() for row in texts[0]], SamplingConfig(12)
    assert streamed.generate(prompts, sampling) == plain.generate(prompts, sampling)


@pytest.mark.full_for("jax-book")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_absorbed_is_as_accurate_as_expanded(model_of, texts, wing, config, dtype):
    """Two roundings of one function: neither is more than three times as far off as the other."""
    ids, positions, there = texts
    truth = model_of("numpy", config).forward(ids, positions).logits[there]
    one, other = (
        compare.rms(model_of(wing, config, dtype, latent=form).forward(ids, positions).logits[there] - truth)
        for form in FORMS
    )
    assert max(one, other) < 3 * min(one, other) + compare.UNIT_ROUNDOFF[dtype] * compare.rms(truth)


def test_with_a_latent_that_keeps_everything_it_is_multi_head_attention(fresh_model, texts, name):
    """R = E, and the identity for what makes the latent."""
    ids, positions, there = texts
    plain = COMMON.with_(attention=MultiHead(), qkv_bias=False)
    weights = params.randomise(plain, 20)
    renamed = {
        key.replace(".k_proj.", ".k_up_proj.").replace(".v_proj.", ".v_up_proj."): value
        for key, value in weights.items()
    }
    identity = np.eye(COMMON.embed_dim, dtype=np.float32)
    renamed |= {f"model.layers.{i}.self_attn.kv_down_proj.weight": identity for i in range(COMMON.num_layers)}
    latent = plain.with_(attention=BOOK.with_(rank=COMMON.embed_dim))
    want = fresh_model(name, plain, weights=weights).forward(ids, positions).logits
    got = fresh_model(name, latent, weights=renamed).forward(ids, positions).logits
    close(got[there], want[there])


@pytest.mark.full_for("book-jax", "jax expanded")
@pytest.mark.parametrize("cuts", [[], [76, 77, 78, 79], [30, 60]], ids=["one shot", "prefill and decode", "chunks"])
def test_any_split_equals_the_full_forward(model_of, texts, config, built, cuts):
    """Of ragged rows, at every position; the cache has more slots than are used."""
    ids, positions, there = texts
    want = model_of("numpy", config).forward(ids, positions).logits
    cache = built.new_cache(2, LENGTH + 3)
    parts = [built.extend(cache, ids[:, a:b], positions[:, a:b]) for a, b in pairwise([0, *cuts, LENGTH])]
    got = np.concatenate(parts, axis=1)
    assert np.isfinite(got).all()
    close(got[there], want[there])


def test_padding_changes_nothing(model_of, texts, config, built):
    """A padded row equals itself alone; what stands in the padding changes no bit; a row of padding is finite."""
    ids, positions, there = texts
    whole = built.forward(ids, positions).logits
    alone = model_of("numpy", config).forward(ids[1:, PADDED:]).logits
    close(whole[1, PADDED:], alone[0])
    other = built.forward(np.where(there, ids, 7), positions).logits
    np.testing.assert_array_equal(other[there], whole[there])
    empty = built.forward(ids, np.stack([positions[0], np.full(LENGTH, -1)]).astype(np.int32)).logits
    assert np.isfinite(empty).all()
    close(empty[0], whole[0])


def test_positions_count_only_as_distances(built, config, texts):
    """What turns knows how far two tokens are apart, not where they are; without it learned positions know."""
    ids = texts[0][:, :12]
    near, far = (built.forward(ids, np.tile(np.arange(a, a + 12), (2, 1))).logits for a in (0, 70))
    if config.positions == "none":
        close(far, near)
    else:
        assert np.abs(far - near).max() > 1e-3 * np.abs(near).max()


@pytest.mark.full_for("jax expanded")
def test_what_does_not_fit_is_refused_and_the_cache_lives_on(built, texts):
    ids = texts[0]
    cache = built.new_cache(2, 10)
    parts = [built.extend(cache, ids[:, :7])]
    with pytest.raises(UserError, match="holds 7 of 10 tokens; 4 more do not fit"):
        built.extend(cache, ids[:, 7:11])
    parts += [built.extend(cache, ids[:, 7:9]), built.extend(cache, ids[:, 9:10])]
    close(np.concatenate(parts, axis=1), built.forward(ids[:, :10]).logits)
    with pytest.raises(UserError, match="holds 10 of 10"):
        built.extend(cache, ids[:, :1])


@pytest.mark.full_for("jax expanded")
def test_generated_texts_are_those_of_the_full_forward(model_of, built, config):
    """Prompts of unequal length, through the loop on the device and without a cache."""
    prompts, sampling = [[5, 17, 33, 2, 60, 41, 8], [9], [12, 0, 3, 44]], SamplingConfig(max_new_tokens=9)
    want = model_of("numpy", config).generate(prompts, sampling.with_(cache=False))
    assert len({token for row in want for token in row}) > 3, "a model that repeats itself proves little"
    assert built.generate(prompts, sampling) == want
    assert built.generate(prompts, sampling.with_(prefill_chunk=3)) == want


@pytest.mark.parametrize(
    ("name", "dtype"), [("numpy", "float64"), *((wing, d) for wing in ("torch", "jax") for d in memory.ITEM_BYTES)]
)
def test_bytes_of_the_cache_are_those_of_the_closed_form(model_of, config, name, dtype):
    """Latents, and the key that turned: neither heads nor values."""
    cache = model_of(name, config, dtype).new_cache(3, 10)
    width = {"none": 10 + 4, "learned": 16}[config.positions]
    assert cache.nbytes == memory.kv_cache(config, 3, 10, dtype) == 2 * 3 * 10 * width * memory.ITEM_BYTES[dtype]


def test_published_sizes():
    """F-064, and the estimate of section 3.10: 0.81 GB; DeepSeek-V2, table 1: 4.5 heads' sizes a token and layer."""
    assert [Latent().rank_of(COMMON.with_(embed_dim=e)) for e in (32, 128, 768, 2048)] == [16, 16, 96, 256]
    book = GPTConfig(50257, 8192, 2048, 48, 16, attention=Latent(rank=1024, norm=False, out_bias=True))
    assert memory.kv_cache(book, 1, 8192, "bfloat16") == 8192 * 48 * 1024 * 2 == 805_306_368
    v2 = Latent(rank=512, query_rank=1536, head_dim=128, rotary=Rotary(), rotary_dim=64)
    assert v2.cached_numbers(GPTConfig(102400, 4096, 5120, 1, 128), 1, 1) == 4.5 * 128
    assert Latent(head_dim=128, rotary=Rotary()).sizes(COMMON) == (128, 64, 128)


def products(config, work):
    """FLOPs of a layer's own products in either form."""
    works = (replace(work, forms={"latent": form}) for form in FORMS)
    return [sum(config.attention[0].products(config, work).values()) for work in works]


def closed(config, task, batch, length, form, **options):
    return flops.flops_full(config, task, batch, length, forms={"latent": form}, **options)


@pytest.mark.parametrize("form", FORMS)
def test_counters_equal_the_closed_form(fresh_model, config, wing, form):
    model = fresh_model(wing, config, "float32", latent=form)
    for task, counted in {"forward": "forward", "train": "gradients"}.items():
        assert model.matmul_flops(counted, 2, 7) == closed(config, task, 2, 7, form)
    assert model.matmul_flops("prefill", 3, 5, slots=9) == closed(config, "prefill", 3, 5, form, slots=9)
    assert model.matmul_flops("decode", 3, 9) == closed(config, "decode", 3, 9, form)


def test_what_absorbing_saves():
    """DeepSeek-V3, one more token behind 4,095: keys and values of all of them are not made again."""
    v3 = GPTConfig(129280, 4096, 7168, 1, 128, attention=Latent(512, 1536, 128, 128, Rotary(), 64))
    work = Work(1, 1, 4096, 1, past=4095, cached=True)
    expanded, absorbed = products(v3, work)
    assert 100 < expanded / absorbed < 150
    prefill = Work(1, 4096, 4096, 1, cached=True)  # where nothing is made twice, the latent is the wider key
    expanded, absorbed = products(v3, prefill)
    assert absorbed / expanded == (2 * 512 + 64) / (128 + 64 + 128)


BAD = [
    ({"rank": 0}, "Latent.rank is 0; allowed is a whole number > 0"),
    ({"query_rank": 1.5}, "Latent.query_rank is 1.5; allowed is a whole number > 0"),
    ({"value_dim": True}, "Latent.value_dim is True"),
    ({"rotary": "yes"}, "Latent.rotary is 'yes'; allowed is settings of Rotary, or none"),
    ({"rotary_dim": 4}, "Latent.rotary_dim is 4; allowed is none, for nothing turns without rotary"),
    ({"rotary": Rotary(), "rotary_dim": 3}, "Latent.rotary_dim is 3; allowed is an even number, for pairs turn"),
    ({"norm": 1}, "Latent.norm is 1; allowed is true or false"),
    ({"scale": 0.0}, "Latent.scale is 0.0; allowed is a number > 0, or none"),
    ({"rnk": 4}, "Unknown field of Latent 'rnk': did you mean 'rank'"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD, ids=[next(reversed(settings)) for settings, _ in BAD])
def test_bad_settings_are_named(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        COMMON.with_(attention={"kind": "latent", **settings})


def test_settings_survive_a_dictionary(config):
    assert GPTConfig.from_dict(config.to_dict()) == config


def test_other_kernels_and_forms_are_refused(model_of, config, wing):
    for kernel in ("fused", "blockwise", "module"):
        with pytest.raises(UserError, match=f"Latent attention has no attention='{kernel}'"):
            model_of(wing, config, "float32", attention=kernel)
    with pytest.raises(UserError, match="did you mean 'absorbed'"):
        Execution(latent="absorb")
    with pytest.raises(UserError, match="no fast paths: leave latent='absorbed' out"):
        load("numpy").build(config, params.randomise(config, 0), Execution("float64", latent="absorbed"))
