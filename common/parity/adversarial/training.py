"""Optimizer steps at the limits of gradients, clipping and the schedule.

The models have no key bias: AdamW would make whole steps of the rounding noise that is its gradient.
"""

import numpy as np

from common import params
from common.backend import IGNORED
from common.config import GPTConfig, TrainConfig
from common.parity.adversarial.edge import Build, Edge, Outcome, Weights, flat
from common.parity.adversarial.lengths import IDS, TARGETS

CONFIG = GPTConfig(7, 5, 3, 1, 1, ff_dim=3, tie_embeddings=False, qkv_bias=False)
TRAIN = TrainConfig(steps=4, warmup_steps=0, learning_rate=1e-2, schedule="constant", clip_norm=1.0)
COSINE = TRAIN.with_(schedule="cosine", initial_rate=1e-3, final_rate=2e-3, warmup_steps=2)
NORM = 3.93368057892  # of the first step's gradients, to 12 digits: a test holds it to that
NOTHING = np.full_like(TARGETS, IGNORED)


def weights() -> dict[str, np.ndarray]:
    """Every parameter random."""
    return params.randomise(CONFIG, 0)


def _trained(
    build: Build,
    train: TrainConfig = TRAIN,
    steps: int = 2,
    start: int = 0,
    changed: Weights | None = None,
    targets: np.ndarray = TARGETS,
) -> Outcome:
    """Losses, gradient norms, weights and slots after some steps."""
    model = build(CONFIG, weights() if changed is None else changed)
    model.start_training(train, step=start)
    results = [model.train_step(IDS, targets) for _ in range(steps)]
    slots = model.optimizer_slots()
    return {
        "losses": np.array([result.loss for result in results]),
        "norms": np.array([result.grad_norm for result in results]),
        "weights": flat(CONFIG, model.weights()),
        "exp_avg": flat(CONFIG, slots, ".exp_avg"),
        "exp_avg_sq": flat(CONFIG, slots, ".exp_avg_sq"),
    }


def _small() -> Weights:
    """The final norm and the head scaled by 2^-40 each: every gradient is 1e-12 or less."""
    out = weights()
    out["model.norm.bias"] = 0 * out["model.norm.bias"]
    return out | {name: out[name] * np.float32(2.0**-40) for name in ("model.norm.weight", "lm_head.weight")}


def _large() -> Weights:
    """The head scaled by 2^40: gradients of 1e12, and a softmax that is certain."""
    out = weights()
    return out | {"lm_head.weight": out["lm_head.weight"] * np.float32(2.0**40)}


EDGES = (
    Edge(
        "gradients of zero",
        ("Degenerate",),
        "the norm is 0: clipping must not divide by it, and only the decay moves the weights",
        lambda build: _trained(build, targets=NOTHING),
    ),
    Edge(
        "gradients of 1e-12",
        ("Degenerate",),
        "below the epsilon of Adam: clipping must not scale them up to its limit",
        lambda build: _trained(build, changed=_small()),
    ),
    Edge(
        "gradients of 1e12",
        ("Overflow",),
        "clipped by twelve orders of magnitude; their squares are 1e24",
        lambda build: _trained(build, changed=_large()),
    ),
    Edge(
        "a norm at the limit",
        ("Boundary",),
        "equal to 12 digits: the factor limit / (norm + 1e-6) is a little below 1, where optax would change nothing",
        lambda build: _trained(build, TRAIN.with_(clip_norm=NORM), steps=1),
    ),
    Edge(
        "no clipping",
        ("Boundary",),
        "the norm is measured, the gradients stay",
        lambda b: _trained(b, TRAIN.with_(clip_norm=None)),
    ),
    Edge(
        "clipping from the third step on",
        ("Boundary",),
        "the first two steps keep their gradients, all longer than the limit, and the third does not",
        lambda build: _trained(build, TRAIN.with_(clip_from=2), steps=4),
    ),
    Edge(
        "no warm-up",
        ("Boundary",),
        "with 0 steps of warm-up the first step has the peak rate, and nothing is divided by zero",
        lambda build: _trained(build, COSINE.with_(warmup_steps=0), steps=1),
    ),
    Edge(
        "the first step of a warm-up from zero",
        ("Boundary",),
        "the rate is 0: moving averages fill, no weight moves",
        lambda build: _trained(build, COSINE.with_(initial_rate=0.0), steps=1),
    ),
    Edge(
        "a constant rate after a warm-up",
        ("Boundary",),
        "the first steps are a warm-up's, those behind it have the peak rate, the last one too",
        lambda build: _trained(build, COSINE.with_(schedule="constant_with_warmup"), start=1, steps=3),
    ),
    Edge(
        "a rate that falls on a line",
        ("Boundary",),
        "from the peak, right behind the warm-up, by the same amount every step; half way a cosine is there, too",
        lambda build: _trained(build, COSINE.with_(schedule="linear", steps=6), start=2, steps=3),
    ),
    Edge(
        "the last step and beyond",
        ("Boundary", "Policy"),
        "the last step is nearly at the final rate, and steps after the last stay there",
        lambda build: _trained(build, COSINE, start=COSINE.steps - 1, steps=3),
        result="policy",
    ),
)
