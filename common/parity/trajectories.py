"""C5: training in float32 parts no faster than rounding makes it part, also when it changes framework on the way.

The control is the same program, started from weights that were each moved by one unit in the last place (ulp).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from common import params
from common.backend import Model
from common.cases import Case
from common.config import TrainConfig
from common.parity import observed, rows, steps
from common.parity.rows import Exhibit, Row
from common.parity.thresholds import ROUNDOFF
from common.parity.trial import Session, Trial
from common.weights.checkpoint import load_checkpoint, save_checkpoint

NAME = "C5"
TITLE = "trajectories"
SENTENCE = (
    "Training in float32 moves PyTorch and JAX apart no faster than a change of every initial weight by one ulp does,"
    " and a run that changes framework twice, once through a file, follows the run that does not."
)
TIER = "float32"
QUICK, FULL = 24, 201  # steps, in three equal parts
COINS = 8
RESUMED = 6  # steps of the run that is handed over to itself

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """The live parameters after every step, float64, all tensors in one row: [steps, numbers]."""

    path: np.ndarray

    def distance(self, other: "Run") -> np.ndarray:
        """|self - other| / |other| after every step."""
        return np.linalg.norm(self.path - other.path, axis=1) / np.linalg.norm(other.path, axis=1)


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """Training runs of a case that is trained, and what they are apart."""
    if not _applies(trial):
        return
    for tier in _handed_on(trial):
        yield from observed.resumed(trial, RESUMED, tier)
    length = _length(trial.session)
    single = {name: run(trial.build(name, TIER), trial.case, length) for name in trial.names}
    exact = run(trial.build(trial.names[-1], "float64"), trial.case, length)  # by C2, this is everybody's
    control = _control(trial, single, length)
    curves = {"control": control}
    pairs = _pairs(trial.names)
    if pairs:
        curves |= {f"{a}/{b}": single[a].distance(single[b]) for a, b in pairs}
        yield _row(trial, "wing from wing", {f"{a}/{b}": curves[f"{a}/{b}"] for a, b in pairs}, control)
    far = {name: own.distance(exact) for name, own in single.items()}
    yield _row(trial, "wing from float64", far, control)
    curves |= {f"{name}/float64": curve for name, curve in far.items()}
    yield Exhibit("trajectories", {trial.case.name: _plain(curves)})
    if pairs:
        yield from _switches(trial, single, length)


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `for_case` must yield; the float64 runs are a yardstick of this tier, not a tier of their own."""
    if not _applies(trial):
        return set()
    pairs = {("wing from wing", TIER), ("switch", TIER), ("handed over", "exact")}
    alone = {(name, "exact") for tier in _handed_on(trial) for name in observed.HANDED_ON[tier]} | {
        ("wing from float64", TIER)
    }
    return alone | (pairs if len(trial.names) > 1 else set())


def _handed_on(trial: Trial) -> list[str]:
    """The precisions in which a run is handed on; float64 is this claim's yardstick, whatever the session's tiers."""
    return [tier for tier in observed.HANDED_ON if tier == observed.TIER or trial.session.wants(tier)]


def once(session: Session) -> Iterator[Row | Exhibit]:
    """Nothing: every comparison belongs to a case."""
    yield from ()


def declared_once(session: Session) -> set[tuple[str, str]]:
    """Nothing."""
    return set()


def _applies(trial: Trial) -> bool:
    return trial.session.wants(TIER) and not trial.case.path and trial.case.train_steps > 0


def shortened(session: Session) -> bool:
    """Whether runs are QUICK steps long: asked for, or an implementation is told not to compile (operation by
    operation, JAX would take hours for the others)."""
    return session.quick or any(session.execution(name, TIER).compile is False for name in session.subjects)


def _length(session: Session) -> int:
    return QUICK if shortened(session) else FULL


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def recipe(case: Case, length: int) -> TrainConfig:
    """Every term of the optimizer acts. At the case's own rate (1e-2) the model's dynamics carry a difference on; at
    1e-3 the rounding of each update would outweigh them, which a control does not know: it rounds as its original does.
    """
    return steps.recipe(case).with_(steps=length, warmup_steps=length // 10, learning_rate=case.train.learning_rate)


def run(model: Model, case: Case, length: int) -> Run:
    """Train a model of one's own from its first step to the last."""
    model.start_training(recipe(case, length))
    return Run(np.stack(list(_steps(model, case, 0, length))))


def _steps(model: Model, case: Case, start: int, end: int) -> Iterator[np.ndarray]:
    """Train on the case's random batches; the live parameters after every step."""
    for step in range(start, end):
        model.train_step(*steps.batch(case, step))
        yield live(case, model.weights())


def live(case: Case, weights: State) -> np.ndarray:
    """All parameters that have a gradient, in one row. AdamW makes whole steps of the rounding noise of the others."""
    alive = [name for name, p in params.table(case.config).items() if not p.dead]
    return np.concatenate([np.asarray(weights[name], np.float64).ravel() for name in alive])


def _control(trial: Trial, single: Mapping[str, Run], length: int) -> np.ndarray:
    """Distances of runs that start one ulp away from those that do not."""
    curves = []
    for coin, name in _coins(trial):
        moved = trial.build(name, TIER, weights=one_ulp(trial.case.weights(), coin))
        curves.append(run(moved, trial.case, length).distance(single[name]))
    return _rms(curves)


def _coins(trial: Trial) -> Iterator[tuple[int, str]]:
    """The coins of a control, tossed for the implementations in turn."""
    yield from ((coin, trial.names[-1 - coin % len(trial.names)]) for coin in range(COINS))


def _rms(curves: list[np.ndarray]) -> np.ndarray:
    """The RMS of the curves at every step."""
    return np.sqrt(np.mean(np.square(curves), axis=0))


def one_ulp(weights: State, coin: int) -> dict[str, np.ndarray]:
    """Every float32 weight moved to its neighbour, up or down by coin."""
    return {n: np.nextafter(w, np.float32(np.inf) * _signs(coin, n, w)) for n, w in weights.items()}


def _signs(coin: int, name: str, weight: np.ndarray) -> np.ndarray:
    return np.sign(params.draw(coin, f"ulp/{name}", weight.shape)).astype(np.float32)


def _row(trial: Trial, what: str, curves: Mapping[str, np.ndarray], control: np.ndarray) -> Row:
    """Judged by the last step."""
    ends = {name: float(curve[-1]) if np.isfinite(curve[-1]) else math.inf for name, curve in curves.items()}
    inputs = {"control": float(control[-1]), "coins": COINS, "steps": float(len(control)), "unit": ROUNDOFF[TIER]}
    return Row(NAME, trial.case.name, what, TIER, "trajectory", ends, inputs, note=f"after {len(control)} steps")


def _plain(curves: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: [float(f"{value:.4g}") for value in curve] for name, curve in curves.items()}


# --- the switch ------------------------------------------------------------------------------------------------------


def _switches(trial: Trial, single: Mapping[str, Run], length: int) -> Iterator[Row | Exhibit]:
    """Runs that spend the second third in another framework, against those that stay. The control stays too, but all of
    its weights are moved by one ulp where the others change: what came before has no part in it. One that loses
    something on the way allows nothing.
    """
    moved = []
    for coin, name in _coins(trial):
        stayed, changed = _switched(trial, [name] * 3, length, coin)
        moved.append(np.zeros(length) if changed else stayed.distance(single[name]))
    curves, lost = {"control": _rms(moved)}, {}
    for first, second in _pairs(trial.names):
        for a, b in ((first, second), (second, first)):
            name = f"{a}, {b}, {a}"
            switched, lost[name] = _switched(trial, [a, b, a], length)
            curves[name] = switched.distance(single[a])
    control = curves["control"]
    yield _row(trial, "switch", {name: curve for name, curve in curves.items() if name != "control"}, control)
    yield rows.exact(NAME, trial.case.name, "handed over", lost, note="tensors changed on the way, of two changes")
    yield Exhibit("switch", {trial.case.name: _plain(curves)})


def _switched(trial: Trial, names: list[str], length: int, coin: int | None = None) -> tuple[Run, int]:
    """(a run that changes hands at equal intervals, how many tensors changed on the way). The first change goes through
    a checkpoint on disk, the others through memory; weights and optimizer slots must arrive unchanged. With a coin, all
    weights are moved by one ulp at the first change.
    """
    case, settings = trial.case, recipe(trial.case, length)
    starts = [length * part // len(names) for part in range(len(names) + 1)]
    path: list[np.ndarray] = []
    weights, slots, lost = case.weights(), None, 0
    with TemporaryDirectory() as folder:
        for turn, name in enumerate(names):
            model = trial.build(name, TIER, weights=weights)
            model.start_training(settings, slots, starts[turn])
            lost += 0 if slots is None else _changed(model, weights, slots)
            path += _steps(model, case, starts[turn], starts[turn + 1])
            weights, slots = model.weights(), model.optimizer_slots()
            if turn == 0:
                weights, slots = _through_file(Path(folder) / "checkpoint", trial, weights, slots)
                weights = weights if coin is None else one_ulp(weights, coin)
    return Run(np.stack(path)), lost


def _through_file(folder: Path, trial: Trial, weights: State, slots: State) -> tuple[State, State]:
    save_checkpoint(folder, trial.case.config, weights, slots, {"train": trial.case.train.to_dict()})
    found = load_checkpoint(folder)
    return {n: found.weights[n] for n in weights}, {n: found.slots[n] for n in slots}


def _changed(model: Model, weights: State, slots: State) -> int:
    """How many tensors a model holds otherwise than it was given them."""
    pairs = [(model.weights(), weights), (model.optimizer_slots(), slots)]
    return sum(rows.unequal(own[name], given[name]) > 0 for own, given in pairs for name in given)
