"""Configs refuse nonsense in a sentence that names the field, the value and what is allowed."""

import json
import re

import numpy as np
import pytest

from common.config import (
    PRESETS,
    Execution,
    GPTConfig,
    SamplingConfig,
    TrainConfig,
    model_from_dict,
    model_to_dict,
    preset,
)
from common.errors import UserError
from common.variants import PATTERNS, GroupedQuery, MultiHead

GPT = GPTConfig(31, 16, 24, 2, 3)
BAD = [
    (GPT, "vocab_size", 0, "a whole number > 0"),
    (GPT, "context_length", -1, "a whole number > 0"),
    (GPT, "num_layers", True, "a whole number > 0"),
    (GPT, "embed_dim", 24.0, "a whole number > 0"),
    (GPT, "ff_dim", 0, "a whole number > 0"),
    (GPT, "num_heads", 5, "a divisor of embed_dim (24)"),
    (GPT, "qkv_bias", 1, "true or false"),
    (GPT, "norm_eps", 0.0, "[1e-12, 1]"),
    (GPT, "dropout_attn", 1.0, "a rate in [0, 0.999]"),
    (GPT, "dropout_embed", -0.1, "a rate in [0, 0.999]"),
    (GPT, "dropout_shortcut", float("nan"), "a rate in [0, 0.999]"),
    (GPT, "activation", "gelu_tan", "did you mean 'gelu_tanh'"),
    (Execution(), "dtype", "float46", "did you mean 'float64'"),
    (Execution(), "attention", "fuse", "did you mean 'fused'"),
    (Execution(), "threads", 0, "a whole number > 0"),
    (Execution(), "dtype", ["float32"], "did you mean 'float32'"),
    (Execution(), "device", 0, "a name such as 'cpu' or 'cuda'"),
    (Execution(), "compile", 1, "true or false"),
    (TrainConfig(), "warmup_steps", True, "a whole number >= 0"),
    (TrainConfig(), "seed", False, "[0, 2^32)"),
    (SamplingConfig(), "end_token", True, "a token id >= 0"),
    (SamplingConfig(), "cache", "no", "true or false"),
    (TrainConfig(), "steps", 0, "a whole number > 0"),
    (TrainConfig(), "accumulate", 1.5, "a whole number > 0"),
    (TrainConfig(), "learning_rate", -1e-3, "a number >= 0"),
    (TrainConfig(), "beta1", 1.0, "[0, 1)"),
    (TrainConfig(), "adam_eps", 0.0, "(0, 1]"),
    (TrainConfig(), "clip_norm", 0.0, "a number > 0, or none"),
    (TrainConfig(), "warmup_steps", -1, "a whole number >= 0"),
    (TrainConfig(), "clip_from", -1, "a whole number >= 0"),
    (TrainConfig(), "schedule", "cosin", "did you mean 'cosine'"),
    (TrainConfig(), "decay", "matrix", "did you mean 'matrices'"),
    (TrainConfig(), "seed", 2**32, "[0, 2^32)"),
    (SamplingConfig(), "max_new_tokens", 0, "a whole number > 0"),
    (SamplingConfig(), "temperature", -1.0, "0 is greedy"),
    (SamplingConfig(), "top_k", 0, "a whole number > 0"),
    (SamplingConfig(), "top_p", 0.0, "(0, 1]"),
    (SamplingConfig(), "end_token", -2, "a token id >= 0"),
    (SamplingConfig(), "overflow", "crops", "did you mean 'crop'"),
    (SamplingConfig(), "prefill_chunk", 0, "a whole number > 0"),
]


@pytest.mark.parametrize(("config", "field", "value", "allowed"), BAD, ids=lambda x: str(x)[:24])
def test_bad_values_are_named(config, field, value, allowed):
    with pytest.raises(UserError, match=re.escape(allowed)) as told:
        config.with_(**{field: value})
    assert repr(value) in str(told.value)
    assert field in str(told.value) or "Unknown" in str(told.value)


def test_dictionaries_round_trip_and_refuse_unknown_and_missing_keys():
    for config in PRESETS.values():
        assert model_from_dict(model_to_dict(config)) == config
    for config in (Execution(), TrainConfig(), SamplingConfig(top_k=3)):
        assert type(config).from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="did you mean 'num_heads'"):
        GPTConfig.from_dict({**GPT.to_dict(), "num_head": 3})
    with pytest.raises(UserError, match="GPTConfig lacks a value for 'num_layers' and 'num_heads'"):
        GPTConfig.from_dict({"vocab_size": 3, "context_length": 4, "embed_dim": 5})
    for config, key in ((MultiHead, "x"), (MultiHead, 1)):
        with pytest.raises(UserError, match=f"MultiHead has no settings of its own, but '{key}' is given"):
            config.from_dict({key: 1})
    for config in (GPTConfig, GroupedQuery):
        with pytest.raises(UserError, match=f"Unknown field of {config.__name__} '1': known are "):
            config.from_dict({1: 2})
    with pytest.raises(UserError, match="Unknown field of Rotary 'None'"):
        GPT.with_(attention={"kind": "grouped_query", "rotary": {None: 1}})
    with pytest.raises(UserError, match="Unknown model family 'gtp'"):
        model_from_dict({"family": "gtp"})


def test_heads_share_the_width_only_where_none_has_a_size_of_its_own():
    own = ({"kind": "grouped_query", "head_dim": 6}, {"kind": "latent", "head_dim": 7})
    own += ({"kind": "gated_deltanet", "key_dim": 3, "value_dim": 5}, {"kind": "sparse", "head_dim": 4})
    for pattern in (own, *own):
        assert GPT.with_(num_heads=5, attention=pattern).num_heads == 5
    sizeless = ("multi_head", "grouped_query", "latent", "gated_deltanet", "sparse")
    sizeless += ({"kind": "gated_deltanet", "key_dim": 3}, {"kind": "gated_deltanet", "value_dim": 3})
    for entry in sizeless:
        with pytest.raises(UserError, match=r"num_heads is 5; allowed is a divisor of embed_dim \(24\), which heads"):
            GPT.with_(num_heads=5, attention=(*own, entry))


SYNONYMS = {
    "mla": ("latent", ""),
    "MLA": ("latent", ""),
    "gqa": ("grouped_query", ""),
    "mqa": ("grouped_query", " with num_kv_heads=1"),
    "multi-query": ("grouped_query", " with num_kv_heads=1"),
    "swa": ("grouped_query", " with a window"),
    "sliding-window": ("grouped_query", " with a window"),
    "rope": ("grouped_query", " with rotary positions"),
    "alibi": ("grouped_query", " with alibi=true"),
    "sinks": ("grouped_query", " with sinks=true"),
    "gated_attention": ("grouped_query", " with gate=true"),
    "linear_attention": ("gated_deltanet", ""),
    "lightning-indexer": ("sparse", ""),
    "glu": ("gated_mlp", ""),
    "mha": ("multi_head", ""),
    "Multi-Head": ("multi_head", ""),
    "dsa": ("sparse", ""),
    "deltanet": ("gated_deltanet", ""),
    "moe": ("mixture_of_experts", ""),
    "SwiGLU": ("gated_mlp", " with the model's activation=silu"),
    "geglu": ("gated_mlp", " with the model's activation=gelu"),
    "ffn": ("mlp", ""),
}


@pytest.mark.parametrize("word", SYNONYMS)
def test_kinds_by_other_words_are_answered_with_the_kind(word):
    kind, more = SYNONYMS[word]
    (field,) = (field for field, table in PATTERNS.items() if kind in table)
    for given in (word, {"kind": word}):
        with pytest.raises(UserError) as told:
            GPT.with_(**{field: given})
        assert str(told.value) == f"Unknown kind of {field.replace('_', '-')} {word!r}: did you mean {kind!r}{more}?"


@pytest.mark.parametrize("word", ["rope", "alibi"])
def test_positions_inside_attention_are_pointed_to(word):
    with pytest.raises(UserError, match=f"Unknown positions '{word}'.* Rotary ones and ALiBi are set in attention"):
        GPT.with_(positions=word)


def test_no_word_stands_for_two_kinds():
    tables = [table.items() for table in PATTERNS.values()]
    words = [alias.split()[0] for table in tables for kind, entry in table for alias in (kind, *entry.aliases)]
    assert len(words) == len(set(words))


def test_presets_and_defaults():
    assert preset("gpt2-1558m").num_heads == 25
    assert preset("gpt2-124m").ff_dim == 3072
    assert GPT.head_dim == 8
    assert not GPT.has_dropout
    assert preset("book-124m").has_dropout
    with pytest.raises(UserError, match="did you mean 'gpt2-774m'"):
        preset("gpt-774m")


def test_numbers_of_other_packages_become_pythons():
    """So that JSON can hold them, and equal configs are equal."""
    found = GPTConfig(
        np.int64(31), np.int32(16), np.uint8(12), 2, 3, ff_dim=np.int16(20), dropout_embed=np.float32(0.5)
    )
    assert found == GPTConfig(31, 16, 12, 2, 3, ff_dim=20, dropout_embed=0.5)
    assert {type(value) for value in (found.vocab_size, found.embed_dim, found.ff_dim)} == {int}
    assert type(found.dropout_embed) is float
    assert json.loads(json.dumps(model_to_dict(found)))["context_length"] == 16
    assert type(TrainConfig(learning_rate=1).learning_rate) is int
    for wrong in (np.float64(16), np.bool_(True), np.array([16])):
        with pytest.raises(UserError, match="a whole number > 0"):
            GPTConfig(31, wrong, 12, 2, 3)
