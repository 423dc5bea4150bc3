"""Peak memory of this process, and of its device where the framework knows.

On Linux the kernel's own high-water mark (VmHWM) is reset before the work and read after it. `ru_maxrss` is not used
there: it is inherited from the parent process. Bytes throughout.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
HIGH_WATER = "VmHWM, reset before the work"
NOT_RESET = "VmHWM since the process began (this system does not let it be reset)"
WINDOWS = "peak working set since the process began"
ELSEWHERE = "peak resident memory since the process began"


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return psutil.Process().memory_info().rss


def _high_water() -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _reset() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak(was_reset: bool) -> tuple[int, str]:
    """(bytes, how they were measured)."""
    mark = _high_water()
    if mark is not None:
        return mark, HIGH_WATER if was_reset else NOT_RESET
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return info.peak_wset, WINDOWS
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, ELSEWHERE


def _torch_device(begin: bool) -> int | None:
    import torch

    if not torch.cuda.is_initialized():
        return None
    if begin:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def _jax_device(begin: bool) -> int | None:
    import jax

    stats = [device.memory_stats() for device in jax.local_devices() if device.platform == "gpu"]
    return max((s["peak_bytes_in_use"] for s in stats if s), default=None)  # since the start: JAX cannot reset it


DEVICE_PEAKS: dict[str, Callable[[bool], int | None]] = {"torch": _torch_device, "jax": _jax_device}


class Peak:
    """A context that measures; afterwards `found` holds {bytes, how, resident_before, device_bytes (or None)}."""

    def __init__(self):
        loaded = [name for name in DEVICE_PEAKS if name in sys.modules]
        self._device = DEVICE_PEAKS[loaded[0]] if len(loaded) == 1 else lambda begin: None
        self.found: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._device(True)
        self._was_reset = _reset()
        self._before = resident_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        peak, how = _peak(self._was_reset)
        self.found = {
            "bytes": peak,
            "how": how,
            "resident_before": self._before,
            "device_bytes": self._device(False),
        }
