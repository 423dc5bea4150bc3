"""Labels that do not count, and labels at the ends of the vocabulary."""

import numpy as np

from common.backend import IGNORED
from common.config import GPTConfig
from common.parity.adversarial.edge import Build, Edge, Outcome, flat, refused
from common.parity.adversarial.lengths import CONFIG, IDS, TARGETS, weights

MANY = GPTConfig(131, 5, 3, 1, 1, ff_dim=2, tie_embeddings=False, qkv_bias=False)
EXTREME = 10_000.0


def _scored(targets: np.ndarray, build: Build, config: GPTConfig = CONFIG, changed: dict | None = None) -> Outcome:
    """Loss (also without its gradient) and all gradients."""
    model = build(config, changed or weights(config))
    gradients = model.gradients(IDS, targets)
    return {
        "loss": gradients.value,
        "loss alone": model.loss(IDS, targets),
        "gradients": flat(config, gradients.grads),
    }


def _only(*kept: tuple[int, int]) -> np.ndarray:
    """The targets, all but a few ignored."""
    out = np.full_like(TARGETS, IGNORED)
    for place in kept:
        out[place] = TARGETS[place]
    return out


def _many(build: Build) -> Outcome:
    """Both -100 and the label that it would be, counted from the end of a vocabulary of 131."""
    targets = _only((0, 0), (1, 2))
    targets[0, 3], targets[1, 4] = MANY.vocab_size - 100, MANY.vocab_size - 1
    return _scored(targets, build, MANY)


def _beyond(build: Build) -> Outcome:
    model = build(CONFIG, weights())

    def scored(label: int) -> str:
        return refused(lambda: model.loss(IDS, np.where(TARGETS == 6, label, TARGETS)))

    return {"the label V": scored(7), "the label -1": scored(-1), "the label -99": scored(-99)}


def _extreme(build: Build) -> Outcome:
    """Logits of 1e4 and -1e4, the same at every position and exact: the final norm gives its bias alone."""
    changed = weights()
    changed["model.norm.weight"] = np.zeros(4, np.float32)
    changed["model.norm.bias"] = np.array([1, 0, 0, 0], np.float32)
    changed["lm_head.weight"][:, 0] = EXTREME * np.array([1, -1, 0, 1, -1, 0.5, -0.5])
    found = _scored(TARGETS, build, changed=changed)
    return {"loss": found["loss"], "loss alone": found["loss alone"], "gradients": found["gradients"]}


def _unequal_micro_batches(build: Build) -> Outcome:
    """Three micro-batches, of which one counts nothing and one a single label, share one denominator."""
    targets = np.stack([TARGETS, _only(), _only((1, 4))])
    gradients = build(CONFIG, weights()).gradients(np.stack([IDS, IDS, IDS[::-1]]), targets)
    return {"loss": gradients.value, "gradients": flat(CONFIG, gradients.grads)}


EDGES = (
    Edge(
        "all labels ignored",
        ("Ignored", "Policy"),
        "no label counts, so the mean is 0 / 0: loss and gradients are 0, where PyTorch's own loss is NaN",
        lambda build: _scored(_only(), build),
        result="policy",
    ),
    Edge("one label counts", ("Ignored",), "the mean over one", lambda build: _scored(_only((1, 2)), build)),
    Edge(
        "ignored labels in a large vocabulary",
        ("Ignored",),
        "with more than 100 ids, -100 counted from the end is a label: JAX would silently score it",
        _many,
    ),
    Edge(
        "the last label",
        ("Boundary",),
        "label V - 1 everywhere",
        lambda build: _scored(np.full_like(TARGETS, CONFIG.vocab_size - 1), build),
    ),
    Edge(
        "labels beyond the vocabulary",
        ("Boundary",),
        "JAX would clamp them or count from the end; only -100 is a label that does not count",
        _beyond,
        result="raises",
    ),
    Edge(
        "logits of 1e4",
        ("Overflow",),
        "exp of them overflows unless the largest is subtracted; the loss of an impossible label is finite",
        _extreme,
        tiers=("float64", "float32"),
    ),
    Edge(
        "micro-batches without labels",
        ("Ignored",),
        "micro-batches share one denominator: a mean of their means would be NaN or weigh them alike",
        _unequal_micro_batches,
    ),
)
