"""Adapters in PEFT's files: what is written comes back, and what does not fit is refused in one sentence."""

import json

import ml_dtypes
import numpy as np
import pytest

from common import adapters, heads, params
from common.adapters import Adapter
from common.config import GPTConfig
from common.variants import GatedMLP, GroupedQuery
from common.weights import safetensors_io
from common.weights.peft import load_adapter, save_adapter
from common.weights.stored import in_memory

RANK = 3
LLAMA = GPTConfig(53, 11, 12, 2, 6, ff_dim=20, qkv_bias=False, positions="none", norm="rms_norm").with_(
    attention=GroupedQuery(2), feed_forward=GatedMLP(), activation="silu"
)
TARGETS = {
    "q and v": ("*.q_proj", "*.v_proj"),
    "q, k and v": ("*.self_attn.?_proj",),
    "one layer": ("model.layers.1.*",),
    "feed-forward": ("*.mlp.up_proj", "*.down_proj"),
    "all of attention, one k": ("*.q_proj", "*.o_proj", "*.1.self_attn.k_proj"),
}


def adapted(config, weights, *made, seed=0):
    """Weights with adapters whose every number is random."""
    for adapter in made:
        config, weights = adapters.add(config, weights, adapter)
    weights, rng = dict(weights), np.random.default_rng(seed)
    for name in adapters.names(config):
        weights[name] = (weights[name] + 0.3 * rng.standard_normal(weights[name].shape)).astype(np.float32)
    return config, weights


def low(config, weights, name="default"):
    """Name -> array, of an adapter alone."""
    return {key: np.asarray(weights[key]) for key in adapters.names(config, name)}


def edit(folder, **changes):
    """Change adapter_config.json; None takes a field away."""
    path = folder / "adapter_config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def rewrite(folder, change):
    """Change the tensors by name, as another program would: without our metadata."""
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.read() for name, tensor in safetensors_io.open_file(path).items()}
    change(tensors)
    safetensors_io.write_file(path, {name: in_memory(np.ascontiguousarray(a)) for name, a in tensors.items()})


def names(folder):
    return list(safetensors_io.open_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("variant", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_everything_comes_back_exactly(model, targets, variant, tiny, tmp_path, same, contents):
    base = {"gpt2": tiny, "llama": LLAMA}[model]
    weights = params.randomise(base, 2)
    adapter = Adapter("fine", targets, RANK, 5.0, 0.25, **variant)
    config, full = (
        adapted(base, weights, Adapter("other"), adapter) if base is tiny else adapted(base, weights, adapter)
    )
    without = adapters.without(config, full, ("fine",))
    save_adapter(tmp_path / "a", config, full, "fine")
    found, loaded = load_adapter(tmp_path / "a", *without, name="fine")
    assert found == config
    assert same(loaded, full)
    save_adapter(tmp_path / "a", found, loaded, "fine")
    again, _ = load_adapter(tmp_path / "a", base, weights, name="mine")
    assert again.adapters == (adapter.with_(name="mine"),)
    save_adapter(tmp_path / "b", found, loaded, "fine")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("variant", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_what_the_files_say_without_our_metadata_is_the_same_function(targets, variant, tiny, weights, tmp_path):
    config, full = adapted(tiny, weights, Adapter("default", targets, RANK, 5.0, **variant))
    save_adapter(tmp_path / "a", config, full)
    rewrite(tmp_path / "a", lambda tensors: None)
    found, loaded = load_adapter(tmp_path / "a", tiny, weights)
    assert found.adapters[0].rank == max(np.shape(full[name])[0] for name in full if ".lora_A." in name) * (
        3 if "*.self_attn.?_proj" in targets or "model.layers.1.*" in targets else 1 if "*.down_proj" in targets else 2
    )
    want, got = adapters.merge(config, full)[1], adapters.merge(found, loaded)[1]
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_the_files_are_those_of_peft(tiny, weights, tmp_path):
    config, full = adapted(tiny, weights, Adapter(targets=TARGETS["q and v"], rank=RANK, alpha=6.0))
    save_adapter(tmp_path / "a", config, full, base="gpt2")
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 6, "lora_alpha": 12, "bias": "none"}
    told |= {"fan_in_fan_out": True, "target_modules": ["attn.c_attn"], "base_model_name_or_path": "gpt2"}
    assert told.items() <= values.items()
    first = "base_model.model.transformer.h.0.attn.c_attn"
    tensors = safetensors_io.open_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name: tensors[name].shape for name in tensors if ".h.0." in name} == {
        f"{first}.lora_A.weight": (6, 12),
        f"{first}.lora_B.weight": (36, 6),
    }
    a, b = tensors[f"{first}.lora_A.weight"].read(), tensors[f"{first}.lora_B.weight"].read()
    q, v = (full[f"model.layers.0.self_attn.{one}_proj.lora_B.default.weight"] for one in "qv")
    np.testing.assert_array_equal(a[:3], full["model.layers.0.self_attn.q_proj.lora_A.default.weight"])
    np.testing.assert_array_equal(b, np.block([[q, 0 * q], [0 * q, 0 * q], [0 * q, v]]))


def test_equal_matrices_share_one(tiny, weights, tmp_path):
    config, full = adapted(tiny, weights, Adapter(targets=("*.self_attn.?_proj",), rank=RANK))
    for layer in range(2):
        for one in "kv":
            full[f"model.layers.{layer}.self_attn.{one}_proj.lora_A.default.weight"] = full[
                f"model.layers.{layer}.self_attn.q_proj.lora_A.default.weight"
            ]
    save_adapter(tmp_path / "a", config, full)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == RANK
    rewrite(tmp_path / "a", lambda tensors: None)
    found, loaded = load_adapter(tmp_path / "a", tiny, weights)
    assert found.adapters[0].with_(targets=config.adapters[0].targets) == config.adapters[0]
    assert all(np.array_equal(loaded[name], full[name]) for name in full)


def test_canonical_names_for_models_that_are_no_gpt2(tmp_path):
    config, full = adapted(LLAMA, params.randomise(LLAMA, 2), Adapter(rank=2))
    save_adapter(tmp_path / "a", config, full)
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert values["target_modules"] == ["self_attn.q_proj", "self_attn.v_proj"]
    assert values["fan_in_fan_out"] is False
    assert "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight" in names(tmp_path / "a")


def test_a_module_of_a_file_under_the_names_of_the_book(tiny, weights, tmp_path):
    config, full = adapted(tiny, weights, Adapter(targets=("*.q_proj",), rank=2))
    save_adapter(tmp_path / "a", config, full)
    a, b = (np.ones((2, 12), np.float32), np.ones((12, 2), np.float32))

    def change(tensors):
        tensors.clear()
        for layer in range(2):
            module = f"base_model.model.trf_blocks.{layer}.att.W_value"
            tensors.update({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b})

    rewrite(tmp_path / "a", change)
    edit(tmp_path / "a", target_modules=["W_value"], fan_in_fan_out=False)
    found, loaded = load_adapter(tmp_path / "a", tiny, weights)
    assert found.adapters[0].targets == ("*.self_attn.v_proj",)
    np.testing.assert_array_equal(loaded["model.layers.1.self_attn.v_proj.lora_A.default.weight"], a)


def test_other_ranks_and_scales_go_into_one(tiny, weights, tmp_path):
    config, full = adapted(tiny, weights, Adapter(targets=("*.o_proj",), rank=2, alpha=4.0))
    save_adapter(tmp_path / "a", config, full)
    module = "base_model.model.transformer.h.1.attn.c_proj"
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((5, 12)).astype(np.float32), rng.standard_normal((12, 5)).astype(np.float32)
    rewrite(tmp_path / "a", lambda t: t.update({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}))
    edit(tmp_path / "a", rank_pattern={r"h\.1\.attn.c_proj": 5}, alpha_pattern={"^transformer.h.1.attn.c_proj": 1.0})
    found, loaded = load_adapter(tmp_path / "a", tiny, weights)
    assert (found.adapters[0].rank, found.adapters[0].alpha) == (5, 1.0)
    got = adapters.merge(found, loaded)[1]
    paths = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(2)]
    np.testing.assert_allclose(got[paths[1]], weights[paths[1]] + b @ a / 5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[paths[0]], adapters.merge(config, full)[1][paths[0]], rtol=1e-5, atol=1e-6)
    save_adapter(tmp_path / "b", found, loaded)
    assert load_adapter(tmp_path / "b", tiny, weights)[0] == found


@pytest.mark.parametrize("known", [True, False])
def test_a_classifier_takes_its_head_along(known, tiny, weights, tmp_path, same):
    base = heads.classifier(tiny, weights, 3)
    config, full = adapted(*base, Adapter(rank=2))
    full["score.bias"] = full["score.bias"] + np.float32(0.5)
    save_adapter(tmp_path / "a", config, full)
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (values["task_type"], values["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert {"base_model.model.score.weight", "base_model.model.score.bias"} < set(names(tmp_path / "a"))
    found, loaded = load_adapter(tmp_path / "a", *(base if known else (tiny, weights)))
    assert found == config
    assert same(loaded, full)
    rewrite(tmp_path / "a", lambda tensors: tensors.pop("base_model.model.score.bias"))  # as transformers has it
    _, loaded = load_adapter(tmp_path / "a", *base)
    assert not np.any(loaded["score.bias"])


def test_an_adapter_of_the_head_alone_is_refused(tiny, weights, tmp_path, refused):
    config, weights = adapters.add(*heads.classifier(tiny, weights, 3), Adapter(targets=("score",), rank=2))
    with refused("changes the classifier's head alone", "parallax adapter merge"):
        save_adapter(tmp_path / "a", config, weights)
    assert list(tmp_path.iterdir()) == []


def test_modules_that_were_trained_whole(tiny, weights, tmp_path, refused):
    config, full = adapted(tiny, weights, Adapter(rank=2))
    save_adapter(tmp_path / "a", config, full)
    rng = np.random.default_rng(2)
    fresh = {
        "transformer.h.0.mlp.c_fc.weight": (12, 20),
        "transformer.ln_f.bias": (12,),
        "transformer.wte.weight": (53, 12),
    }
    fresh = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in fresh.items()}
    fresh["lm_head.weight"] = fresh["transformer.wte.weight"]  # tied, and saved all the same
    rewrite(tmp_path / "a", lambda t: t.update({f"base_model.model.{name}": array for name, array in fresh.items()}))
    _, loaded = load_adapter(tmp_path / "a", tiny, weights)
    np.testing.assert_array_equal(
        loaded["model.layers.0.mlp.up_proj.weight"], fresh["transformer.h.0.mlp.c_fc.weight"].T
    )
    np.testing.assert_array_equal(loaded["model.norm.bias"], fresh["transformer.ln_f.bias"])
    np.testing.assert_array_equal(loaded["model.embed_tokens.weight"], fresh["lm_head.weight"])
    rewrite(tmp_path / "a", lambda t: t.update({"base_model.model.lm_head.weight": 2 * fresh["lm_head.weight"]}))
    with refused("two tensors for model.embed_tokens.weight"):
        load_adapter(tmp_path / "a", tiny, weights)


def test_halves_stay_halves(tiny, weights, tmp_path):
    config, full = adapted(tiny, weights, Adapter(targets=("*.self_attn.?_proj",), rank=2))
    full |= {name: full[name].astype(ml_dtypes.bfloat16) for name in adapters.names(config)}
    save_adapter(tmp_path / "a", config, full)
    _, loaded = load_adapter(tmp_path / "a", tiny, weights)
    assert {loaded[name].dtype.name for name in adapters.names(config)} == {"bfloat16"}
    assert all(np.array_equal(loaded[name], full[name]) for name in full)


@pytest.fixture
def saved(tiny, weights, tmp_path):
    """A folder with an adapter of rank 2 on q, v and the output of attention."""
    config, full = adapted(tiny, weights, Adapter(targets=("*.q_proj", "*.v_proj", "*.o_proj"), rank=2))
    save_adapter(tmp_path / "a", config, full)
    return tmp_path / "a"


SETTINGS = {
    "another kind": ({"peft_type": "IA3"}, "IA3", "'LORA'"),
    "biases": ({"bias": "lora_only"}, "bias = 'lora_only'"),
    "biases of B": ({"lora_bias": True}, "lora_bias = True"),
    "of the future": ({"sort_of_lora": 3}, "sort_of_lora = 3"),
    "a start that changes the base": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    "rank": ({"r": 0}, "rank is 0"),
    "rank that is text": ({"r": "two"}, "rank is 'two'"),
    "alpha": ({"lora_alpha": -1}, "alpha is -1"),
    "dropout": ({"lora_dropout": 2}, "dropout is 2"),
    "flag": ({"use_dora": "yes"}, "dora is 'yes'"),
    "targets": ({"target_modules": 5}, '"target_modules" is 5'),
    "no targets": ({"target_modules": []}, "names nothing"),
    "expressions": ({"rank_pattern": {"h.(0|1).attn": 3}}, "regular expression", "h.(0|1).attn"),
    "patterns": ({"rank_pattern": [3]}, '"rank_pattern" is [3]'),
    "near target": ({"target_modules": ["c_atn", "attn.c_proj"]}, "'c_atn'", "did you mean 'c_attn'"),
    "too few targets": ({"target_modules": ["c_attn"]}, "transformer.h.0.attn.c_proj", "does not target"),
    "too many targets": ({"target_modules": ["c_attn", "c_proj"]}, "nothing for transformer.h.0.mlp.c_proj"),
    "dora without magnitudes": ({"use_dora": True}, "lora_magnitude_vector is missing"),
}


@pytest.mark.parametrize(("changes", "words"), [(c, w) for c, *w in SETTINGS.values()], ids=SETTINGS)
def test_settings_that_cannot_be_read(changes, words, saved, tiny, weights, refused):
    edit(saved, **changes)
    with refused(*words):
        load_adapter(saved, tiny, weights)


@pytest.mark.parametrize("targets", [r".*\.(c_attn|attn\.c_proj)", "all-linear", ["attn.c_proj", "c_attn", "qkv"]])
def test_targets_that_need_no_look(targets, saved, tiny, weights):
    edit(saved, target_modules=targets)
    assert load_adapter(saved, tiny, weights)[0].adapters[0].rank == 2


P = "base_model.model.transformer.h.0.attn."
TENSORS = {
    "shape": (lambda t: t.update({P + "c_attn.lora_A.weight": np.ones((4, 8), np.float32)}), "[4, 8]", "36 x 12"),
    "missing": (lambda t: t.pop(P + "c_proj.lora_B.weight"), "c_proj.lora_B.weight is missing"),
    "unknown": (lambda t: t.update({P + "c_att.lora_A.weight": np.ones((2, 12))}), "transformer.h.0.attn.c_attn"),
    "layer": (
        lambda t: t.update({"base_model.model.transformer.h.7.attn.c_attn.lora_A.weight": np.ones((2, 12))}),
        "transformer.h.7.attn.c_attn",
        "2 layers",
        "another base",
    ),
    "tied head": (
        lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.ones((2, 12))}),
        "lm_head",
        "tie_embeddings",
    ),
    "embedding": (
        lambda t: t.update({"base_model.model.transformer.wte.lora_embedding_A": np.ones((2, 53))}),
        "lora_embedding_A",
        "not implemented",
    ),
    "magnitude": (lambda t: t.update({P + "c_proj.lora_magnitude_vector": np.ones(12)}), "use_dora is false"),
    "prefix": (lambda t: t.update({"h.0.attn.c_attn.lora_A.weight": np.ones((4, 12))}), "base_model.model."),
    "nothing": (lambda t: t.clear(), "no lora_A"),
    "whole": (lambda t: t.update({"base_model.model.transformer.ln_f.weight": np.ones(9)}), "ln_f.weight", "[9]"),
    "whole, unknown": (lambda t: t.update({"base_model.model.transformer.ln_g.weight": np.ones(12)}), "ln_f.weight"),
    "head": (lambda t: t.update({"base_model.model.score.weight": np.ones((1, 12))}), "score.weight", "[1, 12]"),
}


@pytest.mark.parametrize(("change", "words"), [(c, w) for c, *w in TENSORS.values()], ids=TENSORS)
def test_tensors_that_do_not_fit(change, words, saved, tiny, weights, refused):
    rewrite(saved, change)
    with refused(*words):
        load_adapter(saved, tiny, weights)


def test_a_rank_larger_than_a_layer(tiny, tmp_path, refused):
    wide = tiny.with_(embed_dim=24, ff_dim=20)
    config, full = adapted(wide, params.randomise(wide, 1), Adapter(targets=("*.q_proj", "*.k_proj"), rank=16))
    save_adapter(tmp_path / "a", config, full)  # 32 in c_attn, which has room for 24 in each of its parts
    assert load_adapter(tmp_path / "a", wide, params.randomise(wide, 1))[0] == config
    rewrite(tmp_path / "a", lambda tensors: None)
    with refused("rank 32", "24 x 24"):
        load_adapter(tmp_path / "a", wide, params.randomise(wide, 1))


def test_folders_and_names(saved, tiny, weights, tmp_path, refused):
    config, full = load_adapter(saved, tiny, weights)
    with refused("already"):
        load_adapter(saved, config, full)
    with refused("no adapters"):
        save_adapter(tmp_path / "b", tiny, weights)
    with refused("'defalt'", "'default'"):
        save_adapter(tmp_path / "b", config, full, "defalt")
    with refused("no adapter config"):
        load_adapter(tmp_path / "nowhere", tiny, weights)
    (saved / "notes.txt").write_text("mine")
    with refused("notes.txt"):
        save_adapter(saved, config, full)
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with refused("pickle"):
        load_adapter(saved, tiny, weights)
    (saved / "adapter_model.bin").unlink()
    with refused("no safetensors file"):
        load_adapter(saved, tiny, weights)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": null}', "{}"])
def test_a_damaged_config(text, saved, tiny, weights, refused):
    (saved / "adapter_config.json").write_text(text)
    with refused("adapter_config.json"):
        load_adapter(saved, tiny, weights)
