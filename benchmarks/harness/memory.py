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
    devices = range(torch.cuda.device_count())
    if begin:
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
    return max(map(torch.cuda.max_memory_allocated, devices))


def _jax_device(begin: bool) -> int | None:
    import jax

    stats = [device.memory_stats() for device in jax.local_devices() if device.platform == "gpu"]
    return max((s["peak_bytes_in_use"] for s in stats if s), default=None)


def _torch_words(before: int | None, after: int) -> str:
    return "on the device PyTorch's max_memory_allocated, reset before the work"


def _jax_words(before: int | None, after: int) -> str:
    """JAX cannot reset its peak: if the work did not raise it, compiling or the first call reached it."""
    if before is not None and after > before:
        return "on the device JAX's peak_bytes_in_use, which the work raised: it was reached there"
    reached = "reached before the work, by compiling or the first call: the work needs at most as much"
    return f"on the device JAX's peak_bytes_in_use since the process began, {reached}"


Words = Callable[[int | None, int], str]
DEVICE_PEAKS: dict[str, tuple[Callable[[bool], int | None], Words]] = {
    "torch": (_torch_device, _torch_words),
    "jax": (_jax_device, _jax_words),
}


class Peak:
    """A context that measures; afterwards `found` holds {bytes, how, resident_before, device_bytes (or None)}. `how`
    says what the bytes are, and what those of the device are where there are any."""

    def __init__(self):
        loaded = [name for name in DEVICE_PEAKS if name in sys.modules]
        self._device, self._words = DEVICE_PEAKS[loaded[0]] if len(loaded) == 1 else (lambda begin: None, None)
        self.found: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._before_on_device = self._device(True)
        self._was_reset = _reset()
        self._before = resident_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        peak, how = _peak(self._was_reset)
        on_device = self._device(False)
        if on_device is not None:
            how = f"{how}; {self._words(self._before_on_device, on_device)}"
        self.found = {
            "bytes": peak,
            "how": how,
            "resident_before": self._before,
            "device_bytes": on_device,
        }
