"""Every registered case: both wings against the oracle's vectors, float64 and float32.

Bounds. float64: 1e-12 relative RMS; rounding of these depths measures 2e-15 at most, real bugs 1e-7 and more.
float32: a wing may be at most twice as far from the oracle as the other wing plus two unit roundoffs, and either way
round, so that neither is worse than the arithmetic makes it (measured: at most 2.02 without the roundoffs, from XLA's
tanh). And it may be at most CONTROL times as far as a float64 run whose weights were moved by one float32 rounding
each, which knows the conditioning (measured: at most 2.9).
"""

import math
from pathlib import Path

import numpy as np
import pytest

from common import backend as door
from common import params, vectors
from common.cases import CASES
from common.compare import UNIT_ROUNDOFF, difference, rms
from common.config import Execution

FOLDER = Path(__file__).parent.parent / "vectors"
WINGS = ("torch", "jax")
EXACT = 1e-12
DEAD = 1e-13
CONTROL = 5


@pytest.fixture(scope="module")
def stored():
    return {name: vectors.read(case, FOLDER) for name, case in CASES.items()}


def run(wing, case, dtype, nudge=0.0):
    """Everything that the vectors of a case expect, computed by one wing; `nudge` moves each weight by that share."""
    weights = {name: w * (1 + nudge * np.sign(params.draw(1, name, w.shape))) for name, w in case.weights().items()}
    model = door.load(wing).build(case.config, weights, Execution(dtype=dtype))
    out = {}
    if case.path:
        output, gradients = model.component(case.path, *case.signals())
        return {"output": output} | {f"grad/{name}": g for name, g in gradients.grads.items()}
    ids, targets = case.tokens()
    out["logits"] = model.forward(ids).logits[:, -vectors.STORED_POSITIONS :]
    gradients = model.gradients(ids, targets, dropout=(case.seed, vectors.DROPOUT_STEP))
    out["loss"] = np.array(gradients.value)
    if case.full_gradient:
        out |= {f"grad/{name}": g for name, g in gradients.grads.items()}
    else:
        for name, parameter in params.table(case.config).items():
            out[f"slope/{name}"] = (gradients.grads[name].astype(np.float64) * vectors.direction(case, parameter)).sum()
    for number, sampling in enumerate(case.sampling):
        out[f"tokens/{number}"] = np.array(model.generate(case.prompts(), sampling), np.int32)
    if case.train_steps:
        model.start_training(case.train)
        results = [model.train_step(ids, targets) for _ in range(case.train_steps)]
        out["train/losses"] = np.array([r.loss for r in results])
        out["train/grad_norms"] = np.array([r.grad_norm for r in results])
        out |= {f"train/weight/{n}": w for n, w in model.weights().items() if not is_dead(case, n)}
    return out


def expected(arrays):
    return {name.removeprefix("expected/"): value for name, value in arrays.items() if name.startswith("expected/")}


def is_dead(case, name):
    table = params.table(case.config)
    return any(name.endswith(parameter.name) and parameter.dead for parameter in table.values())


def gradient_scale(want):
    """RMS over all elements of all gradients."""
    grads = [value for name, value in want.items() if name.startswith("grad/")]
    return rms(np.concatenate([g.ravel() for g in grads])) if grads else 0.0


@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize("name", CASES)
def test_float64_equals_the_oracle(wing, name, stored):
    case, want = CASES[name], expected(stored[name])
    got = run(wing, case, "float64")
    assert set(got) == set(want)
    for key, value in want.items():
        if key.startswith("tokens/"):
            assert np.array_equal(got[key], value), f"{key}: {got[key].tolist()} is not {value.tolist()}"
        elif is_dead(case, key) and key.startswith("grad/"):
            assert np.abs(got[key]).max() <= DEAD * gradient_scale(want), key
        elif is_dead(case, key) and key.startswith("slope/"):
            largest = max(abs(float(v)) for k, v in want.items() if k.startswith("slope/"))
            assert abs(got[key]) <= DEAD * largest, key
        else:
            assert difference(key, got[key], value).relative <= EXACT, key


def pooled(case, got, want):
    """RMS over all tensors of their relative error, in float32 unit roundoffs: single small tensors are too noisy."""
    keys = [
        key for key in want if not key.startswith(("tokens/", "slope/", "train/weight/")) and not is_dead(case, key)
    ]
    assert len(keys) >= 2
    return math.sqrt(np.mean([difference(k, got[k], want[k]).relative ** 2 for k in keys])) / UNIT_ROUNDOFF["float32"]


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_exact_as_the_arithmetic(name, stored):
    case, want = CASES[name], expected(stored[name])
    error = {wing: pooled(case, run(wing, case, "float32"), want) for wing in WINGS}
    control = pooled(case, run("torch", case, "float64", nudge=UNIT_ROUNDOFF["float32"]), want)
    for one, other in (WINGS, WINGS[::-1]):
        assert error[one] <= 2 * error[other] + 2, error
    assert max(error.values()) <= CONTROL * control, (error, control)


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_still_says_what_is_stored(name):
    assert vectors.stale(CASES[name], FOLDER) == []


def test_vectors_are_small_and_complete():
    files = list(FOLDER.glob("*.safetensors")) + list(FOLDER.glob("*.json"))
    assert {path.stem for path in files} == set(CASES)
    assert sum(path.stat().st_size for path in files) < 5_000_000


def test_damaged_vectors_are_refused(tmp_path):
    case = CASES["layer_norm"]
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"layer_norm{suffix}").write_bytes((FOLDER / f"layer_norm{suffix}").read_bytes())
    data = bytearray((tmp_path / "layer_norm.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "layer_norm.safetensors").write_bytes(data)
    with pytest.raises(door.UserError, match=r"layer_norm\.safetensors is damaged"):
        vectors.read(case, tmp_path)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.path])
def test_taps_agree_and_the_first_divergent_one_is_found(name):
    """All intermediates have the same names in the same order, and a planted bug shows at its own tap first."""
    case = CASES[name]
    ids, _ = case.tokens()
    build = {n: door.load(n).build(case.config, case.weights(), Execution(dtype="float64")) for n in ("numpy", *WINGS)}
    taps = {n: model.forward(ids, taps=("*",)).taps for n, model in build.items()}
    assert list(taps["torch"]) == list(taps["numpy"])
    for wing in WINGS:
        assert set(taps[wing]) == set(taps["numpy"])
        for key, value in taps["numpy"].items():
            assert difference(key, taps[wing][key], value).relative <= EXACT, key
    some = build["torch"].forward(ids, taps=("model.layers.*.self_attn.weights",)).taps
    assert len(some) == case.config.num_layers
    for weights in some.values():
        assert math.isclose(weights.sum(-1).max(), 1, rel_tol=1e-12)
