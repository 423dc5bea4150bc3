"""For every registered case: the closed form, PyTorch's counter and JAX's program agree to the last FLOP and byte.

The cases come from the registry; a component is counted by the path it names.
"""

import functools

import pytest

from common import adapters, params
from common.accounting import activations, flops
from common.backend import load
from common.cases import CASES
from common.config import DTYPES, PROJECTIONS, Execution
from common.variants.multi_head import KERNELS

WINGS = ("torch", "jax")
# (wing, execution, kernel of the closed form); JAX's fused attention is XLA's own off the GPU, which keeps its scores
RUNS = {
    "torch": ("torch", {}, "plain"),
    "torch fused": ("torch", {"attention": "fused"}, "fused"),
    "jax": ("jax", {}, "plain"),
    "jax scan": ("jax", {"layers": "scan"}, "plain"),
    **{f"{wing} checkpointed": (wing, {"layers": "checkpointed"}, "checkpointed") for wing in WINGS},
    "jax fused": ("jax", {"attention": "fused"}, "plain"),
    **{f"{wing} {kernel}": (wing, {"attention": kernel}, kernel) for wing in WINGS for kernel in ("loop", "blockwise")},
    "torch masked": ("torch", {"attention": "masked"}, "masked"),
    **{f"{wing} {how}": (wing, {"projections": how}, "plain") for wing in WINGS for how in PROJECTIONS[1:]},
}


def mixed(name):
    """Whether a case has a mixture of experts."""
    return any(entry.kind == "mixture_of_experts" for entry in CASES[name].config.feed_forward)


def offered(name, how):
    """Other forms than the plain one are those of multi-head attention; joined projections know no adapters. What a
    checkpointed block multiplies again for its experts has no closed form.
    """
    config = CASES[name].config
    if mixed(name) and how.get("layers") == "checkpointed" and not CASES[name].path:
        return False
    if how.get("projections", "plain") != "plain" and any(".self_attn." in name for name in adapters.names(config)):
        return False
    several = how.get("attention", "plain") != "plain" or how.get("projections", "plain") != "plain"
    return not several or {entry.kind for entry in config.attention} == {"multi_head"}


MODELS = [name for name, case in CASES.items() if not case.path]
ASKED = [
    # a component by itself is in no stack of blocks, so how these are run changes nothing
    pytest.param(name, run, marks=pytest.mark.full) if CASES[name].path and "layers" in how else (name, run)
    for name in CASES
    for run, (_, how, _) in RUNS.items()
    if offered(name, how)
]


@functools.cache
def model_of(name, run, dtype="float32"):
    case, (wing, how, _) = CASES[name], RUNS[run]
    return load(wing).build(case.config, params.initialise(case.config, 0), Execution(dtype, **how))


SCANNED = ("gpt", "gpt_today", "gpt_hybrid", "gpt_experts")  # alike, ending within a period, with states, with experts
OTHERS = [f"{name}-jax {how}" for name in MODELS for how in ("scan", "checkpointed") if name not in SCANNED]
ALIKE = (
    "gpt_long",
    "gpt_muon",
    "gpt_untied",
    "gpt_wide",
    "gpt_dropout",
    "gpt_balance",
)  # multiply as another case does
LONGER = [f"{name}-{wing}" for name in ALIKE for wing in WINGS]


@pytest.mark.full_for("jax loop", "jax blockwise", "jax joined", "jax einsum", "jax fused", *OTHERS, *LONGER)
@pytest.mark.parametrize(("name", "run"), ASKED)
def test_counters_equal_the_closed_form(name, run):
    case, model, (wing, _, kernel) = CASES[name], model_of(name, run), RUNS[run]
    if case.path and kernel == "checkpointed":  # a component by itself is no block
        kernel = "plain"
    shape = case.batch, case.length
    want = flops.flops_full(case.config, "forward", *shape, path=case.path, wing=wing)
    assert model.matmul_flops("forward", *shape, case.path) == want
    want = flops.flops_full(case.config, "train", *shape, path=case.path, attention=kernel, wing=wing)
    assert model.matmul_flops("gradients", *shape, case.path) == want
    assert (want > 0) == (case.path.rpartition(".")[2] not in ("norm",))  # the one case that multiplies no matrices


@pytest.mark.full_for(*OTHERS, *LONGER)
@pytest.mark.parametrize("run", ["torch", "jax", "jax scan"])
@pytest.mark.parametrize("name", [name for name in MODELS if CASES[name].config.cacheable])
def test_prefill_and_decoding_equal_the_closed_form(name, run):
    """The head predicts once a row, and the kernels read all slots."""
    case, model = CASES[name], model_of(name, run)
    length, slots = 5, 9
    full = functools.partial(flops.flops_full, case.config, wing=RUNS[run][0])
    assert model.matmul_flops("prefill", 3, length, slots=slots) == full("prefill", 3, length, slots=slots)
    assert model.matmul_flops("prefill", 3, length) == full("prefill", 3, length)
    assert model.matmul_flops("decode", 3, slots) == full("decode", 3, slots)


@pytest.mark.parametrize("run", ["torch", "jax"])
def test_a_training_step_multiplies_no_more_than_its_gradients(run):
    case, model = CASES["gpt"], model_of("gpt", run)
    shape = case.batch, case.length
    assert model.matmul_flops("train", *shape) == flops.flops_full(case.config, "train", *shape)


def test_a_compiled_model_is_counted_as_it_runs_eagerly():
    case = CASES["block"]
    model = load("torch").build(case.config, params.initialise(case.config, 0), Execution(compile=True))
    assert model.matmul_flops("gradients", 2, 7) == flops.flops_full(case.config, "train", 2, 7)
    assert model.saved_bytes(2, 7) == sum(activations.saved(case.config, 2, 7).values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "kernel"), [(name, kernel) for name in CASES for kernel in KERNELS if offered(name, {"attention": kernel})]
)
def test_saved_activations_equal_the_closed_form(name, dtype, kernel):
    """Measured by autograd's hooks: every storage once, without parameters."""
    case = CASES[name]
    model = model_of(name, "torch" if kernel == "plain" else f"torch {kernel}", dtype)
    for shape in ((case.batch, case.length), (1, 1), (3, 1), (1, 6)):
        want = activations.saved(case.config, *shape, dtype, kernel, case.path)
        assert model.saved_bytes(*shape, case.path) == sum(want.values()), (shape, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_activations_with_dropout(dtype):
    """Three rates, three kinds of masks; each rate alone too."""
    config = CASES["gpt_dropout"].config
    rates = {name: getattr(config, name) for name in ("dropout_embed", "dropout_attn", "dropout_shortcut")}
    nothing = config.with_(**dict.fromkeys(rates, 0.0))
    for changed in (config, *(nothing.with_(**{name: rate}) for name, rate in rates.items())):
        model = load("torch").build(changed, params.initialise(changed, 0), Execution(dtype))
        want = activations.saved(changed, 2, 7, dtype, dropout=True)
        assert model.saved_bytes(2, 7, dropout=True) == sum(want.values())
        assert want["dropout"] > 0
        assert "dropout" not in activations.saved(changed, 2, 7, dtype)
