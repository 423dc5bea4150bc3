"""The frameworks' own optimizers, losses and clipping, and published numbers, as judges of ours."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn import functional as F

from common import params
from common.config import PRESETS, Execution, GPTConfig, TrainConfig, preset

# --- AdamW ------------------------------------------------------------------------------------------------------------

SHAPES = {"wide": (5, 7), "row": (11,), "one": (1,)}
TRAIN = TrainConfig(learning_rate=3e-3, schedule="constant", beta1=0.85, beta2=0.95, adam_eps=1e-6, weight_decay=0.3)
DECAYS = {"wide": True, "row": False, "one": True}
STEPS = 30


def start():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def gradients(step):
    """Gradients of very different sizes, as real ones are."""
    rng = np.random.default_rng(100 + step)
    return {name: rng.normal(size=shape) * 10.0 ** rng.uniform(-9, 0, shape) for name, shape in SHAPES.items()}


def by_numpy(form="plain"):
    return steps("common.oracle", form, np.array)


def by_torch(form="plain"):
    return steps("torch_impl", form, torch.tensor)


def by_jax(form="plain"):
    with jax.enable_x64(True):
        return steps("jax_impl", form, jnp.array)


def steps(package, form, put, train=TRAIN, begin=1.0, count=STEPS):
    """What an optimizer of ours makes of the start (times `begin`)."""
    optim = importlib.import_module(f"{package}.optim")
    values = {name: put(begin * value) for name, value in start().items()}
    slots = optim.empty_slots(values)
    for step in range(count):
        grads = {name: put(g) for name, g in gradients(step).items()}
        values, slots = optim.OPTIMIZERS[form](values, grads, slots, train.adam_scalars(step), train, DECAYS)
    return {name: np.asarray(value) for name, value in values.items()}


def by_torch_optim():
    values = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in start().items()}
    groups = [
        {"params": [values[n] for n in SHAPES if DECAYS[n]], "weight_decay": TRAIN.weight_decay},
        {"params": [values[n] for n in SHAPES if not DECAYS[n]], "weight_decay": 0.0},
    ]
    betas = (TRAIN.beta1, TRAIN.beta2)
    optimizer = torch.optim.AdamW(groups, lr=TRAIN.learning_rate, betas=betas, eps=TRAIN.adam_eps)
    for step in range(STEPS):
        for name, g in gradients(step).items():
            values[name].grad = torch.from_numpy(g)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in values.items()}


def by_optax():
    with jax.enable_x64(True):
        rule = optax.adamw(
            TRAIN.learning_rate, TRAIN.beta1, TRAIN.beta2, TRAIN.adam_eps, weight_decay=TRAIN.weight_decay, mask=DECAYS
        )
        values = {name: jnp.array(value) for name, value in start().items()}
        state = rule.init(values)
        for step in range(STEPS):
            updates, state = rule.update({n: jnp.array(g) for n, g in gradients(step).items()}, state, values)
            values = optax.apply_updates(values, updates)
        return {name: np.array(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def judges():
    return {"torch.optim.AdamW": by_torch_optim(), "optax.adamw": by_optax()}


@pytest.mark.parametrize("judge", ["torch.optim.AdamW", "optax.adamw"])
@pytest.mark.parametrize(
    ("ours", "form"),
    [(by_numpy, "plain"), (by_torch, "plain"), (by_torch, "fused"), (by_jax, "plain"), (by_jax, "fused")],
)
def test_adamw_takes_the_same_30_steps(judges, judge, ours, form):
    got, moved = ours(form), 0.0
    for name, want in judges[judge].items():
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-15, err_msg=name)
        moved = max(moved, np.abs(want - start()[name]).max())
    assert moved > 0.01


@pytest.mark.parametrize("form", ["plain", "fused"])
@pytest.mark.parametrize("wing", ["torch_impl", "jax_impl"])
def test_no_form_of_adamw_loses_digits_in_float32(wing, form):
    """Of what the first step moves from zero; `optax.adamw` with a count of its own is 6e-6 off, by its 1 - 0.999."""
    put = {"torch_impl": lambda x: torch.tensor(x, dtype=torch.float32), "jax_impl": lambda x: jnp.array(x, "float32")}
    train = TRAIN.with_(beta2=0.999)
    want, got = (
        steps(*how, train=train, begin=0.0, count=1)
        for how in (("common.oracle", "plain", np.array), (wing, form, put[wing]))
    )
    for name, moved in want.items():
        np.testing.assert_allclose(got[name], moved, rtol=0, atol=1e-6 * np.abs(moved).max(), err_msg=name)


def test_optaxs_form_has_a_beta_that_is_nearly_1_in_float64():
    train = TRAIN.with_(beta1=1 - 1e-9, beta2=1 - 1e-12)
    with jax.enable_x64(True):
        want, got = (steps("jax_impl", form, jnp.array, train=train) for form in ("plain", "fused"))
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("limit", [0.5, 1e3, "exact"])
def test_clipping_is_torchs(limit):
    """Above the limit, below it, and with the norm exactly at it."""
    grads = gradients(0)
    norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
    limit = norm if limit == "exact" else limit
    judged = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    for name, p in judged.items():
        p.data = p.data.double()
        p.grad = torch.from_numpy(grads[name].copy())
    want_norm = torch.nn.utils.clip_grad_norm_(judged.values(), limit).item()
    with jax.enable_x64(True):
        for wing, make in (("common.oracle", np.array), ("torch_impl", torch.tensor), ("jax_impl", jnp.array)):
            clip = importlib.import_module(f"{wing}.optim").clip_by_global_norm
            got, got_norm = clip({name: make(g) for name, g in grads.items()}, limit)
            assert float(got_norm) == pytest.approx(want_norm, rel=1e-14)
            for name, p in judged.items():
                np.testing.assert_allclose(np.asarray(got[name]), p.grad.numpy(), rtol=1e-14, err_msg=f"{wing} {name}")


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def losses(logits, labels):
    """(sum, count) of all three implementations, float64."""
    found = {}
    with jax.enable_x64(True):
        for wing, make in (("common.oracle", np.array), ("torch_impl", torch.tensor), ("jax_impl", jnp.array)):
            total, count = importlib.import_module(f"{wing}.loss").token_loss(make(logits), make(labels))
            found[wing] = (float(total), int(count))
    return found


def test_cross_entropy_is_torchs_with_ignored_labels():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(3, 5, 131)) * 20, rng.integers(0, 131, (3, 5)).astype(np.int32)
    labels[0, :2] = labels[2, 4] = -100
    labels[1, 0] = 130
    want = F.cross_entropy(torch.tensor(logits).flatten(0, 1), torch.tensor(labels).flatten().long()).item()
    for wing, (total, count) in losses(logits, labels).items():
        assert count == 12, wing
        assert total / count == pytest.approx(want, rel=1e-14), wing


def test_cross_entropy_of_huge_logits_is_finite():
    logits = np.array([[[1e4, -1e4, 0.0], [-1e5, -1e5, -1e5]]])
    for wing, (total, _) in losses(logits, np.array([[1, 2]], np.int32)).items():
        assert total == pytest.approx(2e4 + math.log(3), rel=1e-14), wing


def test_cross_entropy_of_the_book():
    """F-141: two rows, then a third; a label of -100 takes it out again."""
    logits = np.array([[[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]]])
    for labels, mean in (([0, 1], 1.1269), ([0, 1, 1], 0.7936), ([0, 1, -100], 1.1269)):
        for wing, (total, count) in losses(logits[:, : len(labels)], np.array([labels], np.int32)).items():
            assert round(total / count, 4) == mean, wing


# --- published numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wing", ["common.oracle", "torch_impl", "jax_impl"])
def test_gelu_values(wing):
    """F-051, to the six digits given."""
    gelu = importlib.import_module(f"{wing}.layers").ACTIVATIONS["gelu_tanh"]
    make = {"common.oracle": np.array, "torch_impl": torch.tensor, "jax_impl": jnp.array}[wing]
    with jax.enable_x64(True):
        got = np.asarray(gelu(make([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0])), np.float64)
    want = [-0.003637, -0.158808, -0.154286, 0.345714, 0.841192, 2.996363]
    np.testing.assert_allclose(got, want, rtol=0, atol=0.5e-6 + 1e-7)


@pytest.mark.parametrize("wing", ["common.oracle", "torch_impl", "jax_impl"])
def test_exact_gelu_is_the_normal_distribution_function(wing):
    gelu = importlib.import_module(f"{wing}.layers").ACTIVATIONS["gelu"]
    make = {"common.oracle": np.array, "torch_impl": torch.tensor, "jax_impl": jnp.array}[wing]
    x = np.linspace(-5, 5, 41)
    with jax.enable_x64(True):
        got = np.asarray(gelu(make(x)))
    want = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("wing", ["common.oracle", "torch_impl", "jax_impl"])
def test_an_embedding_is_a_product_with_rows_that_are_one_hot(wing):
    """F-017: to the bit, for a row times one is the row, and zeros add nothing. Here the book's four rows of five."""
    torch.manual_seed(123)
    theirs = torch.nn.Embedding(4, 5).weight.detach()
    ids = np.array([[2, 3, 1], [1, 1, 0]])
    want = (torch.nn.functional.one_hot(torch.from_numpy(ids)).float() @ theirs).numpy()
    got = embedded(wing, theirs.numpy(), ids)
    assert np.array_equal(got, want)
    assert np.array_equal(got, theirs.numpy()[ids])


def embedded(wing, weight_VE, ids):
    """What the embedding of an implementation makes of ids."""
    kind = importlib.import_module(f"{wing}.layers").Embedding
    made = kind(*weight_VE.shape, *(() if wing == "common.oracle" else (Execution(dtype="float32").precision,)))
    if wing == "torch_impl":
        made.load_state_dict({"weight": torch.from_numpy(weight_VE)})
        return made(torch.from_numpy(ids)).detach().numpy()
    if wing == "jax_impl":
        made.weight[...] = jnp.asarray(weight_VE)
        return np.asarray(made(jnp.asarray(ids)))
    made.weight = weight_VE
    return made(ids)


TOY = np.array([[4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]])  # closer every effort forward …
FORWARD, CLOSER, TOWARD, PIZZA = 3, 0, 7, 6


def probabilities(wing, temperature, top_k=None, top_p=None):
    filter_logits = importlib.import_module(f"{wing}.sampling").filter_logits
    make = {"common.oracle": np.array, "torch_impl": torch.tensor, "jax_impl": jnp.array}[wing]
    with jax.enable_x64(True):
        logits = np.asarray(filter_logits(make(TOY), temperature, top_k, top_p), np.float64)[0]
    e = np.exp(logits - logits.max())
    return e / e.sum()


@pytest.mark.parametrize("wing", ["common.oracle", "torch_impl", "jax_impl"])
def test_sampling_probabilities_of_the_book(wing):
    """F-083: all of them at temperature 1, the three kept by top-k, one at temperature 5."""
    want = [0.060907, 0.001631, 0.000100, 0.572120, 0.003419, 0.000133, 0.000101, 0.357576, 0.004012]
    assert np.round(probabilities(wing, 1.0), 6).tolist() == want
    top = probabilities(wing, 1.0, top_k=3)
    assert np.round(top[[CLOSER, FORWARD, TOWARD]], 4).tolist() == [0.0615, 0.5775, 0.3610]
    assert np.count_nonzero(top) == 3
    assert round(probabilities(wing, 5.0)[PIZZA], 4) == 0.0430


@pytest.mark.parametrize("wing", ["common.oracle", "torch_impl", "jax_impl"])
def test_top_p_keeps_the_fewest_that_reach_p(wing):
    """.572 alone; .572 + .358 = .930 with the second; the crossing token is kept."""
    for p, kept in ((0.5, [FORWARD]), (0.6, [FORWARD, TOWARD]), (0.92, [FORWARD, TOWARD]), (1.0, range(9))):
        assert np.flatnonzero(probabilities(wing, 1.0, top_p=p)).tolist() == sorted(kept)
    assert np.flatnonzero(probabilities(wing, 1.0, top_p=1e-9)).tolist() == [FORWARD]
    # temperature first: at 5 the distribution is flatter, so 0.6 takes more of them
    assert np.count_nonzero(probabilities(wing, 5.0, top_p=0.6)) == 3
    # top-k before top-p: of the two kept by k, p of .6 needs only the first (.572 / .930 = .615)
    assert np.flatnonzero(probabilities(wing, 1.0, top_k=2, top_p=0.6)).tolist() == [FORWARD]
    assert np.count_nonzero(probabilities(wing, 1.0, top_k=50)) == 9


def test_learning_rates_of_the_book():
    """F-170: 135 steps, 27 of warm-up."""
    train = TrainConfig(steps=135, warmup_steps=27, learning_rate=1e-3, initial_rate=1e-5, final_rate=1e-5)
    want = {0: 1e-05, 1: 4.6667e-05, 13: 4.86667e-04, 26: 9.63333e-04, 27: 1e-03, 28: 9.99791e-04}
    want |= {54: 8.55018e-04, 81: 5.05e-04, 108: 1.54982e-04, 134: 1.0209e-05}
    for step, rate in want.items():
        assert train.rate(step) == pytest.approx(rate, rel=5e-5), step  # five digits are given


def test_linear_rates_are_optaxs():
    import optax

    train = TrainConfig(
        steps=50, warmup_steps=10, learning_rate=1e-2, initial_rate=1e-3, final_rate=5e-4, schedule="linear"
    )
    parts = [optax.linear_schedule(1e-3, 1e-2, 10), optax.linear_schedule(1e-2, 5e-4, 40)]
    theirs = optax.join_schedules(parts, [10])
    for step in (0, 1, 9, 10, 11, 30, 49, 50, 80):
        assert train.rate(step) == pytest.approx(float(theirs(step)), rel=1e-6), step


def test_constant_rates_after_a_warm_up_are_optaxs():
    import optax

    train = TrainConfig(
        steps=50, warmup_steps=10, learning_rate=1e-2, initial_rate=1e-3, schedule="constant_with_warmup"
    )
    theirs = optax.warmup_constant_schedule(1e-3, 1e-2, 10)
    for step in (0, 1, 9, 10, 11, 49, 80):
        assert train.rate(step) == pytest.approx(float(theirs(step)), rel=1e-6), step
    assert train.with_(warmup_steps=0).rate(0) == train.with_(schedule="constant").rate(0) == 1e-2


def test_learning_rate_at_its_edges():
    train = TrainConfig(steps=10, warmup_steps=0, learning_rate=1.0, initial_rate=0.5, final_rate=0.25)
    assert train.rate(0) == 1.0
    assert train.rate(10) == train.rate(999) == 0.25
    assert train.with_(schedule="constant").rate(7) == 1.0
    short = train.with_(warmup_steps=20)
    assert [short.rate(0), short.rate(10), short.rate(20)] == [0.5, 0.75, 1.0]


COUNTS = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "book-124m": 163_009_536,
    "book-355m": 406_212_608,
    "book-774m": 838_220_800,
    "book-1558m": 1_637_792_000,
}
WITHOUT_HEAD = {
    "book-124m": 124_412_160,
    "book-355m": 354_749_440,
    "book-774m": 773_891_840,
    "book-1558m": 1_557_380_800,
}


def test_parameter_counts_of_all_presets():
    """F-054, F-057 and the published GPT-2 checkpoints; by hand for our own small one."""
    e, f, v, t = 128, 512, 256, 128
    block = 4 * (e * e + e) + (e * f + f) + (f * e + e) + 4 * e
    assert {name: params.count(config) for name, config in PRESETS.items()} == COUNTS | {
        "nano": v * e + t * e + 4 * block + 2 * e
    }
    for name, count in WITHOUT_HEAD.items():
        assert params.count(preset(name).with_(tie_embeddings=True)) == count


def test_part_counts_of_the_book():
    """F-034: 2,360,064 in one attention of width 768; F-051: 4,722,432 in one feed-forward."""
    table = params.table(GPTConfig(50257, 1024, 768, 12, 12, qkv_bias=False))
    assert sum(p.size for n, p in table.items() if n.startswith("model.layers.3.self_attn.")) == 2_360_064
    assert sum(p.size for n, p in table.items() if n.startswith("model.layers.3.mlp.")) == 4_722_432
