"""A hundred optimizer steps in float64: the oracle's own, on gradients that a complex step certifies.

The oracle could differentiate number by number, but not a hundred times a model of any size. So it borrows the gradient
at its own parameters from a guide (one of the backends), and certifies it at every step along a random direction with
its own complex step; what follows (clipping, moving averages, decay, the step itself) is the oracle's alone.
"""

import functools
from dataclasses import dataclass

import numpy as np

from common import backend as door
from common import params
from common.backend import IGNORED
from common.cases import CASES, Case
from common.config import Execution, TrainConfig
from common.oracle.gradient import slope
from common.oracle.optim import clip_by_global_norm, empty_slots, update
from common.preference import Pairs

STEPS = 100
MICRO_BATCHES = 2
LENGTH = 12  # tokens of a training sequence, or fewer if the case has fewer


@dataclass(frozen=True)
class Course:
    """What the oracle's run gave. `uncertified` is, by step, how far the guide's gradient g is off along a random
    direction v: |<g, v> - slope| / (|g| |v| / sqrt(n)).
    """

    losses: np.ndarray
    norms: np.ndarray
    weights: dict[str, np.ndarray]
    slots: dict[str, np.ndarray]
    uncertified: np.ndarray


def recipe(case: Case) -> TrainConfig:
    """Every term of the optimizer acts: warm-up, decay of the rate and of the weights, clipping, bias correction."""
    return case.train.with_(steps=STEPS, warmup_steps=10, learning_rate=1e-3, accumulate=MICRO_BATCHES)


def batch(case: Case, step: int) -> tuple[np.ndarray, np.ndarray | Pairs]:
    """(inputs, targets) int32 [A, B, T] of a step; the micro-batches count unequal numbers of targets."""
    length = min(LENGTH, case.length)
    inputs, targets = case.batch_of("steps", step, (MICRO_BATCHES, case.batch, length + 1))
    targets[0, 0, : length // 2] = IGNORED
    return inputs, case.aimed(targets)


def train(model: door.Model, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Train a model of the case for all steps. Returns losses and gradient norms, [steps] each."""
    model.start_training(recipe(case))
    results = [model.train_step(*batch(case, step)) for step in range(STEPS)]
    return np.array([r.loss for r in results]), np.array([r.grad_norm for r in results])


@functools.cache
def course(name: str, guide: str) -> Course:
    """The oracle's run of that case, with the installed backend `guide` lending its gradients."""
    case = CASES[name]
    settings, execution = recipe(case), Execution(dtype="float64")
    oracle = door.load("numpy").build(case.config, case.weights(), execution)
    weights, decays = oracle.weights(), door.decays(case.config, settings)
    trained = [name for name, wanted in params.trained(case.config, settings).items() if wanted]
    slots = empty_slots({n: weights[n] for n in trained}, params.turned(case.config, settings.optimizer))
    losses, norms, gaps = [], [], []
    for step in range(STEPS):
        inputs, targets = batch(case, step)
        dropout = (settings.seed, step)
        grads = door.load(guide).build(case.config, weights, execution).gradients(inputs, targets, dropout).grads
        losses.append(float(oracle.loss_of(weights, inputs, targets, dropout)))
        gaps.append(_gap(oracle, weights, grads, inputs, targets, dropout, step))
        own = {name: grads[name].astype(np.float64) for name in trained}
        own, norm = clip_by_global_norm(own, settings.at(step).clip_norm)
        moving = {name: weights[name] for name in trained}
        moving, slots = update(moving, own, slots, settings.adam_scalars(step), settings, decays)
        weights = {**weights, **moving}
        norms.append(float(norm))
    return Course(np.array(losses), np.array(norms), weights, slots, np.array(gaps))


def _gap(oracle, weights, grads, inputs, targets, dropout, step: int) -> float:
    """How far the guide's gradient is off along one random direction over all parameters."""
    directions = {name: params.draw(step, f"steps/direction/{name}", value.shape) for name, value in weights.items()}
    true = slope(lambda moved: oracle.loss_of(moved, inputs, targets, dropout), weights, directions)
    along = sum(float(np.vdot(grads[name], directions[name])) for name in weights)
    norm = np.sqrt(sum(float(np.square(g).sum()) for g in grads.values()))
    return abs(along - float(true)) / float(norm)
