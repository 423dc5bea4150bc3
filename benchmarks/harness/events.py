"""The device's own clock beside the host's: an extra column of a record, never the clock of a contest.

Host time is what both wings are compared by. Where PyTorch computes on a GPU, CUDA's events also tell how long the
device's stream took for a sample, pauses between its kernels included. JAX has no such events.
"""

import sys
from typing import Self


class Sample(float):
    """Seconds of a call by the host's clock; `device_ms` are its milliseconds by the device's events, None where there
    are none. A number like any other, so that whoever passes samples on needs to know nothing of devices."""

    device_ms: float | None

    def __new__(cls, seconds: float, device_ms: float | None = None) -> Self:
        made = super().__new__(cls, seconds)
        made.device_ms = device_ms
        return made

    def __getnewargs__(self) -> tuple[float, float | None]:
        return float(self), self.device_ms


class Span:
    """A context around calls on `device` ("cpu", "cuda", "cuda:1"). Its events are only put into the stream, where they
    keep nobody waiting; `milliseconds` waits for them."""

    def __init__(self, device: str):
        self._device, self._ends = device, []
        self._torch = sys.modules.get("torch") if device.startswith("cuda") else None

    def __enter__(self) -> Self:
        self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._torch is None:
            return
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._device))
        self._ends.append(event)

    def milliseconds(self) -> float | None:
        """From the first event to the last, None without a device that has events."""
        if self._torch is None:
            return None
        begun, ended = self._ends
        ended.synchronize()
        return begun.elapsed_time(ended)
