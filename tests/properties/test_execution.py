"""Loop or scan over the layers, compiled or operation by operation: the same function."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from common import compare, params
from common.cases import CASES
from common.config import SamplingConfig, TrainConfig

LENGTH, BOUND = 6, 1e-12  # float64 rounding in another order of operations: 1e-14 here
TRAIN = TrainConfig(steps=5, warmup_steps=1, learning_rate=1e-2, clip_norm=0.5, seed=3)
WAYS = {
    "scan": ("jax", {"layers": "scan"}),
    "checkpointed": ("jax", {"layers": "checkpointed"}),
    "checkpointed torch": ("torch", {"layers": "checkpointed"}),
    "no jit": ("jax", {"compile": False}),
}
COMPILED = ("torch", {"compile": True})  # takes half a minute


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=BOUND * np.abs(want).max())


def check_named(got, want, config):
    """Each array by its name; the gradient of a dead parameter is noise, which AdamW makes whole steps of."""
    dead = tuple(name for name, parameter in params.table(config).items() if parameter.dead)
    assert set(got) == set(want)
    for name in want:
        if not name.startswith(dead or ("\0",)):
            assert compare.difference(name, got[name], want[name]).relative <= BOUND, name


def check_forward_and_cache(plain, other, ids, positions):
    """Logits and taps of a full forward, logits through a cache, if there can be one."""
    want, got = (model.forward(ids, positions, taps=("*",)) for model in (plain, other))
    close(got.logits, want.logits)
    assert set(got.taps) == set(want.taps)
    for tap, value in want.taps.items():
        assert compare.difference(tap, got.taps[tap], value).relative <= BOUND, tap
    if not other.config.cacheable:
        return
    cache = other.new_cache(len(ids), 10)
    parts = [other.extend(cache, ids[:, p], positions[:, p]) for p in (slice(0, 4), slice(4, LENGTH))]
    close(np.concatenate(parts, axis=1), want.logits)


def check_gradients(plain, other, ids):
    """With dropout: the masks must be the same too."""
    want, got = (model.gradients(ids, np.roll(ids, -1, 1), dropout=(3, 1)) for model in (plain, other))
    assert got.value == pytest.approx(want.value, rel=BOUND)
    check_named(got.grads, want.grads, plain.config)


def check_training(models, ids):
    """Losses, norms, weights and slots after three steps with dropout."""
    for model in models:
        model.start_training(TRAIN)
    for _ in range(3):
        one, other = (model.train_step(ids, np.roll(ids, -1, 1)) for model in models)
        assert (other.loss, other.grad_norm) == pytest.approx((one.loss, one.grad_norm), rel=BOUND)
    for part in ("weights", "optimizer_slots"):
        want, got = (getattr(model, part)() for model in models)
        check_named(got, want, models[0].config)


@pytest.mark.full_for("gpt_dpo", "gpt_classifier", "gpt_lora", "gpt_dora")
@pytest.mark.full_for(
    "untied", "wide", "dropout", "muon", "latent", "sparse", "experts", "balance", "sharing", "today", "hybrid", "long"
)
def test_forward_and_cache_by_scan(causal_case, case_model, late):
    plain, scan = (case_model("jax", causal_case, layers=layers) for layers in ("loop", "scan"))
    check_forward_and_cache(plain, scan, *late(causal_case, 2, LENGTH))


@pytest.mark.full
@pytest.mark.parametrize(("name", "layers"), [("gpt_sharing", 6), ("gpt_hybrid", 5)])
@pytest.mark.parametrize("way", ["scan", "checkpointed"])
def test_patterns_that_end_within_a_period(fresh_model, late, name, layers, way):
    """Whole periods are scanned; what is behind the last one is run, trained, stored and resumed like all else."""
    config = CASES[name].config.with_(num_layers=layers, dropout_embed=0.1, dropout_attn=0.2, dropout_shortcut=0.3)
    assert 0 < layers % config.period < config.period < layers
    plain, other = (fresh_model("jax", config, layers=how) for how in ("loop", way))
    ids, positions = late(CASES[name], 2, LENGTH)
    check_forward_and_cache(plain, other, ids, positions)
    check_gradients(plain, other, ids)
    check_named(other.weights(), plain.weights(), config)
    check_training([plain, other], ids)


@pytest.mark.full
def test_forward_and_cache_without_jit(costly_case, case_model, late):
    """All that a layer does, its caches and its taps, where nothing is traced: numbers of loops are Python's then."""
    jitted, free = (case_model("jax", costly_case, compile=compiled) for compiled in (None, False))
    check_forward_and_cache(jitted, free, *late(costly_case, 2, LENGTH))


def test_keys_are_chosen_without_jit(case_model, late):
    """By a loop over bits, in Python."""
    jitted, free = (case_model("jax", CASES["gpt_sparse"], compile=compiled) for compiled in (None, False))
    ids, positions = late(CASES["gpt_sparse"], 2, LENGTH)
    close(free.forward(ids, positions).logits, jitted.forward(ids, positions).logits)


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_gradients(case, case_model, late, way):
    name, execution = WAYS[way]
    models = [case_model(name, case, rates="all", **options) for options in ({}, execution)]
    check_gradients(*models, late(case, 2, LENGTH)[0])


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_training(case, fresh_case_model, late, way):
    name, execution = WAYS[way]
    models = [fresh_case_model(name, case, rates="all", **options) for options in ({}, execution)]
    check_training(models, late(case, 2, LENGTH)[0])


@pytest.mark.full
def test_compiled_blocks_of_pytorch(case, fresh_case_model, late):
    """Forward, cache, generated text, gradients and training of PyTorch with compile=True."""
    name, execution = COMPILED
    models = [fresh_case_model(name, case, rates="all", **options) for options in ({}, execution)]
    ids, positions = late(case, 2, LENGTH)
    check_forward_and_cache(*models, ids, positions)
    prompts, sampling = [[1, 2, 3], [4]], SamplingConfig(max_new_tokens=4)
    assert models[1].generate(prompts, sampling) == models[0].generate(prompts, sampling)
    check_gradients(*models, ids)
    check_training(models, ids)


@pytest.mark.full
def test_compilation_never_turns_to_eager(fresh_model, tokens, monkeypatch):
    """Past the limit of kinds of inputs a call raises; without, a second kind compiles."""
    import torch
    from torch._dynamo.exc import FailOnRecompileLimitHit

    from torch_impl import stack

    torch.compiler.reset()
    ids = tokens(2, 8)
    fresh_model("torch", compile=True).gradients(ids, ids)
    monkeypatch.setattr(stack, "LIMIT", 1)
    try:
        with pytest.raises(FailOnRecompileLimitHit):
            fresh_model("torch", compile=True).forward(ids)
    finally:
        monkeypatch.undo()
        fresh_model("torch", compile=True)  # sets the limit again
        torch.compiler.reset()
    assert fresh_model("torch", compile=True).forward(ids).logits.shape == (2, 8, 61)


@pytest.mark.full
def test_compiled_programs_make_room_for_others(fresh_model, monkeypatch):
    """A process may map only so much memory: many programs are forgotten, and made again when they are called."""
    programs = importlib.import_module("jax_impl.programs")
    ids, model = np.array([[1, 2, 3]]), fresh_model("jax")
    before = model.forward(ids).logits
    assert model.programs.forward._cache_size() > 0
    monkeypatch.setattr(programs, "MAPPINGS", 0)
    programs.make_room()
    assert not Path("/proc/self/maps").exists() or model.programs.forward._cache_size() == 0
    np.testing.assert_array_equal(model.forward(ids).logits, before)
