"""What rounding does to a case, as the oracle sees it: noise in place of rounding, and single steps from given values.

No implementation takes part, so two equally bad wings cannot widen these bounds for each other.
"""

import inspect
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common import backend as door
from common import params
from common.adapters import placed
from common.compare import difference, rms
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


class Rounded(np.ndarray):
    """Numbers of a narrower type in float64: what any operation makes of them is rounded to `bits` significant bits."""

    bits: int

    def __array_finalize__(self, made_from: Any) -> None:
        self.bits = getattr(made_from, "bits", 53)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **about: Any) -> "Rounded":
        plain = (np.asarray(one) if isinstance(one, Rounded) else one for one in inputs)
        return rounded(getattr(ufunc, method)(*plain, **about), self.bits)


def rounded(x: np.ndarray, bits: int) -> Rounded:
    """The nearest numbers with that many significant bits, ties to even, whatever is made of which is rounded too."""
    fraction, exponent = np.frexp(x)
    own = np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits).view(Rounded)
    own.bits = bits
    return own


def of_adapters(
    truth: Truth, given: Mapping[str, np.ndarray], steps: Mapping[str, np.ndarray], tier: str
) -> dict[str, float]:
    """By tap that a linear map with adapters leads to: the relative RMS error of the oracle's step (`steps`, from the
    values `given` before it) when that map rounds each of its products and sums to the numbers of the tier."""
    model, taps, (ids, _) = truth.build(), Given(given), truth.case.tokens()
    bits = round(-math.log2(ROUNDOFF[tier]))
    for path in {path for path, *_ in placed(truth.case.config)}:
        linear = model.net.at(path)
        linear.change = _rounding(linear.change, bits)
    model.net(ids, door.positions_of(ids, None, 0, truth.case.config), taps=taps)
    moved = {name: value for name, value in taps.found.items() if not np.array_equal(value, steps[name])}
    return {name: difference(name, value, steps[name]).relative for name, value in moved.items()}


def _rounding(change: Callable[..., np.ndarray], bits: int) -> Callable[..., np.ndarray]:
    return lambda linear, x, y: np.asarray(change(linear, rounded(x, bits), rounded(y, bits)))


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
