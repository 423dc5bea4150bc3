"""Losses of preferences against a count token by token, in plain Python from the logits alone; and against TRL's.

Nothing here is shared with the implementations: normalisers, masks, odds and sigmoids are written down once more.
Gradients are held against differences of that count.
"""

import math
import os
from collections import defaultdict
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from common import backend, params
from common.config import Execution, GPTConfig
from common.preference import Pairs, Preference, reduced, rewards

WINGS = ("torch", "jax", "numpy")
CONFIG = GPTConfig(11, 12, 4, 1, 2, ff_dim=6, tie_embeddings=False, qkv_bias=False)
PAIRS, LENGTH, SKIPPED = 3, 9, -100
SIDES = ("chosen", "rejected")
STEP = 1e-4  # of a difference of five points, whose own error is about STEP ** 4
LOSSES = {
    "dpo": {"beta": 0.3},
    "cdpo": {"beta": 0.3, "smoothing": 0.2},
    "ipo": {"beta": 0.4},
    "hinge": {"beta": 0.25},
    "simpo": {"beta": 2.0, "gamma": 0.7},
    "orpo": {"beta": 0.5},
}
KINDS = [(loss, how) for loss in LOSSES for how in ("sum", "mean") if how == "mean" or loss not in ("simpo", "orpo")]

ARRAYS = {"torch_impl": ("torch", "tensor"), "jax_impl": ("jax.numpy", "array"), "common.oracle": ("numpy", "array")}


def batch(seed=0):
    """(ids, labels, reference) of three pairs, rows chosen and rejected in turn, each with a prompt and padding."""
    rng = np.random.default_rng(seed)
    ids, labels = (rng.integers(0, CONFIG.vocab_size, (2 * PAIRS, LENGTH)).astype(np.int32) for _ in range(2))
    for row in range(2 * PAIRS):
        labels[row, : 1 + row // 2] = SKIPPED
        labels[row, LENGTH - row % 4 :] = SKIPPED
    return ids, labels, rng.normal(-12, 4, 2 * PAIRS)


def answers(logits, labels, how):
    """log p of every row's answer, a token at a time."""
    found = []
    for row, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        terms = []
        for scores, label in zip(row, wanted, strict=True):
            if label != SKIPPED:
                top = max(scores)
                terms.append(scores[label] - top - math.log(math.fsum(math.exp(score - top) for score in scores)))
        found.append(math.fsum(terms) / (len(terms) if how == "mean" else 1))
    return found


def minus_log_sigmoid(x):
    return math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x


def counted(logits, labels, reference, loss, how):
    """The mean loss of all pairs."""
    own, settings, losses = answers(logits, labels, how), LOSSES[loss], []
    beta = settings["beta"]
    for chosen in range(0, len(own), 2):
        better, worse = own[chosen], own[chosen + 1]
        ahead = (better - reference[chosen]) - (worse - reference[chosen + 1])
        if loss == "dpo":
            losses.append(minus_log_sigmoid(beta * ahead))
        elif loss == "cdpo":
            wrong = settings["smoothing"]
            losses.append((1 - wrong) * minus_log_sigmoid(beta * ahead) + wrong * minus_log_sigmoid(-beta * ahead))
        elif loss == "ipo":
            losses.append((ahead - 1 / (2 * beta)) ** 2)
        elif loss == "hinge":
            losses.append(max(0.0, 1 - beta * ahead))
        elif loss == "simpo":
            losses.append(minus_log_sigmoid(beta * (better - worse) - settings["gamma"]))
        else:
            odds = [math.exp(value) / (1 - math.exp(value)) for value in (better, worse)]
            losses.append(-better + beta * minus_log_sigmoid(math.log(odds[0] / odds[1])))
    return math.fsum(losses) / len(losses)


def build(wing, weights):
    plain = {} if wing == "numpy" else {"compile": False}
    return backend.load(wing).build(CONFIG, weights, Execution(dtype="float64", **plain))


@pytest.fixture(scope="module", params=WINGS)
def wing(request):
    """(name, model, its weights, logits of the batch)."""
    weights = {n: w.astype(np.float64) for n, w in params.randomise(CONFIG, 4).items()}
    model = build(request.param, weights)
    return request.param, model, weights, model.forward(batch()[0]).logits


def given(loss, how):
    ids, labels, reference = batch()
    preference = Preference(loss, reduction=how, **LOSSES[loss])
    if not preference.needs_reference:
        reference = np.zeros_like(reference)
    return ids, Pairs(labels, reference, preference)


@pytest.mark.parametrize(("room", "array"), ARRAYS.items())
def test_the_books_numbers(room, array):
    """Its example of log-probabilities, whose mean by token is printed as a cross entropy; and the loss at the start,
    where the model is its own reference, as its float32 has it."""
    preference = import_module(f"{room}.preference")
    array = getattr(import_module(array[0]), array[1])
    logits, targets = np.array([[[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]]], np.float32), np.array([[0, 2]], np.int32)
    sums, counts = (np.asarray(one) for one in preference.row_log_probs(array(logits), array(targets)))
    assert counts.tolist() == [2]
    assert reduced(sums, counts, "mean") == pytest.approx([-1.4185], abs=5e-5)
    same = array(np.array([[-3.5, -2.25], [-40.0, -0.5]], np.float32))
    losses = np.asarray(preference.PREFERENCES["dpo"](same, same, Preference("dpo", 0.1, reduction="mean")))
    assert losses == pytest.approx([0.6931471824645996] * 2, abs=1e-7)


@pytest.mark.parametrize(("loss", "how"), KINDS, ids=["-".join(kind) for kind in KINDS])
def test_losses_are_those_of_a_count_token_by_token(wing, loss, how):
    _, model, _, logits = wing
    ids, pairs = given(loss, how)
    want = counted(logits, pairs.labels, pairs.reference, loss, how)
    assert want > 1e-3
    assert model.loss(ids, pairs) == pytest.approx(want, rel=1e-12)
    sums, counts = model.log_probs(ids, pairs.labels)
    np.testing.assert_allclose(sums, answers(logits, pairs.labels, "sum"), rtol=1e-12)
    assert counts.tolist() == [(row != SKIPPED).sum() for row in pairs.labels]


# the oracle differentiates number by number, and JAX compiles each anew
@pytest.mark.full_for("jax-", *(f"numpy-{loss}-{how}" for loss, how in KINDS if loss != "orpo"))
@pytest.mark.parametrize(("loss", "how"), KINDS, ids=["-".join(kind) for kind in KINDS])
def test_gradients_are_the_slopes_of_that_count(wing, loss, how):
    """In two micro-batches, which share the number of pairs: along one direction through all weights."""
    _, model, weights, logits = wing
    ids, pairs = given(loss, how)
    cut = [(ids[:2], pairs[:2]), (ids[2:4], pairs[2:4])]
    inputs = np.stack([part for part, _ in cut])
    labels, reference = (np.stack([getattr(part, kind) for _, part in cut]) for kind in ("labels", "reference"))
    found = model.gradients(inputs, Pairs(labels, reference, pairs.preference))
    assert found.value == pytest.approx(
        counted(logits[:4], pairs.labels[:4], pairs.reference[:4], loss, how), rel=1e-12
    )
    along = {n: params.draw(7, n, w.shape) for n, w in weights.items()}

    def moved(by):
        own = build("torch", {n: w + by * along[n] for n, w in weights.items()})  # whose logits C2 holds to all others
        return counted(own.forward(ids[:4]).logits, pairs.labels[:4], pairs.reference[:4], loss, how)

    near, far = ((moved(k * STEP) - moved(-k * STEP)) / (2 * k * STEP) for k in (1, 2))
    slope = sum(float((found.grads[n] * along[n]).sum()) for n in along)
    norm = math.sqrt(sum(float(np.square(g).sum()) for g in found.grads.values()))
    assert norm > 1e-3
    assert abs(slope - (4 * near - far) / 3) < 1e-8 * norm


THEIR_NAMES = {"dpo": "sigmoid", "cdpo": "sigmoid", "ipo": "ipo", "hinge": "hinge", "simpo": "simpo"}
THEIR_DPO = {  # the losses of TRL's main trainer that are here too, and what they take of an answer's tokens
    ("dpo", "sum"): "sigmoid",
    ("dpo", "mean"): "sigmoid_norm",
    ("ipo", "mean"): "ipo",
    ("hinge", "sum"): "hinge",
}


@pytest.fixture(scope="module")
def trl():
    """Its trainers of DPO, CPO and ORPO, whose losses are called by themselves."""
    pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    pytest.importorskip("datasets", reason="trl needs datasets")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    places = {"DPO": "trainer", "CPO": "experimental.cpo", "ORPO": "experimental.orpo"}
    modules = {name: import_module(f"trl.{at}.{name.lower()}_trainer") for name, at in places.items()}
    return SimpleNamespace(**{name: getattr(one, f"{name}Trainer") for name, one in modules.items()})


@pytest.mark.parametrize(("loss", "how"), THEIR_DPO, ids=["-".join(kind) for kind in THEIR_DPO])
def test_the_loss_of_a_batch_is_that_of_trls_trainer(trl, wing, loss, how):
    """From logits on: TRL takes the first rows for chosen, and a mask in place of labels."""
    import torch

    _, model, _, logits = wing
    ids, pairs = given(loss, how)
    order = np.r_[0 : 2 * PAIRS : 2, 1 : 2 * PAIRS : 2]
    labels, reference = pairs.labels[order], pairs.reference[order]
    counts = labels != SKIPPED
    if how == "mean":  # they divide the difference of sums, and so the reference's share of it
        reference = reference * counts.sum(-1)
    log_probs = torch.log_softmax(torch.tensor(logits[order]), -1)
    log_probs = log_probs.gather(-1, torch.tensor(np.where(counts, labels, 0))[..., None].long())[..., 0]
    shifted = torch.nn.functional.pad(torch.tensor(counts), (1, 0))  # targets are tokens one place further on
    per_token = torch.where(torch.tensor(counts), log_probs, 0.0)
    out = SimpleNamespace(log_probs=per_token, entropy=per_token, mean_logits=per_token, is_top1=torch.tensor(counts))
    inputs = {"input_ids": torch.zeros(shifted.shape, dtype=torch.long), "completion_mask": shifted.long()}
    inputs |= {"attention_mask": torch.ones_like(shifted)}
    inputs |= {f"ref_{side}_logps": half for side, half in zip(SIDES, torch.tensor(reference).chunk(2), strict=True)}
    same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=same,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[THEIR_DPO[loss, how]],
        loss_weights=[1.0],
        beta=LOSSES[loss]["beta"],
        use_weighting=False,
        _total_train_tokens=0,
        _metrics={"eval": defaultdict(list)},
    )
    theirs = trl.DPO._compute_loss(trainer, lambda **_: out, inputs, False)
    assert model.loss(ids, pairs) == pytest.approx(float(theirs), rel=1e-12)
    found = {name: value[0] for name, value in trainer._metrics["eval"].items() if name.startswith("rewards/")}
    if how == "sum":  # they log rewards with beta
        policy = model.log_probs(ids, pairs.labels)[0]
        told = rewards(policy, pairs.reference, LOSSES[loss]["beta"])
        names = {"chosen": "chosen", "rejected": "rejected", "margins": "margin", "accuracies": "accuracy"}
        assert found == pytest.approx({f"rewards/{theirs}": told[own] for theirs, own in names.items()}, rel=1e-6)


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_log_probabilities_of_answers_are_those_of_trl(trl, wing, how):
    """CPO's and ORPO's own count of them, by which their losses are asked below."""
    import torch

    _, model, _, logits = wing
    ids, labels, _ = batch()
    wanted = torch.tensor(np.pad(labels, ((0, 0), (1, 0)))).long()  # theirs shift: the last logits predict nothing
    scores = torch.nn.functional.pad(torch.tensor(logits), (0, 0, 0, 1))
    sums, counts = model.log_probs(ids, labels)
    for trainer in (trl.CPO, trl.ORPO):
        theirs = trainer.get_batch_logps(scores, wanted.clone(), average_log_prob=how == "mean")
        np.testing.assert_allclose(reduced(sums, counts, how), theirs.numpy(), rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_trl(trl, loss):
    """Of log-probabilities, by CPO and ORPO: where these know no reference, it goes into the log-probabilities.

    Theirs (1.16) differ in what goes with them: CPO adds the likelihood of the chosen answer unless `cpo_alpha` is 0;
    ORPO's is that of prompt and answer (`chosen_nll_loss` in its `concatenated_forward`), where here, as in the paper,
    it is the answer's; the rest is computed in float32. cDPO is CPO's `label_smoothing`, which the trainer of DPO knows
    in other losses alone ("robust", "exo_pair").
    """
    import torch

    from common.oracle.preference import PREFERENCES

    rng, settings = np.random.default_rng(8), LOSSES[loss]
    policy, reference = -rng.uniform(0.3, 4, (6, 2)), -rng.uniform(0.3, 4, (6, 2))
    got = PREFERENCES[loss](policy, reference, Preference(loss, **settings))
    about = {"beta": settings["beta"], "label_smoothing": settings.get("smoothing", 0.0), "alpha": 0.0}
    about |= {"simpo_gamma": settings.get("gamma", 0.0), "loss_type": THEIR_NAMES.get(loss, "")}
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **about)
    if loss == "orpo":  # without the likelihood, which their step subtracts from
        chosen, rejected = (torch.tensor(side) for side in policy.T)
        theirs = -policy[:, 0] - trl.ORPO.odds_ratio_loss(trainer, chosen, rejected)[0].numpy()
        np.testing.assert_allclose(got, theirs, rtol=1e-5)
        return
    ahead = policy if loss == "simpo" else policy - reference
    theirs = trl.CPO.cpo_loss(trainer, *(torch.tensor(side) for side in ahead.T))[0].numpy()
    np.testing.assert_allclose(got, theirs, rtol=1e-12)
