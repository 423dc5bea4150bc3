"""The judge from outside for adapters: PEFT on transformers' GPT-2 with the same numbers gives the same everything.

Theirs come to us as files that PEFT wrote, and ours to PEFT as files that we wrote. The map of gradients below is this
test's own.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common import adapters, backend, compare, heads, params
from common.adapters import Adapter
from common.config import Execution, GPTConfig
from common.errors import UserError
from common.weights import huggingface
from common.weights.peft import load_adapter, save_adapter

peft = pytest.importorskip("peft", reason="needs peft, which the extra 'test' installs")
transformers = pytest.importorskip("transformers")

WINGS = ("torch", "jax")
BATCH, LENGTH, RANK = 2, 41, 4
CONFIG = GPTConfig(97, 112, 48, 2, 3, ff_dim=80, tie_embeddings=False)
EVERY = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj", "lm_head"]
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
OURS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
RENAMED = {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
# The bounds of test_transformers.py; gradients of adapters pass one more product.
BOUNDS = {"float64": 1e-12, "float32": 1e-5}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """transformers' GPT-2 with every parameter random, the same weights here, and inputs."""
    theirs = transformers.GPT2LMHeadModel._from_config(their_config(), attn_implementation="eager").eval()
    randomise(theirs, 5)
    folder = tmp_path_factory.mktemp("base")
    theirs.save_pretrained(folder)
    config, weights = huggingface.read_hf(folder)
    assert config == CONFIG
    rng = np.random.default_rng(3)
    ids, targets = (rng.integers(0, CONFIG.vocab_size, (BATCH, LENGTH)) for _ in range(2))
    targets[0, :7] = -100
    return SimpleNamespace(theirs=theirs, weights=dict(weights), ids=ids, targets=targets)


def their_config(**more):
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"))
    sizes = {"vocab_size": 97, "n_positions": 112, "n_embd": 48, "n_layer": 2, "n_head": 3, "n_inner": 80}
    return transformers.GPT2Config(**sizes, **rates, **ends, **{"tie_word_embeddings": False, **more})


def randomise(model, seed, only=""):
    """Random numbers for the parameters whose name has `only` in it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if only not in name:
                continue
            if "lora_magnitude_vector" in name:  # about the lengths of the rows
                p.mul_(1 + 0.3 * noise)
            elif p.ndim == 2:
                p.copy_(noise * 1.5 / CONFIG.embed_dim**0.5)
            else:
                p.copy_(0.5 * noise + (1.0 if ".ln_" in name and name.endswith("weight") else 0.0))


def adapted(base, kind, targets=EVERY, seed=7, **more):
    """Their model with one adapter, random in every number."""
    settings = peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=targets, fan_in_fan_out=True, **KINDS[kind])
    model = peft.get_peft_model(copy.deepcopy(base.theirs), settings, **more)
    randomise(model, seed, "lora_")
    return model.eval()


def logits(model, base):
    """Of their model, in float64."""
    with torch.no_grad():
        return model(torch.from_numpy(base.ids)).logits.numpy()


def built(config, weights, wing, dtype="float64"):
    return backend.load(wing).build(config, weights, Execution(dtype=dtype))


def ours(tensors):
    """Their numbers or gradients under our names: c_attn's B and magnitudes cut in three, its A once, for all three."""
    found = {}
    for name, tensor in tensors.items():
        path, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        value = tensor.detach().numpy()
        if not path.startswith("transformer.h."):
            found[f"{path}.lora_{part}"] = value
            continue
        _, _, layer, module = path.split(".", 3)
        start = f"model.layers.{layer}"
        if module != "attn.c_attn":
            found[f"{start}.{RENAMED[module]}.lora_{part}"] = value
            continue
        for index, one in enumerate("qkv"):
            third = value if part.startswith("A") else np.split(value, 3)[index]
            found[f"{start}.self_attn.{one}_proj.lora_{part}"] = third
    return found


@pytest.fixture(scope="module", params=KINDS)
def case(request, base, tmp_path_factory):
    """An adapter of PEFT on every linear map, what it gives in float64, and what we read from its files."""
    model = adapted(base, request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    config, weights = load_adapter(folder, CONFIG, base.weights)
    model = model.double()
    found = model(torch.from_numpy(base.ids)).logits
    loss = F.cross_entropy(found.flatten(0, 1), torch.from_numpy(base.targets).flatten())
    loss.backward()
    grads = ours({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    values = ours({n: p for n, p in model.named_parameters() if p.requires_grad})
    return SimpleNamespace(
        kind=request.param,
        config=config,
        weights=weights,
        logits=found.detach().numpy(),
        loss=loss.item(),
        grads=grads,
        values=values,
    )


def test_an_adapter_of_peft_is_read(case, base):
    adapter = case.config.adapters[0]
    assert adapter == Adapter(targets=adapter.targets, rank=RANK, alpha=6.0, **OURS[case.kind])
    names = adapters.names(case.config)
    assert set(names) == set(case.values)
    assert all(np.array_equal(case.weights[name], case.values[name]) for name in names)
    assert all(np.array_equal(case.weights[name], base.weights[name]) for name in params.table(CONFIG))


@pytest.mark.full_for("lora-jax", "rslora-jax")
@pytest.mark.parametrize("wing", [*WINGS, "numpy"])
def test_logits_and_loss_in_float64(case, base, wing):
    model = built(case.config, case.weights, wing)
    assert compare.difference("logits", model.forward(base.ids).logits, case.logits).relative < BOUNDS["float64"]
    assert model.loss(base.ids, base.targets) == pytest.approx(case.loss, rel=1e-12)
    plain = model.base().forward(base.ids).logits
    assert compare.difference("logits", plain, case.logits).relative > 0.1, "the adapter changes nothing"


@pytest.mark.full_for("float32-jax", "lora-float64-jax")
@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_every_gradient(case, base, wing, dtype):
    """Theirs of an A that q, k and v share is the sum of ours."""
    got = built(case.config, case.weights, wing, dtype).gradients(base.ids, base.targets)
    assert got.value == pytest.approx(case.loss, rel=BOUNDS[dtype])
    found = {name: np.asarray(got.grads[name], np.float64) for name in case.grads}
    for name, want in case.grads.items():
        if "_attn.q_proj.lora_A" in name:
            found[name] = sum(found[name.replace("q_proj", f"{one}_proj")] for one in "qkv")
        if "k_proj.lora_A" not in name and "v_proj.lora_A" not in name:
            assert compare.difference(name, found[name], want).relative < BOUNDS[dtype], name


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", WINGS)
def test_logits_and_loss_in_float32(case, base, wing):
    model = built(case.config, case.weights, wing, "float32")
    assert compare.difference("logits", model.forward(base.ids).logits, case.logits).relative < BOUNDS["float32"]
    assert model.loss(base.ids, base.targets) == pytest.approx(case.loss, rel=BOUNDS["float32"])


@pytest.mark.parametrize("wing", WINGS)
def test_merged_is_unmerged(case, base, wing):
    config, weights = adapters.merge(case.config, case.weights)
    assert config == CONFIG
    wide = {name: np.asarray(weights[name]) for name in weights}
    got = built(config, wide, wing).forward(base.ids).logits
    assert compare.difference("logits", got, case.logits).relative < BOUNDS["float32"]  # merged weights are float32


def test_unmerged_is_as_before(case):
    """Off by what float32 rounds in a sum; DoRA's rows forget how long they were."""
    _, merged = adapters.merge(case.config, case.weights)
    if any(adapter.dora for adapter in case.config.adapters):
        with pytest.raises(UserError, match="DoRA"):
            dict(adapters.unmerge(case.config, case.weights, merged)[1].items())
        return
    config, back = adapters.unmerge(case.config, case.weights, merged)
    assert config == case.config
    moved = 0
    for name, weight in case.weights.items():
        weight = np.asarray(weight)
        np.testing.assert_allclose(np.asarray(back[name]), weight, rtol=0, atol=4e-7 * np.abs(weight).max())
        moved += name in merged and not np.array_equal(merged[name], weight)
    assert moved > 1


TARGETS = {
    "q and v": ("*.q_proj", "*.v_proj"),
    "q, k, v and more": ("*.self_attn.?_proj", "*.mlp.*", "lm_head"),
    "k in one layer": ("model.layers.1.self_attn.k_proj", "*.o_proj", "*.q_proj"),
}


@pytest.fixture(scope="module")
def one(base):
    """An adapter of ours, random in every number, by kind and targets."""
    made = {}

    def make(kind, targets):
        if (kind, targets) not in made:
            adapter = Adapter("default", TARGETS[targets], RANK, 6.0, **OURS[kind])
            config, weights = adapters.add(CONFIG, base.weights, adapter, seed=1)
            weights, rng = dict(weights), np.random.default_rng(1)
            for name in adapters.names(config):
                noise = rng.standard_normal(weights[name].shape)
                value = 0.2 * noise if noise.ndim == 2 else weights[name] * (1 + 0.3 * noise)
                weights[name] = value.astype(np.float32)
            made[kind, targets] = config, weights
        return made[kind, targets]

    return make


@pytest.mark.full_for("jax-lora", "jax-rslora")
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wing", WINGS)
def test_peft_reads_ours(one, base, kind, targets, wing, tmp_path):
    config, weights = one(kind, targets)
    save_adapter(tmp_path, config, weights)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base.theirs), tmp_path).eval().double()
    want = logits(model, base)
    # Where only a part of c_attn has an adapter, theirs has magnitudes for the rest too: lengths of rows in float32.
    bound = BOUNDS["float64"] if kind != "dora" or "k, v" in targets else 1e-7
    got = built(config, weights, wing).forward(base.ids).logits
    assert compare.difference("logits", got, want).relative < bound
    merged = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    merged = adapters.merge(config, merged)
    theirs = logits(model.merge_and_unload(), base)
    got = built(*merged, "numpy").forward(base.ids).logits
    assert compare.difference("logits", got, theirs).relative < bound


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_ours_goes_through_peft_and_comes_back(one, base, kind, tmp_path):
    config, weights = one(kind, "q and v")
    save_adapter(tmp_path / "a", config, weights)
    peft.PeftModel.from_pretrained(copy.deepcopy(base.theirs), tmp_path / "a").save_pretrained(tmp_path / "b")
    found, loaded = load_adapter(tmp_path / "b", CONFIG, base.weights)
    assert found.adapters[0].rank == 2 * RANK  # the stack, which PEFT no longer knows to be one
    want, got = (built(*pair, "torch").forward(base.ids).logits for pair in ((config, weights), (found, loaded)))
    assert compare.difference("logits", got, want).relative < (1e-12 if kind == "lora" else 1e-7)  # as above


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", WINGS)
def test_several_adapters(base, wing, tmp_path):
    model = adapted(base, "lora", ["c_attn", "lm_head"], adapter_name="one")
    second = peft.LoraConfig(r=3, lora_alpha=2, target_modules=["c_attn", "c_fc"], use_rslora=True, fan_in_fan_out=True)
    model.add_adapter("two", second)
    randomise(model, 8, ".two.")
    model.save_pretrained(tmp_path)
    model = model.eval().double()
    one = load_adapter(tmp_path / "one", CONFIG, base.weights, "one")
    both = load_adapter(tmp_path / "two", *one, "two")
    for chosen, gone in (("one", ("two",)), ("two", ("one",)), (["one", "two"], ())):
        model.base_model.set_adapter(chosen)
        got = built(*adapters.without(*both, gone), wing).forward(base.ids).logits
        assert compare.difference(str(chosen), got, logits(model, base)).relative < BOUNDS["float64"]
    with model.disable_adapter():
        want = logits(model, base)
    assert compare.difference("disabled", built(*both, wing).base().forward(base.ids).logits, want).relative < 1e-12
    got = built(*adapters.without(*both), wing).forward(base.ids).logits
    assert compare.difference("base", got, want).relative < BOUNDS["float64"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_everything_takes_the_head_along_merged(base, kind, tmp_path):
    """As `finetune classify --train lora` makes it; PEFT keeps the head of a classifier whole, without an adapter."""
    theirs = transformers.GPT2ForSequenceClassification(their_config(num_labels=3, pad_token_id=96)).eval()
    theirs.transformer.load_state_dict(base.theirs.transformer.state_dict())
    config, weights = heads.classifier(CONFIG, base.weights, 3, seed=4)
    config, weights = adapters.add(config, weights, Adapter("other", ("score", "*.q_proj"), 2), seed=3)
    config, weights = adapters.add(config, weights, Adapter("own", ("*",), RANK, 6.0, **OURS[kind]), seed=4)
    weights, rng = dict(weights), np.random.default_rng(4)
    for name in adapters.names(config):
        weights[name] = (weights[name] + 0.2 * rng.standard_normal(weights[name].shape)).astype(np.float32)
    save_adapter(tmp_path / "a", config, weights, "own")
    model = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    ids = base.ids % 96  # without padding the last token is read
    with torch.no_grad():
        want = model.double()(torch.from_numpy(ids)).logits.numpy()
    own = adapters.without(config, weights, ("other",))
    merged = adapters.merge(*own)[1]["score.weight"]
    unmerged = {**own[1], "score.weight": np.asarray(merged)}
    head = ("score.lora_A", "score.lora_B", "score.lora_magnitude_vector")
    adapter = own[0].adapters[0].with_(targets=("*.self_attn.*", "*.mlp.*"))
    whole = {name: array for name, array in unmerged.items() if not name.startswith(head)}
    again, loaded = load_adapter(tmp_path / "a", CONFIG, base.weights, "own")
    assert all(np.array_equal(loaded[name], whole[name]) for name in whole)
    assert not again.adapters[0].hits("score")
    for pair in ((own[0].with_(adapters=(adapter,)), whole), (again, loaded)):
        got = built(*pair, "torch").forward(ids).logits[:, -1]
        assert compare.difference("logits", got, want).relative < BOUNDS["float64"]
    got = built(*own, "torch").forward(ids).logits[:, -1]  # whose head was not merged, in float32
    assert compare.difference("logits", got, want).relative < 1e-6


def test_a_classifier_goes_both_ways(base, tmp_path):
    theirs = transformers.GPT2ForSequenceClassification(their_config(num_labels=3, pad_token_id=96)).eval()
    theirs.transformer.load_state_dict(base.theirs.transformer.state_dict())
    config, weights = heads.classifier(CONFIG, base.weights, 3, seed=4)
    config, weights = adapters.add(config, weights, Adapter(rank=RANK, targets=("*.q_proj", "*.down_proj")), seed=4)
    rng = np.random.default_rng(4)
    fresh = {n: rng.standard_normal(np.shape(weights[n])) for n in weights if ".lora_" in n or n == "score.weight"}
    weights = {**weights, **{name: (0.2 * array).astype(np.float32) for name, array in fresh.items()}}
    save_adapter(tmp_path / "a", config, weights)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "a").eval()
    model.save_pretrained(tmp_path / "b")
    ids = base.ids % 96  # without padding the last token is read
    with torch.no_grad():
        want = model.double()(torch.from_numpy(ids)).logits.numpy()
    again, loaded = load_adapter(tmp_path / "b", CONFIG, base.weights)
    assert again.num_labels == 3
    for pair in ((config, weights), (again, loaded)):
        got = built(*pair, "torch").forward(ids).logits[:, -1]
        assert compare.difference("logits", got, want).relative < BOUNDS["float64"]
    weights["score.bias"] = rng.standard_normal(3).astype(np.float32)  # left out, unless theirs has a place for it
    save_adapter(tmp_path / "a", config, weights)
    for wide in (False, True):
        own = copy.deepcopy(theirs)
        own.score = torch.nn.Linear(CONFIG.embed_dim, 3, bias=wide)
        model = peft.PeftModel.from_pretrained(own, tmp_path / "a").eval().double()
        with torch.no_grad():
            want = model(torch.from_numpy(ids)).logits.numpy()
        got = built(config, weights, "torch").forward(ids).logits[:, -1]
        assert (compare.difference("logits", got, want).relative < BOUNDS["float64"]) is wide


def test_canonical_names_are_those_of_llama(tmp_path):
    from common.variants import GatedMLP, GroupedQuery

    config = GPTConfig(31, 16, 24, 2, 4, ff_dim=20, qkv_bias=False, positions="none", norm="rms_norm")
    config = config.with_(attention=GroupedQuery(2), feed_forward=GatedMLP(), activation="silu", tie_embeddings=False)
    adapter = Adapter(targets=("*.k_proj", "*.gate_proj", "lm_head"), rank=3)
    config, weights = adapters.add(config, params.randomise(config, 1), adapter, seed=1)
    save_adapter(tmp_path / "a", config, weights)
    sizes = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
    theirs = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(theirs), tmp_path / "a")
    found = {name.removeprefix("base_model.model."): p.detach().numpy() for name, p in model.named_parameters()}
    names = adapters.names(config)
    assert names == [name for name in found if ".lora_" in name]
    assert all(np.array_equal(found[name], weights[name]) for name in names)
    model.save_pretrained(tmp_path / "b")
    bare = adapters.without(config, weights)
    again, loaded = load_adapter(tmp_path / "b", *bare)
    assert again.adapters[0].with_(targets=adapter.targets) == adapter
    assert all(np.array_equal(loaded[name], weights[name]) for name in names)
