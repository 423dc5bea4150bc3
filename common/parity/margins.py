"""By how much a choice of the next token was decided: how far logits must move apart before it is another one.

Two logits that are each off by e have moved apart by 2 e at most.
"""

import numpy as np

from common import rng
from common.config import SamplingConfig

FAR, HALVINGS = 64.0, 60  # logits this far apart decide everything; halvings down to float64


def lead(logits: np.ndarray) -> np.ndarray:
    """Largest less second largest: [..., V] -> [...]."""
    ordered = np.sort(logits, -1)
    return ordered[..., -1] - ordered[..., -2]


def margin(logits: np.ndarray, sampling: SamplingConfig, position: int, row: int) -> float:
    """By how much logits, after the temperature, must move apart before another token is chosen. Either the chosen one
    leaves what the filters keep, or another one overtakes it (with the noise that draws) and is kept, too.
    """
    if sampling.temperature == 0:
        return float(lead(logits))
    scaled = logits / sampling.temperature
    inside = _room(scaled, sampling)
    drawn = scaled + rng.gumbel(rng.address(sampling.seed, rng.SAMPLING, position, row), scaled.shape)
    chosen = int(np.where(inside > 0, drawn, -np.inf).argmax())
    needed = np.maximum(drawn[chosen] - drawn, -inside)
    needed[chosen] = inside[chosen]
    return float(needed.min())


def _room(logits: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """For every token [V]: how far inside of what the filters keep it is; below 0, how far outside."""
    room = np.full(len(logits), np.inf)
    if sampling.top_k is not None and sampling.top_k < len(logits):
        room = top_k_room(logits, sampling.top_k)
    if sampling.top_p is not None:
        nucleus = nucleus_room(np.where(room > 0, logits, -np.inf), sampling.top_p)
        room = np.where(room > 0, np.minimum(room, nucleus), room)
    return room


def top_k_room(logits: np.ndarray, k: int) -> np.ndarray:
    """Distances from the first token outside (for those inside) or from the last one inside. [V] -> [V]."""
    ordered = np.sort(logits)[::-1]
    return np.where(logits >= ordered[k - 1], logits - ordered[k], logits - ordered[k - 1])


def nucleus_room(logits: np.ndarray, p: float) -> np.ndarray:
    """How far logits must move apart before a token enters or leaves the nucleus, found by halving. [V] -> [V]."""
    inside = _before(logits, np.zeros(len(logits)), up=True) < p
    low, high = np.zeros(len(logits)), np.full(len(logits), FAR)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        leaves, enters = _before(logits, middle, up=False) >= p, _before(logits, middle, up=True) < p
        crossed = np.where(inside, leaves, enters)
        low, high = np.where(crossed, low, middle), np.where(crossed, middle, high)
    return np.where(inside, low, -low)


def _before(logits: np.ndarray, apart: np.ndarray, up: bool) -> np.ndarray:
    """The probability of all tokens before each one [V], when it moves by half of `apart` [V] up (or down) and every
    other one by half of that where it helps most to make this probability small (or large).
    """
    half = apart[:, None] / 2
    own = logits[:, None] + (half if up else -half)
    lowest, highest = logits[None] - half, logits[None] + half
    ahead = (lowest if up else highest) > own
    np.fill_diagonal(ahead, False)
    values = np.where(ahead, lowest if up else highest, np.minimum(highest, own) if up else lowest)
    np.fill_diagonal(values, own[:, 0])
    weights = np.exp(values - values.max(-1, keepdims=True))
    return (weights * ahead).sum(-1) / weights.sum(-1)
