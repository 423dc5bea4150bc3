"""Fused attention, half precision and compilation compute the same function, as well as their arithmetic allows."""

import importlib

import numpy as np
import pytest

from common import compare, params
from common.config import ATTENTION_KERNELS, COMPILED_KERNELS
from common.decoding import padded
from common.errors import UserError
from common.taps import Taps

DTYPES = ("float32", "bfloat16")
DIFFERENTIATED = ("JVPTracer", "LinearizeTracer")  # what JAX hands to functions whose gradients are taken


class Noise(Taps):
    """Multiplies everything a model shows by 1 + u U(-1, 1): the error that rounding each of these values makes."""

    def __init__(self, u, seed):
        super().__init__(("*",))
        self.u, self.rng = u, np.random.default_rng(seed)

    def under(self, name):
        return self

    def __call__(self, name, value):
        noise = 1 + self.u * self.rng.uniform(-1, 1, np.shape(value))
        return np.where(np.isfinite(value), value * noise, value)


OTHERS = [name for name in ATTENTION_KERNELS[1:] if name not in COMPILED_KERNELS]


@pytest.fixture(scope="module")
def batch(tokens):
    """A padded batch: (ids, positions, where no padding is)."""
    ids, positions = padded([tokens(8, seed=1).tolist(), tokens(5, seed=2).tolist()])
    return ids, positions, positions >= 0


@pytest.fixture(scope="module")
def truth(model_of, batch):
    return model_of("numpy").forward(batch[0], batch[1]).logits[batch[2]]


def error(model, batch, truth):
    logits = model.forward(batch[0], batch[1]).logits
    assert np.isfinite(logits).all()
    return compare.rms(logits[batch[2]] - truth)


def two_sided(one, other, free, luck=2.0):
    """Two roundings of one function: neither error is more than `luck` times the other, `free` aside."""
    assert one <= luck * other + free
    assert other <= luck * one + free


@pytest.mark.full_for("jax-float32", "jax-bfloat16-module", "jax-bfloat16-blockwise", "jax-bfloat16-loop")
@pytest.mark.parametrize("kernel", OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_kernel_is_as_accurate_as_the_plain_one(model_of, batch, truth, wing, dtype, kernel):
    plain, other = (error(model_of(wing, dtype=dtype, attention=k), batch, truth) for k in ("plain", kernel))
    two_sided(other, plain, compare.UNIT_ROUNDOFF[dtype] * compare.rms(truth))


@pytest.mark.full_for("jax")  # test_implementations.py holds JAX's fused attention, gradients too, to the plain one
@pytest.mark.parametrize("kernel", OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_another_kernel_are_as_accurate(model_of, tokens, small, wing, dtype, kernel):
    ids, targets = tokens(2, 2, 8)
    want = model_of("torch").gradients(ids, targets).grads
    plain, other = (model_of(wing, dtype=dtype, attention=k).gradients(ids, targets).grads for k in ("plain", kernel))
    names = [name for name, parameter in params.table(small).items() if not parameter.dead]
    errors = [
        np.array([compare.rms(grads[name] - want[name]) / compare.rms(want[name]) for name in names])
        for grads in (other, plain)
    ]
    u = compare.UNIT_ROUNDOFF[dtype]
    two_sided(*(compare.rms(one) for one in errors), u)
    for one, other in zip(*errors, strict=True):
        # a bias is few numbers, and what reaches it was rounded together, so luck counts more
        two_sided(one, other, 4 * u, luck=4.0)


def test_torchs_fused_attention_in_float64(model_of, batch, truth):
    assert error(model_of("torch", attention="fused"), batch, truth) < 1e-12 * compare.rms(truth)


def test_jaxs_fused_attention_refuses_float64_and_says_why(model_of, tokens):
    with pytest.raises(UserError, match="reduces in float32: use attention='plain' for float64"):
        model_of("jax", attention="fused").forward(tokens(2, 8))


@pytest.mark.full_for("jax")
def test_fused_attention_refuses_dropout_on_the_weights(fresh_model, with_dropout, tokens, wing):
    """Evaluation is possible, training is refused, and the model is unhurt by the refusal."""
    from common.config import TrainConfig

    model, (ids, targets) = fresh_model(wing, with_dropout, "float32", attention="fused"), tokens(2, 2, 8)
    before = model.forward(ids).logits
    model.start_training(TrainConfig())
    for attempt in (lambda: model.train_step(ids, targets), lambda: model.gradients(ids, targets, dropout=(0, 0))):
        with pytest.raises(UserError, match="dropout_attn 0"):
            attempt()
    np.testing.assert_array_equal(model.forward(ids).logits, before)
    assert model.step == 0
    other = fresh_model(wing, with_dropout.with_(dropout_attn=0.0), "float32", attention="fused")
    other.start_training(TrainConfig())
    assert np.isfinite(other.train_step(ids, targets).loss)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_what_the_arithmetic_explains(model_of, batch, truth, wing, dtype):
    """At most 10 times the error of an oracle whose every shown value is rounded once (it shows about one in four)."""
    oracle, u = model_of("numpy"), compare.UNIT_ROUNDOFF[dtype]
    noisy = [oracle.net(batch[0], batch[1], taps=Noise(u, seed))[0][batch[2]] for seed in range(5)]
    explained = np.median([compare.rms(n - truth) for n in noisy])
    got = error(model_of(wing, dtype=dtype), batch, truth)
    assert explained / 10 < got < 10 * explained


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_wings_are_equally_accurate(model_of, batch, truth, dtype):
    one, other = (error(model_of(wing, dtype=dtype), batch, truth) for wing in ("torch", "jax"))
    two_sided(one, other, compare.UNIT_ROUNDOFF[dtype] * compare.rms(truth))


@pytest.mark.full_for("jax")
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(model_of, fresh_model, tokens, wing):
    from common.config import TrainConfig

    found = model_of(wing, dtype="bfloat16").forward(tokens(2, 8), taps=("*",))
    half = found.taps["model.layers.0.self_attn.q"]
    np.testing.assert_array_equal(half.view(np.uint32) & 0xFFFF, 0)  # the lower half of every float32 is empty
    assert found.logits.dtype == np.float32
    if wing == "jax":  # PyTorch's matmul of two bfloat16 has no wider output on a CPU
        assert (found.logits.view(np.uint32) & 0xFFFF).any(), "the logits lost the precision of reductions"
    model = fresh_model(wing, dtype="bfloat16")
    model.start_training(TrainConfig(schedule="constant", learning_rate=1e-5))
    losses = [model.train_step(*tokens(2, 2, 8)).loss for _ in range(3)]
    assert np.isfinite(losses).all()
    # steps of 1e-5 are smaller than a bfloat16 of size 1 can show, so the parameters must be float32
    moved = model.weights()["model.norm.weight"] != params.randomise(model.config, 20)["model.norm.weight"]
    assert moved.mean() > 0.9


@pytest.mark.parametrize(("wing_name", "kernel"), [("torch", "flash_attention_for_cpu"), ("jax", "XLA")])
def test_the_kernel_that_runs_is_named(model_of, wing_name, kernel):
    assert model_of(wing_name, dtype="float32", attention="fused").about() == {"kernel": kernel}
    assert model_of(wing_name, dtype="float32").about() == {}


@pytest.mark.parametrize("shape", [(), (3, 5, False), (2, 8, True)])
def test_the_kernel_is_that_of_the_calls_that_are_asked_about(model_of, monkeypatch, wing, shape):
    """Without a mask and with one, which another kernel may take, or none: that is no error, but a row's name."""
    accounts = importlib.import_module(f"{wing}_impl.accounts")
    seen, attention = [], accounts.fused_attention

    def watched(q, k, v, mask, reduce):
        differentiated = q.requires_grad if wing == "torch" else type(q).__name__ in DIFFERENTIATED
        seen.append((q.shape[0], q.shape[2], differentiated, mask is not None))
        if mask is not None:
            raise UserError("not with a mask")
        return attention(q, k, v, mask, reduce)

    monkeypatch.setattr(accounts, "fused_attention", watched)
    model = model_of(wing, dtype="float32", attention="fused")
    (kernel,) = model.about(*shape).values()
    batch, length, gradients = shape or (1, min(128, model.config.context_length), True)
    assert seen == [(batch, length, gradients, masked) for masked in (False, True)]
    assert kernel.endswith("; with a mask none")


def test_flags_name_tf32_and_what_decides_it(model_of):
    """As read back from the framework after a model was built, and in the words that all wings share."""
    import torch

    from common import backend

    for name in ("torch", "jax"):
        model_of(name, dtype="float32")
        assert backend.load(name).flags()["tf32"] is False
    assert backend.load("jax").flags()["matmul_precision"] == "highest"
    flags = backend.load("torch").flags()
    assert (flags["fp32_precision"], flags["fp32_precision_cuda_matmul"]) == ("ieee", "ieee")
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        flags = backend.load("torch").flags()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert (flags["tf32"], flags["fp32_precision"], flags["fp32_precision_cuda_matmul"]) == (True, "ieee", "tf32")


def test_the_global_norm_is_exact_for_large_tensors(wing):
    """Over 4e6 numbers PyTorch's own sum in float32 is off by 1e-4, and a clipped step with it."""
    import importlib

    xp = importlib.import_module({"torch": "torch", "jax": "jax.numpy"}[wing])
    optim = importlib.import_module(f"{wing}_impl.optim")
    grads = {"a": np.random.default_rng(0).standard_normal((6000, 700)).astype(np.float32), "b": np.ones(3, np.float32)}
    want = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in grads.values()))
    _, norm = optim.clip_by_global_norm({name: xp.asarray(g) for name, g in grads.items()}, None)
    assert float(norm) == pytest.approx(want, rel=2e-6)
