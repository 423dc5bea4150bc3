"""Known mistakes of losses and of gradients."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common import params
from common.backend import IGNORED
from common.cases import Case
from common.compare import difference
from common.parity.diverge.inputs import Subject

SAME = 1e-6  # of the loss: enough to tell one way of counting from another in any precision but bfloat16


def loss_mistakes(got: float, logits: np.ndarray, targets: np.ndarray) -> Iterator[str]:
    """Ways of counting that would give this loss. Logits [B, T, V], targets [B, T]."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    counts = targets != IGNORED

    def costs(labels: np.ndarray) -> np.ndarray:
        return -np.take_along_axis(log_probs, labels[..., None] % logits.shape[-1], -1)[..., 0]

    each = costs(np.where(counts, targets, 0))
    total, rows = (each * counts).sum(), np.maximum(counts.sum(-1), 1)
    right = total / max(counts.sum(), 1)
    early, late = np.roll(targets, -1, 1), np.roll(targets, 1, 1)
    ways = {
        "it is divided by all positions, ignored ones too": total / counts.size,
        "it is the mean of the rows' means": float(((each * counts).sum(-1) / rows).mean()),
        "ignored positions are scored as token 0": each.mean(),
        f"ignored positions are scored as token V {IGNORED}": costs(targets).mean(),
        "it is a sum, not a mean": total,
        "it is in bits, not in nats": right / np.log(2),
        "it is divided by the rows, not by the targets": total / len(targets),
        "targets are shifted once more": _mean(costs(np.where(early == IGNORED, 0, early)), (early != IGNORED), -1),
        "targets are not shifted": _mean(costs(np.where(late == IGNORED, 0, late)), (late != IGNORED), 0),
    }
    for what, value in ways.items():
        if abs(got - value) <= SAME * abs(value):
            yield f"exactly what comes out if {what}"
            return
    yield f"it is {got / right:.6g} times the right loss of these logits"


def _mean(costs: np.ndarray, counts: np.ndarray, edge: int) -> float:
    """Over the positions that count, without the one that was rolled in."""
    counts = counts.copy()
    counts[:, edge] = False
    return float((costs * counts).sum() / max(counts.sum(), 1))


def gradient_mistakes(name: str, got: np.ndarray, want: np.ndarray, subject: Subject) -> Iterator[str]:
    """What a wrong gradient of this parameter may mean."""
    if not np.any(got):
        yield "it is zero: the path to the loss is cut (detach, stop_gradient, no_grad), or the parameter is not used"
    elif name == "model.embed_tokens.weight" and subject.config.tie_embeddings:
        absent = np.setdiff1d(np.arange(len(got)), subject.ids)
        if len(absent) and not np.any(got[absent]) and np.any(want[absent]):
            yield "tokens that are not in the input get no gradient: the head's share of the tied embedding is missing"
        elif len(absent) and np.allclose(got[absent], want[absent], rtol=1e-6, atol=0):
            yield "only tokens of the input get a wrong gradient: the share of the lookup is wrong or missing"


def components(names: Sequence[str]) -> list[str]:
    """The modules from [B, T, E] to [B, T, E] that these parameters belong to, in order, a block after its modules."""
    found: dict[str, None] = {}
    for number, name in enumerate(names):
        *path, last = name.split(".")[:-1]
        if last.endswith("norm") or len(path) > 1:
            found[".".join([*path, last] if last.endswith("norm") else path)] = None
        block = ".".join(path[:3]) if "layers" in path else None
        if block and not any(later.startswith(f"{block}.") for later in names[number + 1 :]):
            found[block] = None
    return list(found)


def first_component(models: Mapping[str, Any], subject: Subject, names: Sequence[str], bound: float) -> str | None:
    """The first module whose own backward pass differs between the sides, on equal inputs and cotangents.

    `names` are the parameters from the loss backwards to the first that parts. None: no module does, or a side cannot
    be asked for one.
    """
    if not all(hasattr(model, "component") for model in models.values()):
        return None
    table = params.table(subject.config)
    batch, length = subject.ids.shape
    x, cotangent = Case("diverge", "signals", subject.config, batch=batch, length=length).signals()
    for path in components(names):
        one, other = (model.component(path, x, cotangent)[1].grads for model in models.values())
        for name in one.keys() & other.keys():
            dead = name in table and table[name].dead
            if not dead and not difference(name, one[name], other[name]).relative <= bound:
                return path
    return None
