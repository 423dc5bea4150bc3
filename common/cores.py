"""The cores of this machine, and who made them."""

import functools
import os
import platform
from pathlib import Path


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@functools.cache
def vendor() -> str:
    """Who made the processor, by its own name for itself: "GenuineIntel", "AuthenticAMD"; empty where nobody says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor().rpartition(", ")[2]  # of Windows
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
