"""C2: in float64 all implementations compute what the oracle computes: every intermediate value, loss, gradient, step.

The oracle has no backward pass. Where the case is small its gradient is one complex step per number; everywhere the
wings' gradients are also measured along random directions against the oracle's complex-step slope in that direction.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from common import backend as door
from common import params, vectors
from common.decoding import padded
from common.oracle.gradient import slope
from common.parity import evidence, four_bits, steps
from common.parity import rows as table
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session, Trial

NAME = "C2"
TITLE = "float64 semantics"
SENTENCE = (
    "In float64 the oracle, PyTorch and JAX agree to 1e-12 in every intermediate value, the loss, every gradient, every"
    " slot of the KV cache, and every parameter and optimizer slot after 100 steps; also where the base lies in 4 bits."
)
TIER = "float64"
GLOBAL_DIRECTIONS = 2  # over all parameters at once, beside one for every tensor


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """All rows of one case, the cheap ones first."""
    if not trial.session.wants(TIER):
        return
    yield from _component(trial) if trial.case.path else _model(trial)
    yield from four_bits.rows(trial)
    if _has_vectors(trial):
        faults = vectors.stale(trial.case, vectors.FOLDER, trial.truth.built)
        yield table.exact(NAME, trial.case.name, "vectors", {"numpy": len(faults)}, note="; ".join(faults[:3]))


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `for_case` must yield, from the case, the oracle and the parameter table."""
    if not trial.session.wants(TIER):
        return set()
    stored = {("vectors", "exact")} if _has_vectors(trial) else set()
    stored |= four_bits.declared(trial)
    if trial.case.path:
        names = ["output", *(name for name in trial.truth.expected if name.startswith("grad/"))]
        return {(name, TIER) for name in names} | stored
    live = [name for name in _table(trial) if not trial.truth.dead(name)]
    names = ["logits", "loss", "loss/dropout", *(f"tap/{name}" for name in trial.truth.forward.taps)]
    judged = trial.case.full_gradient or len(trial.names) > 1  # elementwise: by the oracle, or by the other wing
    names += [f"grad/{name}" for name in _table(trial) if judged or trial.truth.dead(name)]
    names += [f"slope/{name}" for name in live]
    names += [f"slope/all/{number}" for number in range(GLOBAL_DIRECTIONS)]
    names += ["padded/logits"]
    if trial.case.config.cacheable:
        names += ["cache/logits"]
        names += [f"cache/{name}" for name in trial.truth.model.cache_contents(trial.truth.model.new_cache(1, 1))]
    names += ["train/losses", "train/norms", "train/oracle"]
    names += [f"train/weight/{name}" for name in live]
    slots = params.slots(trial.case.config, trial.case.train)
    names += [f"train/slot/{slot}" for slot in slots if slot.rpartition(".")[0] in live]
    return {(name, TIER) for name in names} | stored


def once(session: Session) -> Iterator[Row | Exhibit]:
    """Nothing: every comparison belongs to a case."""
    yield from ()


def declared_once(session: Session) -> set[tuple[str, str]]:
    """Nothing."""
    return set()


def _row(trial: Trial, what: str, got: Mapping[str, object], want: object) -> Row:
    """A row of the rule "float64", with evidence where the vectors hold what it was judged by."""
    stored = _has_vectors(trial) and trial.case.full_gradient and evidence.source(what) in trial.truth.built
    return table.arrays(NAME, trial.case.name, what, TIER, "float64", got, want, witnessed=stored)


def _has_vectors(trial: Trial) -> bool:
    """Whether the files of this case are at hand (an installation without the tests has none)."""
    return (vectors.FOLDER / f"{trial.case.name}.json").exists()


def _table(trial: Trial) -> dict[str, params.Parameter]:
    return params.table(trial.case.config)


def _component(trial: Trial) -> Iterator[Row]:
    found = {name: model.component(trial.case.path, *trial.case.signals()) for name, model in trial.each().items()}
    want = trial.truth.expected
    yield _row(trial, "output", {name: output for name, (output, _) in found.items()}, want["output"])
    grads = {name: gradients.grads for name, (_, gradients) in found.items()}
    true = {name.removeprefix("grad/"): value for name, value in want.items() if name.startswith("grad/")}
    yield from _gradients(trial, grads, true)


def _model(trial: Trial) -> Iterator[Row]:
    case, truth, models = trial.case, trial.truth, trial.each()
    ids, targets = case.tokens()
    forwards = {name: model.forward(ids, taps=("*",)) for name, model in models.items()}
    yield _row(trial, "logits", {name: forward.logits for name, forward in forwards.items()}, truth.forward.logits)
    for tap, value in truth.forward.taps.items():
        yield _row(trial, f"tap/{tap}", {n: forward.taps.get(tap, np.nan) for n, forward in forwards.items()}, value)
    losses = {name: model.loss(ids, targets) for name, model in models.items()}
    yield _row(trial, "loss", losses, truth.model.loss(ids, targets))
    yield from _differentiated(trial, ids, targets)
    yield from _cached(trial, ids)
    yield from _trained(trial)


def _differentiated(trial: Trial, ids: np.ndarray, targets: np.ndarray) -> Iterator[Row]:
    """Loss and gradients with dropout (where the case has it), elementwise and along random directions."""
    truth, dropout = trial.truth, (trial.case.seed, vectors.DROPOUT_STEP)
    found = {name: model.gradients(ids, targets, dropout) for name, model in trial.each().items()}
    grads = {name: gradients.grads for name, gradients in found.items()}
    oracle = truth.model
    want = float(oracle.loss_of(oracle.params, ids, targets, dropout))
    yield _row(trial, "loss/dropout", {name: gradients.value for name, gradients in found.items()}, want)
    true = {n.removeprefix("grad/"): value for n, value in truth.expected.items() if n.startswith("grad/")}
    yield from _gradients(trial, grads, true)
    for what, directions in _directions(trial).items():
        true = None if trial.case.config.has_dropout else truth.expected.get(what)
        if true is None:
            true = truth.once(
                what, lambda d=directions: slope(lambda p: oracle.loss_of(p, ids, targets, dropout), oracle.params, d)
            )
        errors = {name: _off(own, directions, float(true)) for name, own in grads.items()}
        size = sum(v.size for v in directions.values())
        yield Row(NAME, trial.case.name, what, TIER, "float64", errors, size=size)


def _gradients(trial: Trial, grads: Mapping[str, Mapping], true: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """A row for every tensor: elementwise against the oracle where it knows every number, and between the wings."""
    names = dict.fromkeys([*true, *_table(trial)] if not trial.case.path else true)
    scale = _scale(true.values() if true else next(iter(grads.values())).values())
    for name in names:
        got = {wing: own.get(name, np.nan) for wing, own in grads.items()}
        if trial.truth.dead(name):
            errors = {wing: float(np.abs(value).max()) / scale for wing, value in got.items()}
            yield Row(
                NAME, trial.case.name, f"grad/{name}", TIER, "dead", errors, size=int(np.size(got[trial.names[0]]))
            )
        elif name in true or len(got) > 1:
            yield _row(trial, f"grad/{name}", got, true.get(name))


def _directions(trial: Trial) -> dict[str, dict[str, np.ndarray]]:
    """Random directions: one for every live tensor with support on it alone, and a few over all of them."""
    live = {name: p for name, p in _table(trial).items() if not p.dead}
    found = {f"slope/{name}": {name: vectors.direction(trial.case, p)} for name, p in live.items()}
    for number in range(GLOBAL_DIRECTIONS):
        seed = trial.case.seed + number
        found[f"slope/all/{number}"] = {n: params.draw(seed, f"direction/all/{n}", p.shape) for n, p in live.items()}
    return found


def _off(grads: Mapping[str, np.ndarray], directions: Mapping[str, np.ndarray], true: float) -> float:
    """|<g, v> - slope| / |g|, over the tensors on which v has support. Its rounding is that of |g| |v| / sqrt(n)."""
    along = sum(float(np.vdot(grads[name], v)) for name, v in directions.items())
    norm = np.sqrt(sum(float(np.square(grads[name]).sum()) for name in directions))
    return abs(along - true) / max(float(norm), np.finfo(float).tiny)


def _scale(arrays) -> float:
    """RMS over all elements of all arrays."""
    arrays = list(arrays)
    squares, count = sum(float(np.square(a).sum()) for a in arrays), sum(a.size for a in arrays)
    return max(float(np.sqrt(squares / count)), np.finfo(float).tiny)


def _cached(trial: Trial, ids: np.ndarray) -> Iterator[Row]:
    """A prefill, single steps and a last chunk, rows padded to unequal lengths: logits, and what lies in the caches.
    These held another text before, whose positions would be seen, and were reset."""
    rows = [row[: ids.shape[1] - 2 * number].tolist() for number, row in enumerate(ids)]
    ids, positions = padded(rows, ids.shape[1])
    prefill = ids.shape[1] // 2
    cuts = [0, prefill, prefill + 1, prefill + 2, ids.shape[1]]
    capacity = ids.shape[1] + 1
    visible = positions >= 0
    other, others = ids[::-1], np.tile(np.maximum(np.arange(ids.shape[1]) - prefill, -1), (len(ids), 1))

    def through_cache(model):
        cache = model.new_cache(len(ids), capacity)
        for a, b in (cuts[:2], cuts[1:3]):
            model.extend(cache, other[:, a:b], others[:, a:b])
        model.reset(cache)
        parts = [model.extend(cache, ids[:, a:b], positions[:, a:b]) for a, b in itertools.pairwise(cuts)]
        return np.concatenate(parts, axis=1)[visible], model.cache_contents(cache)

    models = trial.each()
    full = trial.truth.once("padded/logits", lambda: trial.truth.model.forward(ids, positions).logits[visible])
    yield _row(trial, "padded/logits", {n: m.forward(ids, positions).logits[visible] for n, m in models.items()}, full)
    if not trial.case.config.cacheable:
        return
    contents = trial.truth.once("cache", lambda: through_cache(trial.truth.model)[1])
    found = {name: through_cache(model) for name, model in models.items()}
    yield _row(trial, "cache/logits", {name: logits for name, (logits, _) in found.items()}, full)
    for part, want in contents.items():
        yield _row(trial, f"cache/{part}", {name: own.get(part, np.nan) for name, (_, own) in found.items()}, want)


def _trained(trial: Trial) -> Iterator[Row]:
    """A hundred steps of accumulated micro-batches, judged by the oracle's own run."""
    guide = next((name for name in trial.names if name in door.names()), None)
    if guide is None:
        raise ValueError("none of the backends under test is installed under its name, so none can guide the oracle")
    course = steps.course(trial.case.name, guide)
    models = {name: trial.build(name) for name in trial.names}
    curves = {name: steps.train(model, trial.case) for name, model in models.items()}
    yield Row(
        NAME,
        trial.case.name,
        "train/oracle",
        TIER,
        "float64",
        {guide: float(course.uncertified.max())},
        size=steps.STEPS,
    )
    yield _row(trial, "train/losses", {name: losses for name, (losses, _) in curves.items()}, course.losses)
    yield _row(trial, "train/norms", {name: norms for name, (_, norms) in curves.items()}, course.norms)
    weights = {name: model.weights() for name, model in models.items()}
    slots = {name: model.optimizer_slots() for name, model in models.items()}
    for kind, own, want in (("weight", weights, course.weights), ("slot", slots, course.slots)):
        for part, value in want.items():
            if not trial.truth.dead(part if kind == "weight" else part.rpartition(".")[0]):
                yield _row(
                    trial, f"train/{kind}/{part}", {n: found.get(part, np.nan) for n, found in own.items()}, value
                )
