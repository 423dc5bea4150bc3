"""Training: micro-batches, ignored labels, equal trajectories in both wings, and going on where one stopped."""

import numpy as np
import pytest

from common import compare, params
from common.config import TrainConfig

RECIPE = TrainConfig(steps=100, warmup_steps=10, learning_rate=3e-3, final_rate=3e-4, clip_norm=1.0, seed=7)
BOUND = 1e-12  # C2 of the certificate; 100 steps of float64 rounding reach about 1e-14


def batch(step, rows=3, length=10, vocab=61):
    """Inputs and targets of one step; some labels do not count."""
    rng = np.random.default_rng(1000 + step)
    window = rng.integers(0, vocab, (rows, length + 1)).astype(np.int32)
    targets = window[:, 1:].copy()
    targets[0, : 1 + step % 3] = -100
    return window[:, :-1], targets


def alive(values, config):
    """Without the parameters whose true gradient is zero: Adam turns their rounding noise into steps."""
    dead = [name for name, p in params.table(config).items() if p.dead]
    return {k: v for k, v in values.items() if k.removesuffix(".exp_avg_sq").removesuffix(".exp_avg") not in dead}


def check_equal(got, want, config, bound):
    row = compare.worst(compare.differences(alive(got, config), alive(want, config)))
    assert row.relative <= bound, row


# --- gradient accumulation and ignored labels -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unequal():
    """Three micro-batches whose counted targets are 8, 3 and 0."""
    rng = np.random.default_rng(4)
    ids, targets = rng.integers(0, 61, (2, 3, 1, 8)).astype(np.int32)
    targets[1, 0, 3:] = -100
    targets[2] = -100
    return ids, targets


@pytest.mark.full_for("jax")  # its steps over unequal micro-batches are the oracle's: C2 in tests/parity/test_cases.py
@pytest.mark.parametrize("counted", [(6, 2), (4, 0)])
def test_micro_batches_with_unequal_counts_equal_one_batch(costly_case, case_model, late, wing, counted):
    """The sum of losses divided by their common number, not the mean of two means."""
    if any(getattr(entry, "balance", 0) for entry in costly_case.config.feed_forward):
        pytest.skip("every micro-batch has a balance of its own")
    ids, _ = late(costly_case, 2, 6, seed=4)
    targets = np.roll(ids, -1, axis=1)
    for row, count in enumerate(counted):
        targets[row, count:] = -100
    model = case_model(wing, costly_case, rates="none")
    got, want = model.gradients(ids[:, None], targets[:, None]), model.gradients(ids, targets)
    assert got.value == pytest.approx(want.value, rel=1e-13)
    check_equal(got.grads, want.grads, costly_case.config, 1e-13)
    assert want.value == pytest.approx(case_model("numpy", costly_case).loss(ids, targets), rel=1e-13)
    if 0 not in counted:
        alone = [model.loss(ids[[row]], targets[[row]]) for row in (0, 1)]
        assert want.value == pytest.approx(np.average(alone, weights=counted), rel=1e-13)
        assert want.value != pytest.approx(np.mean(alone), rel=1e-3)


@pytest.mark.full  # the oracle's own steps, below, have two micro-batches too
def test_a_training_step_over_micro_batches_equals_one_batch(fresh_model, wing, unequal):
    ids, targets = unequal
    models = []
    for x, y in ((ids, targets), (ids[:, 0], targets[:, 0])):
        models.append(fresh_model(wing))
        models[-1].start_training(RECIPE)
        models[-1].result = [models[-1].train_step(x, y) for _ in range(3)]
    for one, other in zip(models[0].result, models[1].result, strict=True):
        assert (one.loss, one.grad_norm) == pytest.approx((other.loss, other.grad_norm), rel=1e-12)
    check_equal(models[0].weights(), models[1].weights(), models[0].config, 1e-12)


@pytest.mark.full_for("jax")
def test_all_labels_ignored(model_of, fresh_model, name, tokens):
    """Loss 0, every gradient 0, nothing becomes NaN; the weights only decay."""
    ids = tokens(3, 1, 8)[:1, 0]
    targets = np.full_like(ids, -100)
    assert model_of(name).loss(ids, targets) == 0.0
    if name == "numpy":
        return  # its gradients take a forward per number
    got = model_of(name).gradients(ids, targets)
    assert got.value == 0.0
    assert all((g == 0).all() for g in got.grads.values())
    model = fresh_model(name)
    before = model.weights()
    model.start_training(RECIPE.with_(schedule="constant", learning_rate=0.1))
    result = model.train_step(ids, targets)
    assert (result.loss, result.grad_norm) == (0.0, 0.0)
    for p in params.table(model.config).values():
        want = before[p.name] * (1 - 0.1 * RECIPE.weight_decay if p.decays else 1)
        np.testing.assert_allclose(model.weights()[p.name], want, rtol=1e-15)


# --- trajectories -----------------------------------------------------------------------------------------------------


def test_100_steps_are_equal_in_both_wings_with_dropout(fresh_model, with_dropout):
    results, models = {}, {}
    for wing in ("torch", "jax"):
        model = models[wing] = fresh_model(wing, with_dropout)
        model.start_training(RECIPE)
        results[wing] = np.array([(r.loss, r.grad_norm) for r in (model.train_step(*batch(s)) for s in range(100))])
    np.testing.assert_allclose(results["torch"], results["jax"], rtol=BOUND)
    assert results["torch"][:, 1].max() > RECIPE.clip_norm, "clipping never acted"
    check_equal(models["torch"].weights(), models["jax"].weights(), with_dropout, BOUND)
    check_equal(models["torch"].optimizer_slots(), models["jax"].optimizer_slots(), with_dropout, BOUND)
    before = fresh_model("torch", with_dropout).weights()
    moved = compare.differences(alive(models["torch"].weights(), with_dropout), alive(before, with_dropout))
    assert min(row.relative for row in moved) > 1e-3


@pytest.mark.full
def test_the_oracle_takes_the_same_steps(fresh_model):
    """A model so small that the oracle can differentiate it number by number."""
    from common.config import GPTConfig

    config = GPTConfig(5, 4, 4, 1, 2, ff_dim=6, dropout_embed=0.1, dropout_attn=0.2, dropout_shortcut=0.3)
    models = {name: fresh_model(name, config) for name in ("numpy", "torch", "jax")}
    for model in models.values():
        model.start_training(RECIPE.with_(accumulate=2))
    for step in range(3):
        inputs, targets = (x.reshape(2, 1, 4) for x in batch(step, rows=2, length=4, vocab=5))
        results = {name: model.train_step(inputs, targets) for name, model in models.items()}
        for name in ("torch", "jax"):
            assert results[name].loss == pytest.approx(results["numpy"].loss, rel=1e-12)
            assert results[name].grad_norm == pytest.approx(results["numpy"].grad_norm, rel=1e-12)
    for name in ("torch", "jax"):
        check_equal(models[name].weights(), models["numpy"].weights(), config, BOUND)
        check_equal(models[name].optimizer_slots(), models["numpy"].optimizer_slots(), config, BOUND)


# --- clipping from a later step on ------------------------------------------------------------------------------------


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("first", [27, 28])  # the first step after the warm-up; in print the book has the second
def test_clipping_begins_where_the_book_lets_it(fresh_model, name, first):
    """Its schedule (F-170: 135 steps, 27 of warm-up), from step 25 to 29, against its loop with PyTorch's own optimizer
    on the gradients of the same weights. Every step is clipped that may be."""
    import torch

    from common.config import GPTConfig

    config = GPTConfig(5, 4, 4, 1, 2, ff_dim=4, qkv_bias=False)
    warmup, steps, peak, least, limit = 27, 135, 1e-3, 1e-5, 0.05
    rates = {"learning_rate": peak, "initial_rate": least, "final_rate": least}
    train = TrainConfig(steps=steps, warmup_steps=warmup, clip_norm=limit, clip_from=first, decay="all", **rates)
    model, guide = fresh_model(name, config), fresh_model("torch", config)
    model.start_training(train, step=25)
    theirs = {key: torch.nn.Parameter(torch.tensor(w, dtype=torch.float64)) for key, w in guide.weights().items()}
    optimizer = torch.optim.AdamW(theirs.values(), weight_decay=train.weight_decay)
    for p in theirs.values():  # 25 steps that nobody saw
        empty = (torch.zeros_like(p), torch.zeros_like(p))
        optimizer.state[p] = {"step": torch.tensor(25.0), **dict(zip(("exp_avg", "exp_avg_sq"), empty, strict=True))}
    bare = []
    for step in range(25, 30):
        inputs, targets = batch(step, rows=2, length=4, vocab=5)
        result = model.train_step(inputs, targets)
        found = fresh_model("torch", config, weights={key: p.detach().numpy() for key, p in theirs.items()})
        for key, grad in found.gradients(inputs, targets).grads.items():
            theirs[key].grad = torch.tensor(grad)
        if step < warmup:
            rate = least + step * (peak - least) / warmup
        else:
            rate = least + (peak - least) / 2 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
        optimizer.param_groups[0]["lr"] = rate
        norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.values()])
        if step >= first:
            torch.nn.utils.clip_grad_norm_(theirs.values(), limit)
        else:
            bare.append(step)
        optimizer.step()
        assert limit < result.grad_norm == pytest.approx(float(norm), rel=1e-12), "clipping never acts"
    assert bare == list(range(25, first))
    check_equal(model.weights(), {key: p.detach().numpy() for key, p in theirs.items()}, config, BOUND)
    averages = {f"{key}.exp_avg": optimizer.state[p]["exp_avg"].numpy() for key, p in theirs.items()}
    check_equal({key: model.optimizer_slots()[key] for key in averages}, averages, config, BOUND)


# --- going on ---------------------------------------------------------------------------------------------------------


def train(model, first, last):
    return [model.train_step(*batch(step)) for step in range(first, last)]


def check_resumed(wing, case, dtype, build, late):
    """Six steps at once, and three, saved, and three more: losses, weights and moving averages, to the bit."""

    def steps(model, first, last):
        batches = (late(case, 2, 6, seed=step)[0] for step in range(first, last))
        return [model.train_step(ids, np.roll(ids, -1, axis=1)) for ids in batches]

    straight, first = (build(wing, case, dtype, rates="all") for _ in range(2))
    straight.start_training(RECIPE)
    want = steps(straight, 0, 6)
    first.start_training(RECIPE)
    got = steps(first, 0, 3)
    second = build(wing, case, dtype, rates="all", weights=first.weights())
    second.start_training(RECIPE, first.optimizer_slots(), step=3)
    got += steps(second, 3, 6)
    assert got == want
    assert len({result.loss for result in got}) == 6
    for part in ("weights", "optimizer_slots"):
        one, other = getattr(second, part)(), getattr(straight, part)()
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.full_for("jax")  # C5 in tests/parity/test_trajectories.py, and tests/cli/test_commands.py with dropout
def test_saved_and_continued_is_straight_on_to_the_bit(costly_case, fresh_case_model, late, wing):
    """Within a wing, with every dropout that the model has."""
    check_resumed(wing, costly_case, "float32", fresh_case_model, late)


@pytest.mark.full
def test_saved_and_continued_in_bfloat16(costly_case, fresh_case_model, late, wing):
    check_resumed(wing, costly_case, "bfloat16", fresh_case_model, late)


@pytest.mark.parametrize(("start", "end"), [("torch", "jax"), ("jax", "torch")])
def test_changing_the_wing_midway_changes_nothing(fresh_model, with_dropout, start, end):
    straight = fresh_model(end, with_dropout)
    straight.start_training(RECIPE)
    want = train(straight, 0, 10)
    first = fresh_model(start, with_dropout)
    first.start_training(RECIPE)
    got = train(first, 0, 5)
    second = fresh_model(end, with_dropout, weights=first.weights())
    second.start_training(RECIPE, first.optimizer_slots(), step=5)
    got += train(second, 5, 10)
    for one, other in zip(got, want, strict=True):
        assert (one.loss, one.grad_norm) == pytest.approx((other.loss, other.grad_norm), rel=BOUND)
    check_equal(second.weights(), straight.weights(), with_dropout, BOUND)
    check_equal(second.optimizer_slots(), straight.optimizer_slots(), with_dropout, BOUND)


@pytest.mark.full_for("jax")
def test_what_was_handed_out_does_not_change_later(fresh_model, wing):
    """Weights and slots that were taken stay as they were while training goes on, and so do the weights given."""
    given = fresh_model("numpy").weights()
    kept = {name: value.copy() for name, value in given.items()}
    model = fresh_model(wing, weights=given)
    model.start_training(RECIPE)
    train(model, 0, 1)
    weights, slots = model.weights(), model.optimizer_slots()
    copies = [{name: value.copy() for name, value in values.items()} for values in (weights, slots)]
    resumed = fresh_model(wing, weights=weights)
    resumed.start_training(RECIPE, slots, step=1)
    train(model, 1, 3)
    train(resumed, 1, 3)
    for values, copy in ((weights, copies[0]), (slots, copies[1]), (given, kept)):
        for name in values:
            np.testing.assert_array_equal(values[name], copy[name], err_msg=name)
