"""C3: in float32 and bfloat16 every implementation is as accurate as the arithmetic allows.

Three questions. Is one wing worse than the other (two-sided)? Is either worse than the oracle with noise in place of
rounding (caps)? And, sharpest of all: given an implementation's own value at every tap, does it go on to the next tap
with no more error than the one or two roundings in between? The last finds a sum, a softmax or a loss that is computed
in too narrow a type, which a comparison of outputs cannot tell from honest rounding.

TF32 is for a GPU whose door knows that type; it was not run where this was written.
"""

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from common import params, vectors
from common.backend import Model
from common.compare import difference, nats, rms
from common.config import DTYPES
from common.oracle.layers import Linear
from common.oracle.loss import token_loss
from common.oracle.preference import preference_loss, row_log_probs
from common.parity import noise, rows, ulps
from common.parity.rows import Exhibit, Row
from common.parity.thresholds import ROUNDOFF
from common.parity.trial import Session, Trial
from common.preference import Pairs

NAME = "C3"
TITLE = "lower precision"
SENTENCE = (
    "In float32 and bfloat16 both wings err by what rounding explains: no more than twice the other, than a noisy"
    " oracle allows, or than the few roundings between one intermediate value and the next."
)
NARROW = ("float32", "tf32", "bfloat16")
SUMS = ROUNDOFF["float32"]  # reductions are float32 in every lower precision
NUDGES = 5  # runs of the gradient's control

Values = Mapping[str, np.ndarray]


def tiers(session: Session) -> list[str]:
    """The lower precisions of a session; TF32 exists on GPUs only."""
    known = [tier for tier in NARROW if session.wants(tier) and tier in DTYPES]
    return [tier for tier in known if tier != "tf32" or session.device != "cpu"]


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """All rows of one case in every lower precision."""
    for tier in tiers(trial.session):
        yield from _component(trial, tier) if trial.case.path else _model(trial, tier)
        if _longest_linear(trial):
            yield _matmul(trial, tier)


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `for_case` must yield: from the case, the definition and the number of implementations."""
    output = "output" if trial.case.path else "logits"
    names = [f"{output} cap", "gradients cap"] + ([output, "gradients"] if len(trial.names) > 1 else [])
    names += ["matmul"] if _longest_linear(trial) else []
    if trial.case.path:
        names += [] if _has_taps(trial) else ["own rounding"]
    else:
        names += ["own rounding", "loss", "loss of own logits"]
        names += ["own rounding of adapters"] if trial.case.config.adapters else []
    narrow = [] if trial.case.path else ["nats", "top-1"]
    found = tiers(trial.session)
    return {(n, tier) for tier in found for n in names} | {(n, tier) for tier in found if _narrow(tier) for n in narrow}


def once(session: Session) -> Iterator[Row | Exhibit]:
    """Elementwise functions, which belong to no case."""
    yield from ulps.rows_of(NAME, session) if "float32" in tiers(session) else ()


def declared_once(session: Session) -> set[tuple[str, str]]:
    """Peak and p99 of every elementwise function."""
    return ulps.declared() if "float32" in tiers(session) else set()


def _narrow(tier: str) -> bool:
    return ROUNDOFF[tier] > ROUNDOFF["float32"]


def _inputs(tier: str, **numbers: float) -> dict[str, float]:
    """The roundoffs of values, of sums (and of what is computed in their type), and further numbers."""
    return {"unit": ROUNDOFF[tier], "sums": SUMS, **numbers}


def _row(trial: Trial, tier: str, what: str, rule: str, errors: Mapping[str, float], inputs=None, **about) -> Row:
    return Row(NAME, trial.case.name, what, tier, rule, dict(errors), dict(inputs or {}), **about)


# --- cases -----------------------------------------------------------------------------------------------------------


def _component(trial: Trial, tier: str) -> Iterator[Row]:
    found = {name: model.component(trial.case.path, *trial.case.signals()) for name, model in trial.each(tier).items()}
    yield from _outputs(
        trial, tier, "output", {n: out for n, (out, _) in found.items()}, trial.truth.expected["output"]
    )
    if not _has_taps(trial):  # a single step: its whole error is its own
        errors = {name: _relative(out, trial.truth.expected["output"]) for name, (out, _) in found.items()}
        yield _row(trial, tier, "own rounding", "own rounding", errors, _own_inputs(trial, tier))
    yield from _gradients(trial, tier, {name: gradients.grads for name, (_, gradients) in found.items()})


def _model(trial: Trial, tier: str) -> Iterator[Row]:
    ids, targets = trial.case.tokens()
    models, truth = trial.each(tier), trial.truth
    logits = {name: model.forward(ids).logits for name, model in models.items()}
    yield from _outputs(trial, tier, "logits", logits, truth.forward.logits)
    yield from _own_rounding(trial, tier, models)
    yield from _losses(trial, tier, models, logits)
    grads = {name: model.gradients(ids, targets, _dropout(trial)).grads for name, model in models.items()}
    yield from _gradients(trial, tier, grads)
    if _narrow(tier):
        yield from _predictions(trial, tier, logits)


def _outputs(trial: Trial, tier: str, what: str, got: Values, want: np.ndarray) -> Iterator[Row]:
    noisy = [_relative(one, want) for one in noise.outputs(trial.truth, tier)]
    size, spread = noise.size_and_spread(noisy)
    if len(got) > 1:
        inputs = _inputs(tier, spread=spread)
        yield rows.arrays(NAME, trial.case.name, what, tier, "two-sided", got, want, inputs, pairs=False)
    rule = "noise, 16 bits" if tier == "bfloat16" else "noise"
    yield rows.arrays(NAME, trial.case.name, f"{what} cap", tier, rule, got, want, {"noise": size}, pairs=False)


def _own_rounding(trial: Trial, tier: str, models: Mapping[str, Model]) -> Iterator[Row]:
    """The tap with the largest error of its own, by implementation; of those that adapters make, the one with the
    largest share of what their roundings allow."""
    ids, _ = trial.case.tokens()
    inputs, errors, places, adapted = _own_inputs(trial, tier), {}, [], {}
    for name, model in models.items():
        taps = model.forward(ids, taps=("*",)).taps
        steps = noise.step_by_step(trial.truth, taps)
        own = {tap: _relative(value, steps[tap]) for tap, value in taps.items()}
        within = noise.of_adapters(trial.truth, taps, steps, tier)
        worst = max(own.keys() - within.keys(), key=own.get)
        errors[name] = own[worst]
        places.append(f"{name} {worst}")
        if within:
            worst = max(within, key=lambda tap: own[tap] / within[tap])
            adapted[name] = own[worst], within[worst], f"{name} {worst}"
    about = {"size": sum(value.size for value in trial.truth.forward.taps.values())}
    yield _row(trial, tier, "own rounding", "own rounding", errors, inputs, where="; ".join(places), **about)
    if adapted:
        errors = {name: error for name, (error, _, _) in adapted.items()}
        inputs |= {f"within {name}": size for name, (_, size, _) in adapted.items()}
        where = "; ".join(place for *_, place in adapted.values())
        yield _row(trial, tier, "own rounding of adapters", "own rounding, adapters", errors, inputs, where=where)


def _own_inputs(trial: Trial, tier: str) -> dict[str, float]:
    """With the length of the longest sum: over the input of a matrix, or over the keys."""
    widths = [p.shape[-1] for p in params.table(trial.case.config).values() if len(p.shape) > 1]
    return _inputs(tier, terms=float(max(*widths, trial.case.length)))


def _losses(trial: Trial, tier: str, models: Mapping[str, Model], logits: Values) -> Iterator[Row]:
    """The loss against the oracle's, and against the loss of the implementation's own logits."""
    (ids, targets), truth = trial.case.tokens(), trial.truth
    want = _loss(truth.forward.logits, targets)
    losses = {name: model.loss(ids, targets) for name, model in models.items()}
    noisy = rms(np.array([_loss(one, targets) - want for one in noise.outputs(truth, tier)])) / abs(want)
    scale = max(abs(want), _size(truth.forward.logits, targets))  # what is added and subtracted on the way
    sums = SUMS * scale / abs(want)
    errors = {name: _relative(value, want) for name, value in losses.items()}
    yield _row(trial, tier, "loss", "loss", errors, {"noise": noisy, "sums": sums})
    own = {name: abs(loss - _loss(logits[name], targets)) / scale for name, loss in losses.items()}
    yield _row(trial, tier, "loss of own logits", "loss of own logits", own, {"sums": SUMS})


def _loss(logits: np.ndarray, targets: Any) -> float:
    logits = np.asarray(logits, np.float64)
    if isinstance(targets, Pairs):
        total, count = preference_loss(SimpleNamespace(head=lambda own: own), logits, targets)
    else:
        total, count = token_loss(logits, targets)
    return float(total / max(count, 1))


def _size(logits: np.ndarray, targets: Any) -> float:
    """The largest number that a loss adds up: a logit, or the log-probability of a response."""
    largest = float(np.abs(logits).max())
    if not isinstance(targets, Pairs):
        return largest
    return max(largest, float(np.abs(row_log_probs(logits, targets.labels)[0]).max()))


def _predictions(trial: Trial, tier: str, logits: Values) -> Iterator[Row]:
    """What 16 bits do to the predicted distribution: nats at the worst position, and other first choices."""
    want, noisy = trial.truth.forward.logits, noise.outputs(trial.truth, tier)
    worst = {name: float(nats(own, want).max()) for name, own in logits.items()}
    centred = want - want.mean(-1, keepdims=True)
    largest = float(np.sqrt(np.square(centred).mean(-1)).max())
    yield _row(trial, tier, "nats", "nats", worst, {"logits": largest}, size=want[..., 0].size)
    ordered = np.sort(want, -1)
    clear = ordered[..., -1] - ordered[..., -2] > 2 * noise.largest_logit_error(tier, want, noisy)
    wrong = {name: float((clear & (own.argmax(-1) != want.argmax(-1))).sum()) for name, own in logits.items()}
    note = f"{int((~clear).sum())} of {clear.size} positions are ties within the noise"
    yield _row(trial, tier, "top-1", "exact", wrong, size=int(clear.sum()), note=note)


# --- gradients -------------------------------------------------------------------------------------------------------


def _gradients(trial: Trial, tier: str, grads: Mapping[str, Values]) -> Iterator[Row]:
    """Pooled over the live tensors, because single small ones are too noisy to judge."""
    want = {n: v for n, v in trial.truth.expected.items() if n.startswith(("grad/", "slope/"))}
    live = {n: v for n, v in want.items() if not trial.truth.dead(n.partition("/")[2])}
    errors = {name: pooled(trial, own, live) for name, own in grads.items()}
    size, spread = _control(trial, tier, live)
    about = {"size": len(live), "note": f"pooled over {len(live)} tensors"}
    if len(grads) > 1:
        yield _row(trial, tier, "gradients", "two-sided", errors, _inputs(tier, spread=spread), **about)
    yield _row(trial, tier, "gradients cap", "gradients", errors, _inputs(tier, control=size), **about)


def pooled(trial: Trial, grads: Values, want: Values) -> float:
    """RMS over tensors of their relative error: elementwise where the oracle knows every number ("grad/…"), else the
    error of its slope along one Gaussian direction, relative to the norm of the gradient ("slope/…").
    """
    table, errors = params.table(trial.case.config), []
    for name, value in want.items():
        kind, _, tensor = name.partition("/")
        own = np.asarray(grads[tensor], np.float64)
        if kind == "grad":
            errors.append(_relative(own, value))
        else:
            slope = float((own * vectors.direction(trial.case, table[tensor])).sum())
            errors.append(abs(slope - float(value)) / float(np.linalg.norm(own)))
    return rms(np.array(errors)) if np.isfinite(errors).all() else math.inf


def _control(trial: Trial, tier: str, want: Values) -> tuple[float, float]:
    """(RMS, largest/smallest) of the errors of float64 gradients when every weight, and a component's input, is moved
    by one rounding of the tier. Each implementation is measured against itself unmoved; the smaller one counts.
    """
    found = []
    for name in trial.names:
        still = _exact(trial, name, None, 0)
        reference = {key: _projected(trial, key, still) for key in want}
        moved = [_exact(trial, name, ROUNDOFF[tier], seed) for seed in range(NUDGES)]
        found.append(noise.size_and_spread([pooled(trial, own, reference) for own in moved]))
    return min(found)


def _exact(trial: Trial, name: str, unit: float | None, seed: int) -> Values:
    """float64 gradients of one implementation, with numbers moved by `unit`."""
    case, move = trial.case, (lambda arrays: noise.nudged(arrays, unit, seed)) if unit else dict
    model = trial.build(name, weights=move(case.weights())) if unit else trial.model(name)
    if not case.path:
        return model.gradients(*case.tokens(), _dropout(trial)).grads
    x, cotangent = case.signals()
    return model.component(case.path, move({"input": x})["input"], cotangent)[1].grads


def _projected(trial: Trial, key: str, grads: Values) -> np.ndarray:
    kind, _, tensor = key.partition("/")
    if kind == "grad":
        return grads[tensor]
    return (grads[tensor] * vectors.direction(trial.case, params.table(trial.case.config)[tensor])).sum()


def _dropout(trial: Trial) -> tuple[int, int] | None:
    """Slopes are stored without dropout, full gradients with it."""
    return (trial.case.seed, vectors.DROPOUT_STEP) if trial.case.full_gradient else None


# --- single products -------------------------------------------------------------------------------------------------


def _longest_linear(trial: Trial) -> str:
    """The path of the case's linear layer with the longest sums, or "". With adapters a layer is several products."""
    within = trial.case.path + "." if trial.case.path else ""
    layers, table = {}, params.table(trial.case.config)
    for name, p in table.items():
        path = name.removesuffix(".weight")
        weighs = name.startswith(within) and path != name and not any(one.startswith(f"{path}.lora_") for one in table)
        if weighs and isinstance(trial.truth.model.net.at(path), Linear):
            layers[path] = p.shape[-1]
    return max(layers, key=layers.get, default="")


def _matmul(trial: Trial, tier: str) -> Row:
    """The largest elementwise error of one linear layer, as a share of |x| |W|^T + |b|."""
    path = _longest_linear(trial)
    weight = trial.truth.model.params[f"{path}.weight"]
    bias = trial.truth.model.params.get(f"{path}.bias", np.zeros(len(weight)))
    x, cotangent = (_signal(trial, which, width) for which, width in (("x", weight.shape[1]), ("y", weight.shape[0])))
    want, scale = x @ weight.T + bias, np.abs(x) @ np.abs(weight).T + np.abs(bias)
    got = {name: model.component(path, x, cotangent)[0] for name, model in trial.each(tier).items()}
    errors = {name: float((np.abs(y - want) / scale).max()) for name, y in got.items()}
    inputs = _inputs(tier, terms=float(weight.shape[1] + 1))
    return _row(trial, tier, "matmul", "matmul", errors, inputs, size=want.size, where=path)


def _signal(trial: Trial, which: str, width: int) -> np.ndarray:
    """Gaussian [B, T, width], exact in bfloat16."""
    shape = (trial.case.batch, trial.case.length, width)
    return np.asarray(noise.rounded(params.draw(trial.case.seed, f"rounding/{which}", shape), bits=8))


# --- small things ----------------------------------------------------------------------------------------------------


def _has_taps(trial: Trial) -> bool:
    return noise.takes_taps(trial.truth.model.net.at(trial.case.path))


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    """Relative RMS error; infinite where a number is missing or out of place."""
    try:
        return difference("", np.asarray(got), np.asarray(want)).relative
    except ValueError:
        return math.inf
