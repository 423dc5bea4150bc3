"""Fine-tuning at its limits: preferences that are certain, the least and the largest rank, labels of a classifier."""

import numpy as np

from common import adapters, params
from common.adapters import Adapter
from common.backend import IGNORED
from common.config import GPTConfig
from common.parity.adversarial.edge import Build, Edge, Outcome, flat, refused
from common.parity.adversarial.lengths import IDS, TARGETS, weights
from common.preference import LOSSES, Pairs, Preference

CONFIG = GPTConfig(7, 5, 4, 1, 1, ff_dim=3, tie_embeddings=False, qkv_bias=False)
FAR = 1000.0  # nats
SETTINGS = {"simpo": {"beta": FAR, "gamma": 0.5}, "cdpo": {"smoothing": 0.1}}


def _certain(build: Build) -> Outcome:
    """Two pairs of the same texts, one the other way round: the first is far ahead of the reference, if there is one,
    the second far behind."""
    model, out = build(CONFIG, weights(CONFIG)), {}
    ids, labels = (np.concatenate([two, two[::-1]]) for two in (IDS, TARGETS))
    labels[:, :2] = IGNORED
    reference = np.array([-FAR, 0.0, 0.0, -FAR])
    for loss in LOSSES:
        preference = Preference(loss, **SETTINGS.get(loss, {}))
        against = reference if preference.needs_reference else np.zeros(4)
        gradients = model.gradients(ids, Pairs(labels, against, preference))
        out |= {f"{loss}/loss": gradients.value, f"{loss}/gradients": flat(CONFIG, gradients.grads)}
    return out


def _ranks(build: Build) -> Outcome:
    """One row, two, as many as its smaller side has, and one more; and what a fresh adapter changes."""
    out: Outcome = {}
    for rank in (1, 2, 3):
        adapter = Adapter(targets=("*.up_proj",), rank=rank, alpha=2.0, dora=rank == 3)
        config = CONFIG.with_(adapters=adapter)
        model = build(config, weights(config))
        gradients = model.gradients(IDS, TARGETS)
        out |= {
            f"rank {rank}/logits": model.forward(IDS).logits,
            f"rank {rank}/gradients": flat(config, gradients.grads),
        }
    too_large = CONFIG.with_(adapters=Adapter(targets=("*.up_proj",), rank=4))
    out["rank 4 of 3 x 4"] = refused(lambda: params.table(too_large))
    fresh = adapters.add(CONFIG, weights(CONFIG), Adapter(rank=2, dora=True))
    return out | {"fresh/logits": build(fresh[0], dict(fresh[1])).forward(IDS).logits}


def _labels(build: Build) -> Outcome:
    """The last label of three, and two that there are not, though the vocabulary has them."""
    config = CONFIG.with_(num_labels=3)
    model, last = build(config, weights(config)), np.full_like(TARGETS, IGNORED)
    last[:, -1] = 2

    def scored(label: int) -> str:
        return refused(lambda: model.loss(IDS, np.where(last == 2, label, last)))

    gradients = model.gradients(IDS, last)
    found = {"loss": gradients.value, "gradients": flat(config, gradients.grads)}
    return found | {"the label C": scored(3), "the label -1": scored(-1)}


EDGES = (
    Edge(
        "preferences that are certain",
        ("Overflow",),
        "log-ratios of 1000 nats: exp of them overflows; a pair that is far enough ahead has a loss of 0, and no slope",
        _certain,
    ),
    Edge(
        "the least and the largest rank",
        ("Boundary",),
        "one row; as many as the matrix's larger side, where one more is refused; a fresh adapter changes nothing",
        _ranks,
    ),
    Edge(
        "labels beyond a classifier's",
        ("Boundary",),
        "ids that the vocabulary has are no labels: JAX would clamp them",
        _labels,
    ),
)
