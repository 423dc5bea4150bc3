"""How fast a run goes: tokens per second, and the share of what the device can do at most."""

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from common import layout as layouts
from common import params
from common.accounting import flops, peaks
from common.config import Execution, ModelConfig, TrainConfig
from common.cores import usable_cores

LATEST = 20  # steps that a rate is the mean of
SIZE, CALLS = 1024, 5  # of the matrix product whose best time is a CPU's peak
WIDER = {"bfloat16": "float32"}  # in which wide products multiply


@dataclass
class Meter:
    """Rates over the latest steps; the first step, which compiles, is left out. `most` is the device's peak in FLOP/s,
    or None where nobody knows it, or what a step's work is."""

    tokens: int  # of a step, where it says nothing else
    work: int  # FLOPs of a step, by the closed form
    most: float | None
    _seconds: deque = field(default_factory=lambda: deque(maxlen=LATEST))
    _tokens: deque = field(default_factory=lambda: deque(maxlen=LATEST))
    _warm: bool = False

    def add(self, seconds: float, tokens: int | None = None) -> None:
        """Another step has taken so long for so many tokens."""
        if self._warm:
            self._seconds.append(seconds)
            self._tokens.append(tokens or self.tokens)
        self._warm = True

    @property
    def tokens_per_second(self) -> float | None:
        return sum(self._tokens) / sum(self._seconds) if self._seconds else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, a share in (0, 1]; None where the peak is unknown, or was measured too low."""
        if self.most is None or not self._seconds:
            return None
        found = self.work * len(self._seconds) / sum(self._seconds) / self.most
        return found if found <= 1 else None

    def __str__(self) -> str:
        rate, share = self.tokens_per_second, self.mfu
        return "" if rate is None else f"  {rate:,.0f} tokens/s" + ("" if share is None else f"  MFU {share:.0%}")


def of_run(config: ModelConfig, train: TrainConfig, length: int, execution: Execution, device: str | None) -> Meter:
    """The meter of a training run; `device` is a GPU's name."""
    batch = train.batch_size * train.accumulate
    work = sum(flops.training(config, batch, length, trained=params.trained(config, train)).values())
    return Meter(batch * length, work, most(execution, device))


def multiplies(execution: Execution) -> str:
    """The format in which matrices are multiplied, whose peak holds: that of the numbers, of short products "tf32", of
    wide ones in 16 bits float32."""
    found = execution.dtype
    if execution.products == "wide":
        found = WIDER.get(found, found)
    return "tf32" if execution.products == "tf32" else found


def most(execution: Execution, device: str | None) -> float | None:
    """The devices' peak in FLOP/s: a GPU's data sheet, or what NumPy's matrix product reaches on this CPU, in float32
    or float64, in all processes together; None for what has neither. Devices that JAX simulates in a process share its
    cores."""
    kind = multiplies(execution)
    if execution.device != "cpu":
        sheet = peaks.peak(device or "")
        one = sheet.flops.get(kind) if sheet else None
        return None if one is None else one * execution.spread.devices
    if kind not in ("float32", "float64"):
        return None
    rate, taken = reached(kind)
    return rate * together(taken, len(usable_cores()), layouts.processes()[1], layouts.neighbours())


def reached(kind: str) -> tuple[float, float]:
    """(FLOP/s of the best matrix product of NumPy's in this process, cores that it took)."""
    a = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(kind)
    best, taken = float("inf"), 1.0
    for _ in range(CALLS):
        begun, worked = time.perf_counter(), time.process_time()
        a @ a
        seconds, worked = time.perf_counter() - begun, time.process_time() - worked
        if seconds < best:
            best, taken = seconds, worked / seconds
    return 2 * SIZE**3 / best, taken


def together(taken: float, cores: int, processes: int, here: int) -> float:
    """How many times what one process reaches on so many cores that it has `taken` all of them reach, of which so many
    are `here`, on a machine like every other with so many `cores`: each has cores of its own, as far as there are."""
    return min(here, max(1.0, cores / max(taken, 1.0))) * processes / here
