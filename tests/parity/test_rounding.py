"""C3: honest wings pass, and sums, softmax or losses in too narrow a type are found although the outputs hide them."""

import numpy as np
import pytest
import torch
from altered import failed, rows, session, with_methods

from common import backend as door
from common.cases import CASES
from common.compare import difference
from common.parity import noise, rounding, ulps
from common.parity.thresholds import ROUNDOFF, bounds
from common.parity.trial import Session, Trial, truth

TORCH = ("torch", "torch")


def with_modules(kind, change):
    """PyTorch models in which `change` is applied to every module of that class name."""

    def build(honest, config, weights, execution):
        model = honest(config, weights, execution)
        for module in model.net.modules():
            if type(module).__name__ == kind:
                change(module)
        return model

    return build


def narrow_sums(module):
    module.reduce = torch.bfloat16


def narrow_input(bits):
    """The input of a module is rounded to so many significant bits (11: TF32, which products of exact numbers pass)."""

    def change(module):
        honest = module.forward

        module.forward = lambda x: honest(rounded_to(bits, x))

    return change


def rounded_to(bits, x):
    fraction, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(fraction * 2**bits) / 2**bits, exponent).to(x.dtype)


def narrow_adapters(module):
    """What adapters add is rounded to 5 significant bits."""
    honest = module.change
    if honest is not None:
        module.change = lambda linear, x, y: y + rounded_to(5, honest(linear, x, y) - y)


def narrow_loss(loss, ids, targets):
    return float(torch.tensor(loss(ids, targets)).bfloat16())


@pytest.mark.full  # the quick part is tests/parity/test_cases.py
@pytest.mark.parametrize("case", ["layer_norm", "block", "gpt"])
def test_honest_wings_pass(case):
    found = rows(rounding, session(), case)
    assert not failed(found), [found[key] for key in failed(found)]
    tight = [row for row in found.values() if row.rule == "own rounding"]
    assert all(row.used > 0.05 for row in tight)  # the sharpest rule is no formality


@pytest.mark.full_for("gpt_dora")  # gpt_lora stands for it
@pytest.mark.parametrize(
    ("bug", "tier", "case", "what"),
    [
        (with_modules("LayerNorm", narrow_sums), "bfloat16", "gpt", "own rounding"),
        (with_modules("LayerNorm", narrow_sums), "bfloat16", "layer_norm", "own rounding"),
        (with_modules("LayerNorm", narrow_sums), "float32", "gpt", None),
        (with_modules("Linear", narrow_input(11)), "float32", "gpt", "own rounding"),
        (with_modules("Linear", narrow_input(5)), "float32", "mlp", "matmul"),
        (with_modules("Linear", narrow_adapters), "bfloat16", "gpt_lora", "own rounding of adapters"),
        (with_modules("Linear", narrow_adapters), "bfloat16", "gpt_dora", "own rounding of adapters"),
        (None, "bfloat16", "gpt_lora", None),
        (None, "bfloat16", "gpt_dora", None),
        (with_methods(loss=narrow_loss), "bfloat16", "gpt", "loss of own logits"),
        (with_methods(loss=narrow_loss), "float32", "gpt", "loss"),
    ],
)
def test_narrow_arithmetic_is_found(bug, tier, case, what):
    found = failed(rows(rounding, session(bug, TORCH, tiers=(tier,)), case))
    assert found == set() if what is None else (what, tier) in found


def test_a_worse_wing_fails_although_it_keeps_its_cap():
    """The two-sided rule: an error five times the other's, with all in a range that rounding could explain."""

    def worse(forward, *args, **kwargs):
        out = forward(*args, **kwargs)
        clean = truth("gpt").forward.logits
        if out.logits.shape == clean.shape and not kwargs.get("taps"):
            out.logits = clean + 5 * (out.logits - clean)
        return out

    found = rows(rounding, session(with_methods(forward=worse), TORCH, tiers=("bfloat16",)), "gpt")
    assert ("logits", "bfloat16") in failed(found)
    assert ("logits cap", "bfloat16") not in failed(found)


def test_gradients_are_judged():
    def worse(gradients, *args, **kwargs):
        found = gradients(*args, **kwargs)
        name = "model.layers.0.mlp.up_proj.weight"
        found.grads[name] = found.grads[name] * (1 + 3e-5)
        return found

    found = failed(rows(rounding, session(with_methods(gradients=worse), TORCH, tiers=("float32",)), "gpt"))
    assert found == {("gradients", "float32"), ("gradients cap", "float32")}


def test_one_implementation_alone_has_caps_only():
    alone = Session({"torch": door.load("torch")}, quick=True)
    found = rows(rounding, alone, "mlp")
    assert not failed(found)
    assert {what for what, _ in found} == {"output cap", "gradients cap", "matmul"}
    assert not rows(rounding, Session(alone.subjects, tiers=("float64",), quick=True), "mlp")


def test_noise_is_of_the_size_of_rounding():
    """One uniform factor: relative RMS u / sqrt(3), at every tap and nowhere else."""
    x, unit = np.ones(40_000), ROUNDOFF["bfloat16"]
    assert difference("", noise.Noise(unit, 0)("x", x), x).relative == pytest.approx(unit / np.sqrt(3), rel=0.02)
    assert not np.array_equal(noise.Noise(unit, 0)("x", x), noise.Noise(unit, 1)("x", x))
    assert not np.array_equal(noise.Noise(unit, 0)("x", x), noise.Noise(unit, 0).under("deeper")("x", x))


def test_steps_from_given_values_show_only_their_own_error():
    """An error planted at one tap is seen there, and not where it is handed on."""
    fact = truth("gpt")
    name = "model.layers.0.self_attn.output"
    wrong = fact.forward.taps[name] * 1.5
    given = {**noise.step_by_step(fact, {name: wrong}), name: wrong}
    again = noise.step_by_step(fact, given)
    assert difference("", given["logits"], fact.forward.logits).relative > 1e-2
    off = [tap for tap, value in given.items() if difference(tap, value, again[tap]).relative > 1e-12]
    assert off == [name]


def test_elementwise_budgets():
    honest = session()
    found = {(r.what, r.tier): r for r in ulps.rows_of("C3", honest) if hasattr(r, "what")}
    assert set(found) == ulps.declared() == rounding.declared_once(honest)
    assert all(row.passed for row in found.values())
    assert min(row.used for row in found.values()) > 0.2

    class Rough:
        def elementwise(self, name, x, dtype):
            return door.load("torch").elementwise(name, x, dtype) * np.float32(1 + 2**-19)

    rough = {r.what: r for r in ulps.rows_of("C3", Session({"rough": Rough()})) if hasattr(r, "what")}
    assert not any(row.passed for row in rough.values())


def test_numbers_for_products_are_exact_in_every_tier():
    import ml_dtypes

    x = np.asarray(noise.rounded(np.random.default_rng(0).standard_normal(1000), bits=8))
    assert np.array_equal(x, x.astype(ml_dtypes.bfloat16).astype(np.float64))


def test_every_operation_on_rounded_numbers_is_rounded():
    import ml_dtypes

    draw = np.random.default_rng(0)
    x, y = (noise.rounded(draw.standard_normal((40, 3)), bits=8) for _ in range(2))
    narrow = np.asarray(x).astype(ml_dtypes.bfloat16), np.asarray(y).astype(ml_dtypes.bfloat16)
    assert np.array_equal(x * y + x, (narrow[0] * narrow[1] + narrow[0]).astype(np.float64))
    product = np.asarray(x) @ np.asarray(y).T
    assert np.array_equal(x @ y.T, product.astype(ml_dtypes.bfloat16).astype(np.float64))


def test_only_what_adapters_make_has_roundings_of_theirs():
    fact = truth("gpt_lora")
    steps = noise.step_by_step(fact, fact.forward.taps)
    found = noise.of_adapters(fact, fact.forward.taps, steps, "bfloat16")
    assert set(found) == {"model.layers.0.self_attn.q", "model.layers.0.mlp.output", "logits"}
    assert all(0.3 < size / ROUNDOFF["bfloat16"] < 3 for size in found.values())


def test_nats_are_allowed_by_the_size_of_the_logits():
    for size, allowed in ((1.0, 1e-2), (4.0, 1e-2), (8.0, 4e-2)):
        assert bounds("nats", {"torch": 0.0}, {"logits": size}) == {"torch": allowed}


def test_tf32_needs_a_gpu():
    assert "tf32" not in rounding.tiers(Session({}, tiers=("tf32", "float32")))
    assert Trial(Session({}, tiers=("float64",)), CASES["mlp"]) is not None
