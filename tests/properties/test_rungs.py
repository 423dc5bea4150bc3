"""Rungs of the ladder that change no numbers, or say how: masks, GELU, checkpointed blocks, kept buffers, TF32."""

import re
from typing import ClassVar

import numpy as np
import pytest

from common import compare, params
from common.cases import CASES
from common.config import Execution, GPTConfig, SamplingConfig, TrainConfig
from common.errors import UserError

DEEP = GPTConfig(61, 64, 64, 6, 4, dropout_attn=0.1, dropout_shortcut=0.1)
# dropout everywhere, in adapters, terms of the loss that layers show, keys and values that layers hand on
TOLD = ("gpt_dropout", "gpt_lora", "gpt_balance", "gpt_sparse", "gpt_sharing")


def checkpointed(make, *which, **how):
    return [make("torch", *which, layers=layers, **how) for layers in ("loop", "checkpointed")]


@pytest.mark.parametrize("name", TOLD)
def test_checkpointed_blocks_of_pytorch_give_the_same_bits(name, case_model, late):
    """Gradients with dropout, every shown value and decoding through a cache: no operation is another one."""
    plain, other = checkpointed(case_model, CASES[name])
    ids, positions = late(CASES[name], 2, 6)
    want, got = (model.gradients(ids, np.roll(ids, -1, 1), dropout=(3, 1)) for model in (plain, other))
    assert got.value == want.value
    assert all(np.array_equal(got.grads[name], gradient) for name, gradient in want.grads.items())
    want, got = (model.forward(ids, positions, taps=("*",)) for model in (plain, other))
    assert set(got.taps) == set(want.taps)
    assert all(np.array_equal(got.taps[name], value) for name, value in want.taps.items())
    prompts, sampling = [[1, 2, 3], [4]], SamplingConfig(4)
    assert other.generate(prompts, sampling) == plain.generate(prompts, sampling)


@pytest.mark.parametrize("how", [{"rng": "native"}, {"base": "nf4"}, {"attention": "fused"}], ids=str)
def test_checkpointed_blocks_in_other_forms(how, fresh_model, tokens):
    """Masks of PyTorch's own generator are drawn again alike; bits and fused kernels are called again."""
    config = CASES["gpt_lora"].config if "base" in how else DEEP.with_(num_layers=2)
    config = config.with_(dropout_attn=0.0) if how.get("attention") == "fused" else config
    plain, other = checkpointed(fresh_model, config, "float32", **how)
    ids = tokens(2, 8) % config.vocab_size
    for model in (plain, other):
        model.start_training(TrainConfig(steps=4, warmup_steps=0, learning_rate=1e-2))
    for _ in range(2):
        want, got = (model.train_step(ids, np.roll(ids, -1, 1)) for model in (plain, other))
        assert (got.loss, got.grad_norm) == (want.loss, want.grad_norm)
    want, got = plain.weights(), other.weights()
    assert all(np.array_equal(got[name], weight) for name, weight in want.items())


def test_checkpointed_blocks_hold_less(fresh_model):
    """At the peak of a step, by live tensors: of a block's 18 B T E numbers and its scores 10 B T E stay."""
    plain, other = checkpointed(fresh_model, DEEP, "float32")
    found = [model.planned_bytes("train", 4, 64)["activation"] for model in (plain, other)]
    assert found[1] < 0.6 * found[0]
    assert other.saved_bytes(4, 64) is None


def test_compiled_blocks_choose_for_themselves_what_they_keep(fresh_model):
    with pytest.raises(UserError, match="A compiled block chooses by itself what it keeps"):
        fresh_model("torch", layers="checkpointed", compile=True)


@pytest.mark.full  # four programs of JAX
def test_kept_buffers_are_not_written_over(fresh_model, tokens):
    """The same steps, beside the arrays that they were given; and XLA's plan shares nothing."""
    config = GPTConfig(61, 64, 64, 1, 4)
    donated, kept = (fresh_model("jax", config, "float32", buffers=way) for way in ("donated", "kept"))
    ids, told, held = tokens(2, 8), [], []
    for model in (donated, kept):
        model.start_training(TrainConfig(steps=4, warmup_steps=0))
        held.append(dict(model.params))
        told.append([model.train_step(ids, np.roll(ids, -1, 1)) for _ in range(2)])
    assert told[0] == told[1]
    assert all(array.is_deleted() for array in held[0].values())
    assert not any(array.is_deleted() for array in held[1].values())
    assert kept.generate([[1, 2]], SamplingConfig(4)) == donated.generate([[1, 2]], SamplingConfig(4))
    plans = [model.planned_bytes("train", 2, 8) for model in (donated, kept)]
    state = 3 * sum(array.nbytes for array in held[1].values())  # weights and two averages
    assert (plans[0]["aliased"], plans[1]["aliased"]) == (state, 0)
    assert plans[1]["planned"] - plans[0]["planned"] > state / 2  # XLA may compute in memory that results will have


def test_nothing_is_planned_for_operations_that_run_one_by_one(fresh_model):
    assert fresh_model("jax", compile=False).planned_bytes("train", 2, 8) is None


def test_pytorch_has_no_buffers_to_keep(fresh_model):
    with pytest.raises(UserError, match="PyTorch writes in place what moves; buffers='kept' is JAX's"):
        fresh_model("torch", buffers="kept")


@pytest.mark.parametrize(("name", "value"), [("buffers", "kept"), ("masks", "stored"), ("gelu", "own")])
def test_what_was_stored_before_there_were_such_fields_is_still_what_would_be_written(name, value):
    assert name not in Execution().to_dict()
    assert getattr(Execution.from_dict(Execution(**{name: value}).to_dict()), name) == value


@pytest.mark.full_for("jax")  # eight programs; the mode itself is tried with all others
@pytest.mark.parametrize("kernel", ["plain", pytest.param("loop", marks=pytest.mark.full)])
def test_stored_masks_are_those_that_calls_make(wing, kernel, fresh_model, tokens):
    """The same bits: texts shorter than the context, gradients with dropout, padding, caches, decoding. Rows whose
    positions only count have none to make a mask of."""
    config = DEEP.with_(num_layers=2, context_length=12)
    made, stored = (fresh_model(wing, config, attention=kernel, masks=way) for way in ("plain", "stored"))
    ids = tokens(2, 8) % config.vocab_size
    assert stored._places(np.arange(8)[None]) is None
    assert made._places(np.arange(8)[None]) is not None
    for places in (None, np.array([[-1, -1, 0, 1, 2, 3, 4, 5], list(range(8))])):
        assert np.array_equal(stored.forward(ids, places).logits, made.forward(ids, places).logits)
    want, got = (model.gradients(ids, np.roll(ids, -1, 1), dropout=(3, 1)) for model in (made, stored))
    assert got.value == want.value
    assert all(np.array_equal(got.grads[name], gradient) for name, gradient in want.grads.items())
    for cached in (True, False):
        sampling = SamplingConfig(5, cache=cached)
        assert stored.generate([[1, 2, 3], [4]], sampling) == made.generate([[1, 2, 3], [4]], sampling)


def test_every_layer_of_pytorch_keeps_a_mask_and_jax_has_it_in_its_programs(fresh_model):
    config = DEEP.with_(num_layers=2)
    masks = [
        block.self_attn.counted.mask_11TS
        for block in fresh_model("torch", config, "float32", masks="stored").net.model.layers
    ]
    assert [mask.shape for mask in masks] == [(1, 1, 64, 64)] * 2
    assert masks[0].data_ptr() != masks[1].data_ptr()
    texts = {}
    for way in ("plain", "stored"):
        model = fresh_model("jax", config, "float32", masks=way)
        program, *args = model._counted("train", 2, 8, "", None)
        with model.scope():
            texts[way] = program.lower(*args).as_text()
    constants = [line for line in texts["stored"].splitlines() if "stablehlo.constant" in line]
    assert any("1x1x8x8xi1" in line for line in constants)
    assert not any("stablehlo.constant" in line and "1x1x8x8xi1" in line for line in texts["plain"].splitlines())


@pytest.mark.parametrize(
    ("changes", "how", "words"),
    [
        ({}, {"attention": "fused"}, "masks='stored' keeps causal masks, and attention='fused' takes none"),
        ({"causal": False}, {}, "masks='stored' keeps causal masks, and a model with causal=False has none"),
        ({"attention": ("grouped_query",)}, {}, "Grouped-query attention has no masks='stored': use masks='plain'"),
    ],
    ids=["fused", "not causal", "grouped"],
)
def test_masks_are_stored_where_they_are_used(wing, changes, how, words, fresh_model):
    with pytest.raises(UserError, match=re.escape(words)):
        fresh_model(wing, DEEP.with_(num_layers=1, **changes), "float32", masks="stored", **how)


@pytest.mark.parametrize(("wing", "activation"), [("torch", "gelu_tanh"), ("torch", "gelu"), ("jax", "gelu_tanh")])
@pytest.mark.parametrize("feed_forward", ["mlp", pytest.param("gated_mlp", marks=pytest.mark.full)])
def test_forms_of_gelu_are_the_same_function(wing, activation, feed_forward, fresh_model, tokens):
    """Loss and gradients in float64; PyTorch keeps more of what is written out."""
    config = DEEP.with_(num_layers=1, activation=activation, feed_forward=(feed_forward,), dropout_attn=0.0)
    form, ids = {"torch": "formula", "jax": "own"}[wing], tokens(2, 8) % DEEP.vocab_size
    plain, other = (fresh_model(wing, config, gelu=gelu) for gelu in ("plain", form))
    want, got = (model.gradients(ids, np.roll(ids, -1, 1)) for model in (plain, other))
    assert got.value == pytest.approx(want.value, rel=1e-12)
    table = params.table(config)
    for name, gradient in want.grads.items():
        if not table[name].dead:  # of which rounding alone is left
            assert compare.rms(got.grads[name] - gradient) <= 1e-12 * compare.rms(gradient), name
    if wing == "torch":
        assert other.saved_bytes(2, 8) > plain.saved_bytes(2, 8)


def test_forms_of_gelu_that_only_the_other_wing_has_are_refused(fresh_model):
    with pytest.raises(UserError, match="gelu='own' is JAX's"):
        fresh_model("torch", gelu="own")
    with pytest.raises(UserError, match="gelu='formula' is PyTorch's"):
        fresh_model("jax", gelu="formula")


@pytest.mark.parametrize(("dtype", "device"), [("float32", "cpu"), ("bfloat16", "cuda"), ("float64", "cuda:1")])
def test_tf32_is_refused_where_nothing_is_cut(dtype, device):
    words = f"products='tf32' is for float32 on a GPU, not for {dtype} on {device}: leave it out."
    with pytest.raises(UserError, match=re.escape(words)):
        Execution(dtype=dtype, device=device, products="tf32")


@pytest.fixture
def switches():
    """How PyTorch's switch stands whenever something is multiplied."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        found: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(part in function.name() for part in ("mm", "linear", "matmul", "einsum")):
                self.found.add(torch.backends.cuda.matmul.fp32_precision)
            return function(*args, **(kwargs or {}))

    return Seen


def pretend(model, monkeypatch):
    """Have it take the switch of TF32 on a GPU; what it computes runs here."""
    from torch_impl.precision import multiplying

    monkeypatch.setattr(model, "scope", lambda: multiplying("tf32"))
    return model


def test_pytorchs_switch_is_set_inside_of_calls_alone(fresh_model, tokens, switches, monkeypatch):
    """Forward and on the way back, in evaluation, training, decoding and what benchmarks time; afterwards it is as it
    was, and follows the wider one as before."""
    import torch

    model, ids = pretend(fresh_model("torch", DEEP, "float32"), monkeypatch), tokens(2, 8)
    switch = torch.backends.cuda.matmul
    model.start_training(TrainConfig(steps=4, warmup_steps=0))
    calls = {
        "forward": lambda: model.forward(ids),
        "loss": lambda: model.loss(ids, ids),
        "log_probs": lambda: model.log_probs(ids, ids),
        "gradients": lambda: model.gradients(ids, ids),
        "train_step": lambda: model.train_step(ids, ids),
        "component": lambda: model.component("model.layers.0.mlp", np.ones((1, 4, 64)), np.ones((1, 4, 64))),
        "extend": lambda: model.extend(model.new_cache(2, 16), ids),
        "generate": lambda: model.generate([[1, 2]], SamplingConfig(3)),
        "train": model.prepare("train", ids[None], ids[None]),
    }
    for name, call in calls.items():
        switches.found.clear()
        with switches():
            call()
        assert switches.found == {"tf32"}, name
        assert switch.fp32_precision == "ieee", name
    stream = model.stream([[1, 2]], SamplingConfig(3))
    next(stream)
    assert switch.fp32_precision == "ieee"  # the caller's own work is none of ours
    with pytest.raises(UserError):
        model.forward(np.full((1, 4), 99, np.int32))
    assert switch.fp32_precision == "ieee"
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    assert switch.fp32_precision == "tf32"  # what nobody set follows the wider one
    monkeypatch.undo()


def test_records_name_the_switch_of_the_call(fresh_model, monkeypatch):
    """What a row says of its products, by the words from which the format is read whose peak holds."""
    from benchmarks.harness.summary import multiplies

    for wing, words in (("torch", "tf32"), ("jax", "tensorfloat32")):
        model = fresh_model(wing, DEEP, "float32")
        assert model.about() == {}
        model.execution = Execution(device="cuda", products="tf32")
        about = model.about()
        assert about["tf32"] is True
        assert about["fp32_precision" if wing == "torch" else "matmul_precision"] == words
        assert multiplies({"compute": "float32", **about}) == "tf32"


@pytest.mark.parametrize(("products", "words"), [("plain", "HIGHEST"), ("tf32", "HIGH")])
def test_jaxs_programs_ask_for_it(fresh_model, products, words):
    """All products of a training step's program, forward and back."""
    import jax

    model = fresh_model("jax", DEEP.with_(num_layers=1), "float32")
    program, *args = model._counted("train", 2, 8, "", None)
    model.execution = Execution(device="cuda", products=products)
    with model.scope():
        dots = [line for line in program.lower(*args).as_text().splitlines() if "dot_general" in line]
    assert len(dots) > 20
    assert all(f"precision = [{words}, {words}]" in line for line in dots)
    assert jax.config.jax_default_matmul_precision is None
