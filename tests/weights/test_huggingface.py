"""Interop with transformers, both ways, every parameter random: same keys, same values, same bytes."""

import json

import numpy as np
import pytest

from common import backend as door
from common import params
from common.config import Execution, GPTConfig
from common.weights import huggingface
from common.weights.formats import convert, load
from common.weights.huggingface import read_hf, write_hf

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

CONFIGS = {
    "tied": GPTConfig(53, 11, 12, 2, 3),
    "untied": GPTConfig(
        50, 7, 8, 1, 2, tie_embeddings=False, dropout_embed=0.1, dropout_attn=0.2, dropout_shortcut=0.3
    ),
    "own width, exact GELU": GPTConfig(31, 9, 12, 3, 4, ff_dim=20, activation="gelu", norm_eps=1e-6),
}


def theirs(config: GPTConfig, seed: int = 0):
    """A GPT-2 of the same config, made by transformers, every parameter drawn."""
    made = transformers.GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.embed_dim,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        n_inner=config.ff_dim,
        activation_function={"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
        layer_norm_epsilon=config.norm_eps,
        embd_pdrop=config.dropout_embed,
        attn_pdrop=config.dropout_attn,
        resid_pdrop=config.dropout_shortcut,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(made)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("limit", [None, 2000])
def test_transformers_loads_what_we_write(name, limit, tmp_path):
    config = CONFIGS[name]
    weights = params.randomise(config, 5)
    write_hf(tmp_path / "m", config, weights, max_shard_bytes=limit)
    model, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    e = config.embed_dim
    for i in range(config.num_layers):
        fused = state[f"transformer.h.{i}.attn.c_attn.weight"]
        for at, letter in enumerate("qkv"):
            want = weights[f"model.layers.{i}.self_attn.{letter}_proj.weight"]
            assert np.array_equal(fused[:, at * e : (at + 1) * e].T, want)
        assert np.array_equal(
            state[f"transformer.h.{i}.mlp.c_fc.weight"].T, weights[f"model.layers.{i}.mlp.up_proj.weight"]
        )
    head = weights["model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
    assert np.array_equal(state["lm_head.weight"], head)
    got = model.config
    assert (got.n_positions, got.n_head, got.layer_norm_epsilon) == (
        config.context_length,
        config.num_heads,
        config.norm_eps,
    )
    assert (got.embd_pdrop, got.attn_pdrop, got.resid_pdrop) == (
        config.dropout_embed,
        config.dropout_attn,
        config.dropout_shortcut,
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("limit", [None, 2000])
def test_what_transformers_saves_comes_back_byte_for_byte(name, limit, tmp_path, contents):
    config, model = CONFIGS[name], theirs(CONFIGS[name])
    model.save_pretrained(tmp_path / "theirs", **({} if limit is None else {"max_shard_size": limit}))
    found, weights = read_hf(tmp_path / "theirs")
    assert found == config
    state = model.state_dict()
    out = state["transformer.h.0.attn.c_proj.weight"].numpy().T
    assert np.array_equal(weights["model.layers.0.self_attn.o_proj.weight"], out)
    write_hf(tmp_path / "ours", found, weights, max_shard_bytes=limit)
    want = {name: data for name, data in contents(tmp_path / "theirs").items() if name.startswith("model")}
    got = {name: data for name, data in contents(tmp_path / "ours").items() if name != "config.json"}
    assert got == want
    write_hf(tmp_path / "again", *read_hf(tmp_path / "ours"), max_shard_bytes=limit)
    assert contents(tmp_path / "again") == contents(tmp_path / "ours")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_bfloat16_keeps_its_dtype(tmp_path):
    config = CONFIGS["tied"]
    model = theirs(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    found, weights = read_hf(tmp_path / "theirs")
    assert weights["model.norm.weight"].dtype.name == "bfloat16"
    write_hf(tmp_path / "ours", found, weights)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.transformer.wte.weight, model.transformer.wte.weight)
    files = [(tmp_path / side / "model.safetensors").read_bytes() for side in ("theirs", "ours")]
    assert files[0] == files[1]


def test_the_bare_model_without_prefix_loads(tmp_path, same):
    config, model = CONFIGS["tied"], theirs(CONFIGS["tied"])
    model.save_pretrained(tmp_path / "full")
    model.transformer.save_pretrained(tmp_path / "bare")
    assert same(load(tmp_path / "full").weights, load(tmp_path / "bare").weights)
    assert load(tmp_path / "bare").config == config


def test_a_transformers_pytorch_state_dict_loads(tmp_path, same):
    model = theirs(CONFIGS["tied"])
    model.save_pretrained(tmp_path / "hf")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = load(tmp_path / "pytorch_model.bin", heads=3, tie=True)
    assert same(found.weights, load(tmp_path / "hf").weights)


def test_both_spellings_of_old_and_new_configs(tmp_path):
    write_hf(tmp_path / "m", CONFIGS["tied"], params.randomise(CONFIGS["tied"], 0))
    path = tmp_path / "m" / "config.json"
    new = json.loads(path.read_text())
    old = {key: value for key, value in new.items() if key not in ("dtype", "n_inner", "tie_word_embeddings")}
    old |= {"torch_dtype": "float32", "n_ctx": new["n_positions"], "task_specific_params": {"text-generation": {}}}
    assert huggingface.config_from_dict(old, path) == huggingface.config_from_dict(new, path) == CONFIGS["tied"]
    aliases = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    assert huggingface.config_from_dict({aliases.get(k, k): v for k, v in new.items()}, path) == CONFIGS["tied"]


def test_released_gpt2_config_is_the_preset():
    released = {"model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12}
    released |= {"n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "layer_norm_epsilon": 1e-5, "embd_pdrop": 0}
    released |= {"attn_pdrop": 0, "resid_pdrop": 0}
    from common.config import preset

    assert huggingface.config_from_dict(released, "config.json") == preset("gpt2-124m")


@pytest.mark.parametrize(
    "change",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
        {"quantization_config": {"bits": 4}},
        {"activation_function": "relu"},
        {"activation_function": ["gelu"]},
        {"model_type": "llama"},
        {"model_type": None},
        {"n_embd": 13},
        {"n_embd": "12"},
        {"n_layer": 10**12},
        {"layer_norm_epsilon": None},
        {"tie_word_embeddings": "yes"},
        {"vocab_size": 54},
    ],
    ids=str,
)
def test_options_that_change_the_function_are_refused(change, tmp_path, refused):
    write_hf(tmp_path / "m", CONFIGS["tied"], params.randomise(CONFIGS["tied"], 0))
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with refused(str(tmp_path / "m")):
        read_hf(tmp_path / "m")


def test_no_query_key_value_biases_no_hugging_face_form(tmp_path, refused):
    config = CONFIGS["tied"].with_(qkv_bias=False)
    with refused("qkv_bias"):
        write_hf(tmp_path / "m", config, params.randomise(config, 0))
    assert list(tmp_path.iterdir()) == []


NAMES = ["bad", "so so", "good"]


@pytest.fixture
def classifier(tmp_path):
    """(folder, model) of a classifier that transformers made, every parameter drawn."""
    shape = {"vocab_size": 256, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    made = transformers.GPT2Config(**shape, **labels, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2ForSequenceClassification(made).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", model


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_classifier_of_transformers_tells_what_it_told_there(call, tmp_path, classifier, backend):
    """Names, and logits where the last token of a text is read; and the same again when it is written for them."""
    folder, model = classifier
    texts = ["a short one", "and one that is longer", "Nice!"]
    code, out, err = call("classify", "--weights", folder, *texts, "--backend", backend, "--json")
    assert (code, "does not know the names" in err) == (0, False), err  # err has transformers' bar of writing, too
    assert call("convert", folder, tmp_path / "ours", "--to", "parallax")[0] == 0
    assert call("convert", folder, tmp_path / "back")[0] == 0
    again, info = transformers.GPT2ForSequenceClassification.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values()), info
    assert again.config.id2label == dict(enumerate(NAMES))
    found = load(folder)
    built = door.load(backend).build(found.config, found.weights, Execution())
    for text, row in zip(texts, json.loads(out)["rows"], strict=True):
        ids = np.frombuffer(text.encode(), np.uint8)[None].astype(np.int32)
        with torch.no_grad():
            want = model(input_ids=torch.tensor(ids.astype(np.int64))).logits[0].numpy()
            np.testing.assert_array_equal(again(input_ids=torch.tensor(ids.astype(np.int64))).logits[0].numpy(), want)
        np.testing.assert_allclose(built.forward(ids).logits[0, -1], want, rtol=0, atol=1e-5 * np.abs(want).max())
        shares = np.exp(want - want.max()) / np.exp(want - want.max()).sum()
        assert row["probabilities"] == pytest.approx(dict(zip(NAMES, shares.tolist(), strict=True)), abs=1e-5)


def test_classifiers_that_have_no_form_are_refused(tmp_path, classifier, refused):
    folder, _ = classifier
    path, found = folder / "config.json", load(folder)
    told = json.loads(path.read_text())
    for change, sentence in (
        ({"problem_type": "regression"}, "problem_type = regression"),
        ({"id2label": {"0": "x"}}, "one output"),
        ({"id2label": {"0": "x", "2": "y"}}, "does not name the classes from 0 on"),
        ({"id2label": {"0": "x", "1": "y"}}, "score.weight has shape [3, 16], expected [2, 16]"),
    ):
        path.write_text(json.dumps(told | change))
        with refused(sentence):
            load(folder)
    biased = {**found.weights, "score.bias": np.ones(3, np.float32)}
    with refused("a classifier whose head has a bias"):
        write_hf(tmp_path / "m", found.config, biased)
    with refused("would lose num_labels 3"):
        path.write_text(json.dumps(told))
        convert(folder, tmp_path / "m.safetensors")
    path.write_text(json.dumps({key: one for key, one in told.items() if key not in ("id2label", "label2id")}))
    assert huggingface.read_classes(folder) == ["LABEL_0", "LABEL_1"]  # what transformers takes for granted
    assert sorted(item.name for item in tmp_path.iterdir()) == ["theirs"]


def test_a_folder_with_other_things_is_not_replaced(tmp_path, refused):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("years of work")
    with refused("thesis.tex", "would be lost"):
        write_hf(tmp_path / "m", CONFIGS["tied"], params.randomise(CONFIGS["tied"], 0))
    assert (tmp_path / "m" / "thesis.tex").read_text() == "years of work"


def test_converting_replaces_an_older_model_completely(tmp_path, contents):
    config = CONFIGS["tied"]
    write_hf(tmp_path / "a", config, params.randomise(config, 0))
    write_hf(tmp_path / "b", config, params.randomise(config, 1), max_shard_bytes=2000)
    convert(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "b"]
