"""Published estimates of caches and of experts, to the digit, from the closed forms of `parallax estimate`.

They are those of the bonus material of Raschka's *Build a Large Language Model (From Scratch)*, chapter 4; 1 GB is 10^9
bytes. Two labels are corrected: their estimator's `n_kv_groups` is the number of query heads in a group, where their
model's is the number of groups (here it is always `num_kv_heads`), and their row "MHA + GQA" is GQA with windows.
"""

import pytest

from common.accounting import estimate
from common.config import GPTConfig
from common.errors import UserError
from common.variants import ATTENTIONS, FEED_FORWARDS, GroupedQuery, MultiHead


def gigabytes(value, digits=2):
    return f"{value / 1e9:.{digits}f}"


def model(width, heads, layers, context, pattern):
    return GPTConfig(17, context, width, layers, heads, attention=pattern, positions="none")


def cache(width, heads, layers, context, pattern):
    """Bytes of a single row's cache in bfloat16."""
    return estimate.cache_bytes(model(width, heads, layers, context, pattern), 1, context, "bfloat16")


def saved(before, after):
    """("4.00x", "75.00 %")."""
    times, share = estimate.saving(before, after)
    return f"{times:.2f}x", f"{100 * share:.2f} %"


# 32 heads of 128, 32 layers, 32,768 tokens; groups of 4 heads are 8 groups
WIDE = (4096, 32, 32, 32_768)


def local(groups, window=1024):
    """Five layers with a window, then one without."""
    return (*[GroupedQuery(num_kv_heads=groups, window=window)] * 5, GroupedQuery(num_kv_heads=groups))


def test_grouped_queries():
    heads, groups = cache(*WIDE, MultiHead()), cache(*WIDE, GroupedQuery(num_kv_heads=32 // 4))
    assert heads == cache(*WIDE, GroupedQuery(num_kv_heads=32))
    assert (gigabytes(heads), gigabytes(groups)) == ("17.18", "4.29")
    assert saved(heads, groups) == ("4.00x", "75.00 %")
    assert gigabytes(cache(*WIDE, GroupedQuery(num_kv_heads=4))) == "2.15"  # what 4 means where it is their number


def test_windows():
    config = model(*WIDE, local(32))
    windows = [config.attention_of(layer).window for layer in range(32)]
    assert (windows.count(1024), windows.count(None)) == (27, 5)  # left over are two with a window
    assert windows[:7] == [1024] * 5 + [None, 1024]
    assert gigabytes(cache(*WIDE, local(32))) == "3.14"
    assert gigabytes(cache(*WIDE, local(8))) == "0.78"


def test_a_window_longer_than_the_text_saves_nothing():
    short = (*WIDE[:3], 512)
    assert cache(*short, local(8)) == cache(*short, GroupedQuery(num_kv_heads=8))


def test_latents():
    """24 heads of ceil(2048 / 24) = 86 numbers in 48 layers, 8,192 tokens."""
    dim, sizes = 86, (2048, 24, 48, 8192)
    heads, groups = (cache(*sizes, GroupedQuery(num_kv_heads=n, head_dim=dim)) for n in (24, 24 // 4))
    latent = cache(*sizes, ATTENTIONS["latent"](rank=1024, head_dim=dim))
    assert [gigabytes(value) for value in (heads, groups, latent)] == ["3.25", "0.81", "0.81"]
    assert saved(heads, latent) == ("4.03x", "75.19 %")
    assert latent == 8192 * 48 * 1024 * 2
    sizes = (96, 6, 2, 64)  # where nothing is said, an eighth of the width, at least 16
    assert cache(*sizes, ATTENTIONS["latent"]()) == 64 * 2 * max(16, 96 // 8) * 2


def test_shared_keys_and_values():
    """8 heads of 256 in 35 layers, 131,072 tokens; the first 15 layers make keys and values, a single head's in GQA."""
    sizes = (2048, 8, 35, 131_072)

    def sharing(groups):
        first, later = (GroupedQuery(num_kv_heads=groups, shares=shares) for shares in (False, True))
        return (first,) * 15 + (later,) * 20

    heads, groups = cache(*sizes, MultiHead()), cache(*sizes, GroupedQuery(num_kv_heads=8 // 8))
    assert [gigabytes(value) for value in (heads, groups)] == ["37.58", "4.70"]
    assert [gigabytes(cache(*sizes, sharing(n))) for n in (8, 1)] == ["16.11", "2.01"]
    assert saved(heads, cache(*sizes, sharing(1))) == ("18.67x", "94.64 %")


def test_states_that_do_not_grow():
    """16 heads of 128 in 48 layers, 131,072 tokens; without the convolution, which the published figures leave out, and
    with two bytes for every number, where a model in bfloat16 keeps its states in float32.
    """
    sizes = (2048, 16, 48, 131_072)
    state, full = ATTENTIONS["gated_deltanet"](kernel=1), MultiHead()

    def two_bytes(pattern):
        found = estimate.estimate("", model(*sizes, pattern), sizes[-1], 1, "bfloat16")
        return found.cache - found.states // 2

    assert gigabytes(two_bytes(full)) == gigabytes(cache(*sizes, full)) == "51.54"
    assert gigabytes(two_bytes((state, state, state, full))) == "12.90"
    assert gigabytes(two_bytes(state), 3) == "0.025"
    assert gigabytes(cache(*sizes, (state, state, state, full))) == "12.92"
    assert 2 * two_bytes(state) == cache(*sizes, state) == 48 * 16 * 128 * 128 * 4


# 8 SwiGLU experts, of which a token meets 2, as large together as one layer of 14,336
EXPERTS = {"width": 7168, "hidden": 14_336, "experts": 8}


def test_experts_that_match_a_dense_layer():
    assert estimate.match_dense(**EXPERTS) == 1792
    assert estimate.match_dense(7168, 14_336, 8, matrices=2) == 1792  # the router weighs little: 1791.5
    assert estimate.match_dense(768, 3072, 1) == 3072
    with pytest.raises(UserError, match="3000 experts cannot be as small as one layer of 100"):
        estimate.match_dense(64, 100, 3000)


def feed_forward(entry, hidden):
    """(all parameters, those that a token meets) of one feed-forward layer."""
    config = GPTConfig(17, 8, 7168, 1, 8, ff_dim=hidden, activation="silu", feed_forward=entry, positions="none")
    return tuple(count(config, "model.layers.0.mlp") for count in (estimate.parameters, estimate.active))


def test_a_mixture_of_experts():
    dense = feed_forward("gated_mlp", 14_336)
    assert dense == (308_281_344, 308_281_344)
    assert gigabytes(2 * dense[0]) == "0.62"
    hidden, router = estimate.match_dense(**EXPERTS), 7168 * 8
    total, met = feed_forward(
        FEED_FORWARDS["mixture_of_experts"](num_experts=8, top_k=2, expert_dim=hidden), EXPERTS["hidden"]
    )
    assert (total, met) == (308_338_688, 77_127_680)
    assert router == 57_344
    assert divmod(total - router, 8) == (38_535_168, 0)
    assert met == 2 * 38_535_168 + router
    assert gigabytes(2 * met) == "0.15"
