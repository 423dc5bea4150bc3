"""What rounding does to a case, as the oracle sees it: noise in place of rounding, and single steps from given values.

No implementation takes part, so two equally bad wings cannot widen these bounds for each other.
"""

import inspect
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from common import backend as door
from common import params
from common.compare import rms
from common.parity.thresholds import NOISE, ROUNDOFF
from common.parity.trial import Truth
from common.taps import Taps

SEEDS = 8


class Noise(Taps):
    """Multiplies every tapped value by 1 + u U(-1, 1), each element by its own, as if it were rounded there."""

    def __init__(self, unit: float, seed: int, *, prefix: str = ""):
        super().__init__(("*",), prefix=prefix)
        self.unit, self.seed = unit, seed

    def under(self, name: str) -> "Noise":
        return Noise(self.unit, self.seed, prefix=f"{self.prefix}{name}.")

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng([self.seed, zlib.crc32(f"{self.prefix}{name}".encode())])
        return value * (1 + self.unit * generator.uniform(-1, 1, value.shape))


class Given(Taps):
    """Keeps what the oracle computes at every tap, and goes on with what is given there, or else with its own."""

    def __init__(self, given: Mapping[str, np.ndarray], *, prefix: str = "", found: dict[str, Any] | None = None):
        super().__init__(("*",), prefix=prefix, found=found)
        self.given = given

    def under(self, name: str) -> "Given":
        return Given(self.given, prefix=f"{self.prefix}{name}.", found=self.found)

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        self.found[self.prefix + name] = value
        given = self.given.get(self.prefix + name)
        return value if given is None else np.asarray(given, np.float64)


def nudged(weights: Mapping[str, np.ndarray], unit: float, seed: int) -> dict[str, np.ndarray]:
    """Every number moved by one rounding, up or down by coin; float64."""
    return {n: w * (1 + unit * np.sign(params.draw(seed, f"nudge/{n}", w.shape))) for n, w in weights.items()}


def step_by_step(truth: Truth, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the oracle makes, at every tap of a model case, of the values that are given at the taps before it."""
    taps, (ids, _) = Given(given), truth.case.tokens()
    truth.model.net(ids, door.positions_of(ids, None, 0, truth.case.config), taps=taps)
    return taps.found


def disturbed(
    truth: Truth, tier: str, seed: int, ids: np.ndarray | None = None, positions: np.ndarray | None = None
) -> np.ndarray:
    """Logits (of `ids`, or of the case), or a component's output, with noise at every tap and in every weight."""
    case, unit = truth.case, ROUNDOFF[tier]
    net = truth.build(weights=nudged(case.weights(), unit, seed)).net
    if case.path:
        return _component(net.at(case.path), case.signals()[0].astype(np.float64), Noise(unit, seed))
    ids = case.tokens()[0] if ids is None else ids
    return net(ids, door.positions_of(ids, positions, 0, case.config), taps=Noise(unit, seed))[0]


def _component(module: Any, x: np.ndarray, noise: Noise) -> np.ndarray:
    if not takes_taps(module):
        return noise("output", module(x))
    if "positions_BT" not in inspect.signature(module.__call__).parameters:
        return module(x, taps=noise)
    return module(x, np.arange(x.shape[1], dtype=np.int32)[None], taps=noise)[0]


def outputs(truth: Truth, tier: str) -> list[np.ndarray]:
    """`disturbed` for every seed, computed once."""
    return [truth.once(f"noise/{tier}/{seed}", lambda s=seed: disturbed(truth, tier, s)) for seed in range(SEEDS)]


def size_and_spread(errors: list[float]) -> tuple[float, float]:
    """RMS of the errors of equal runs with other noise, and how far luck alone drives them apart (largest/smallest)."""
    return rms(np.array(errors)), max(errors) / max(min(errors), math.ulp(0.0))


def largest_logit_error(tier: str, clean: np.ndarray, noisy: list[np.ndarray]) -> np.ndarray:
    """By how much a logit may be off at a position in this tier: [..., V] -> [...], by the rule for noise."""
    return NOISE[tier] * np.max([np.abs(one - clean).max(-1) for one in noisy], axis=0)


def takes_taps(module: Any) -> bool:
    """Whether a module of the oracle has intermediate values."""
    return "taps" in inspect.signature(module.__call__).parameters
