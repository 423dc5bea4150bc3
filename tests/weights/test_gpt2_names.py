"""Every naming scheme is a bijection with the canonical table, down to the bytes of the file."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import params
from common.adapters import Adapter
from common.config import GPTConfig
from common.weights import gpt2_names, safetensors_io
from common.weights.gpt2_names import BOOK, CANONICAL, HF, HF_BARE, OPENAI, SCHEMES
from common.weights.stored import StoredWeights, in_memory


@st.composite
def configs(draw, bias=None):
    heads = draw(st.integers(1, 4))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 61)),
        context_length=draw(st.integers(1, 9)),
        embed_dim=heads * draw(st.integers(1, 5)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        ff_dim=draw(st.one_of(st.none(), st.integers(1, 30))),
        qkv_bias=draw(st.booleans()) if bias is None else bias,
        tie_embeddings=draw(st.booleans()),
    )


def in_scheme(scheme, config, seed=0):
    """All tensors of a random model in a scheme, as arrays and as stored tensors."""
    tensors = gpt2_names.from_canonical(scheme, config, params.randomise(config, seed))
    arrays = {name: np.ascontiguousarray(tensor.read()) for name, tensor in tensors.items()}
    return arrays, {name: in_memory(array) for name, array in arrays.items()}


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_file_to_canonical_to_file_gives_identical_bytes(name, data, tmp_path, same):
    scheme = SCHEMES[name]
    config = data.draw(configs(bias=True if scheme.fused else None))
    want = params.randomise(config, 3)
    safetensors_io.write_file(tmp_path / "a.safetensors", gpt2_names.from_canonical(scheme, config, want))
    read = gpt2_names.to_canonical(scheme, config, safetensors_io.open_file(tmp_path / "a.safetensors"), "a")
    assert same(read, want)
    safetensors_io.write_file(tmp_path / "b.safetensors", gpt2_names.from_canonical(scheme, config, read))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_parameter_is_held_exactly_once(data):
    scheme = SCHEMES[data.draw(st.sampled_from(list(SCHEMES)))]
    config = data.draw(configs(bias=True if scheme.fused else None))
    entries = gpt2_names.entries(scheme, config)
    held = [name for entry in entries.values() for name in entry.ours]
    copies = 1 if config.tie_embeddings and scheme.writes_tied_head else 0
    assert sorted(set(held)) == sorted(params.table(config))
    assert len(held) == len(set(held)) + copies
    sizes = sum(int(np.prod(entry.shape)) for entry in entries.values())
    assert sizes == params.count(config) + copies * config.vocab_size * config.embed_dim


def test_names_and_layout_as_each_program_writes_them():
    """Written out by hand from the programs' sources, so that a slip in the tables cannot cancel itself."""
    config = GPTConfig(7, 5, 4, 1, 2, ff_dim=6, tie_embeddings=False)
    w = params.randomise(config, 1)
    a = "model.layers.0.self_attn."
    up, down = w["model.layers.0.mlp.up_proj.weight"], w["model.layers.0.mlp.down_proj.weight"]
    hf, _ = in_scheme(HF, config, 1)
    assert list(hf) == [
        "transformer.wte.weight", "transformer.wpe.weight",
        "transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias",
        "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias",
        "transformer.h.0.attn.c_proj.weight", "transformer.h.0.attn.c_proj.bias",
        "transformer.h.0.ln_2.weight", "transformer.h.0.ln_2.bias",
        "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias",
        "transformer.h.0.mlp.c_proj.weight", "transformer.h.0.mlp.c_proj.bias",
        "transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight",
    ]  # fmt: skip
    fused = hf["transformer.h.0.attn.c_attn.weight"]
    assert fused.shape == (4, 12)
    for start, letter in ((0, "q"), (4, "k"), (8, "v")):
        assert np.array_equal(fused[:, start : start + 4].T, w[f"{a}{letter}_proj.weight"])
        bias = hf["transformer.h.0.attn.c_attn.bias"][start : start + 4]
        assert np.array_equal(bias, w[f"{a}{letter}_proj.bias"])
    assert np.array_equal(hf["transformer.h.0.attn.c_proj.weight"].T, w[f"{a}o_proj.weight"])
    assert np.array_equal(hf["transformer.h.0.mlp.c_fc.weight"].T, up)
    assert np.array_equal(hf["transformer.h.0.mlp.c_proj.weight"].T, down)
    assert np.array_equal(hf["transformer.h.0.ln_2.weight"], w["model.layers.0.post_attention_layernorm.weight"])
    assert np.array_equal(hf["lm_head.weight"], w["lm_head.weight"])
    book, _ = in_scheme(BOOK, config, 1)
    assert np.array_equal(book["trf_blocks.0.att.W_key.weight"], w[f"{a}k_proj.weight"])
    assert np.array_equal(book["trf_blocks.0.ff.layers.0.weight"], up)
    assert np.array_equal(book["trf_blocks.0.ff.layers.2.weight"], down)
    assert np.array_equal(book["trf_blocks.0.norm1.scale"], w["model.layers.0.input_layernorm.weight"])
    assert np.array_equal(book["final_norm.shift"], w["model.norm.bias"])
    openai, _ = in_scheme(OPENAI, config.with_(tie_embeddings=True), 1)
    assert openai["model/h0/attn/c_attn/w"].shape == (1, 4, 12)
    assert np.array_equal(openai["model/h0/mlp/c_proj/w"][0].T, down)
    assert np.array_equal(openai["model/ln_f/g"], w["model.norm.weight"])
    bare, _ = in_scheme(HF_BARE, config, 1)
    assert set(bare) == {name.removeprefix("transformer.") for name in hf}


def test_the_books_names_are_those_of_its_own_run(data_dir):
    run = json.loads((data_dir / "peer_run_verdict" / "run.json").read_text())
    c = run["config"]
    config = GPTConfig(
        c["vocab_size"], c["context_length"], c["emb_dim"], c["n_layers"], c["n_heads"], tie_embeddings=False
    )
    assert set(gpt2_names.entries(BOOK, config)) == set(run["final_weight_norms_float64"])


def test_masks_saved_as_buffers_are_no_weights(tiny, weights, same):
    mask = in_memory(np.ones((1, 1, 11, 11), np.float32))
    for scheme, names in (
        (HF, ("transformer.h.1.attn.bias", "transformer.h.0.attn.masked_bias")),
        (HF_BARE, ("h.0.attn.bias", "h.1.attn.masked_bias")),
        (BOOK, ("trf_blocks.1.att.mask",)),
    ):
        _, tensors = in_scheme(scheme, tiny, 7)
        tensors |= dict.fromkeys(names, mask)
        assert same(gpt2_names.to_canonical(scheme, tiny, tensors, "x"), weights)


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        (HF, "transformer.h.{i}.attn.bias transformer.h.{i}.attn.masked_bias"),
        (HF_BARE, "h.{i}.attn.bias h.{i}.attn.masked_bias"),
        (BOOK, "trf_blocks.{i}.att.mask"),
    ],
)
def test_layers_of_two_digits_are_layers_like_the_others(scheme, names, same):
    deep = GPTConfig(5, 4, 4, 12, 2, ff_dim=4)
    _, tensors = in_scheme(scheme, deep)
    for i in range(12):
        tensors |= dict.fromkeys(names.format(i=i).split(), in_memory(np.ones((1, 1, 4, 4), np.float32)))
    assert same(gpt2_names.to_canonical(scheme, deep, tensors, "x"), params.randomise(deep, 0))


@pytest.mark.parametrize("scheme", [HF, OPENAI, HF_BARE])
def test_fused_forms_need_query_key_and_value_biases(scheme, tiny, refused):
    plain = tiny.with_(qkv_bias=False)
    with refused(scheme.title, "qkv_bias"):
        gpt2_names.from_canonical(scheme, plain, params.randomise(plain, 0))


def test_all_faults_are_listed_at_once(tiny, refused):
    _, tensors = in_scheme(HF, tiny)
    del tensors["transformer.ln_f.bias"]
    tensors["score.weight"] = in_memory(np.zeros((2, 2), np.float32))
    tensors["transformer.wpe.weight"] = in_memory(np.zeros((12, 11), np.float32))
    with refused(
        "transformer.ln_f.bias is missing", "score.weight is not part", "wpe.weight has shape [12, 11]", "file"
    ):
        gpt2_names.to_canonical(HF, tiny, tensors, "the file")


def test_writing_checks_the_weights_too(tiny, weights, refused):
    del weights["model.norm.bias"]
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1]
    with refused("model.norm.bias is missing", "model.norm.weight has shape [11]"):
        gpt2_names.from_canonical(CANONICAL, tiny, weights)


def test_more_layers_than_tensors_is_refused_before_any_table_is_made(tiny, refused):
    _, tensors = in_scheme(HF, tiny)
    with refused("too few"):
        gpt2_names.to_canonical(HF, tiny.with_(num_layers=10**12), tensors, "x")


@pytest.mark.parametrize("scheme", [HF, HF_BARE, BOOK, CANONICAL])
def test_a_tied_head_may_be_there_as_an_equal_copy_only(scheme, tiny, weights, same, refused):
    arrays, tensors = in_scheme(scheme, tiny, 7)
    tensors[scheme.head] = in_memory(arrays[scheme.embed].copy())
    assert same(gpt2_names.to_canonical(scheme, tiny, tensors, "x"), weights)
    other = arrays[scheme.embed].copy()
    other[-1, -1] += 1
    tensors[scheme.head] = in_memory(other)
    with refused("tied", scheme.head):
        gpt2_names.to_canonical(scheme, tiny, tensors, "x")


@pytest.mark.parametrize("row", [0, 4095, 4096, 8191, 8192, 9000])
def test_a_long_tied_head_is_compared_to_its_last_row(row, refused):
    """It is read in blocks of rows."""
    large = GPTConfig(9001, 2, 2, 1, 1, ff_dim=2)
    arrays, tensors = in_scheme(HF, large)
    other = arrays[HF.embed].copy()
    other[row, 1] += 1
    tensors[HF.head] = in_memory(other)
    with refused("tied", HF.head):
        gpt2_names.to_canonical(HF, large, tensors, "x")


def test_a_slice_reads_only_its_part_of_a_fused_tensor(tiny):
    _, tensors = in_scheme(HF, tiny)
    asked = []
    name = "transformer.h.0.attn.c_attn.weight"
    fused = tensors[name]
    tensors[name] = type(fused)(fused.shape, fused.dtype, lambda index=...: (asked.append(index), fused.read(index))[1])
    weights = gpt2_names.to_canonical(HF, tiny, tensors, "x")
    assert asked == []
    assert weights["model.layers.0.self_attn.k_proj.weight"].flags.c_contiguous
    assert asked == [(slice(0, 12), slice(12, 24))]


def test_dtypes_survive(tiny, weights):
    halves = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}
    tensors = gpt2_names.from_canonical(HF, tiny, halves)
    assert {tensor.read().dtype.name for tensor in tensors.values()} == {"bfloat16"}
    back = gpt2_names.to_canonical(HF, tiny, tensors, "x")
    assert isinstance(back, StoredWeights)
    assert all(np.array_equal(back[name], halves[name]) for name in halves)


@pytest.mark.parametrize(
    ("scheme", "change"), [(HF, {"adapters": Adapter()}), (BOOK, {"num_labels": 2}), (HF, {"pooling": "mean"})], ids=str
)
def test_what_others_have_no_form_for_is_not_left_out(scheme, change, tiny, refused):
    config = tiny.with_(**change)
    with refused(f"{scheme.title} has no form", *change):
        gpt2_names.from_canonical(scheme, config, params.initialise(config, 0))
