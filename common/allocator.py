"""Memory that stays with the process, in large pages: how glibc allocates is decided when a process starts.

A training step asks for gigabytes and gives them back. glibc passes that on to the system, which hands out zeroed pages
of 4 KiB, each with an interrupt: a tenth and more of a step. With these settings freed memory is kept for the next
step, and comes in pages of 2 MiB, which also reads faster (fewer addresses to translate). Blocks of 32 MiB and more
still go back: kept ones would be cut up by small ones, and a step's peak grow by up to half (JAX: 3.0 to 4.0 GiB).
Source: glibc manual, "Memory Allocation Tunables"; Linux, admin-guide/mm/transhuge.
"""

import os
import platform
import sys
from collections.abc import Mapping

from common.config import Execution
from common.errors import UserError

VARIABLE = "GLIBC_TUNABLES"
KEPT = {
    "glibc.malloc.hugetlb": "1",  # ask for large pages
    "glibc.malloc.mmap_threshold": str(32 << 20),  # the largest that glibc takes: from here on a mapping of its own
    "glibc.malloc.trim_threshold": str(1 << 46),  # never give the top back
}


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment `own` of a process that is to keep its memory; raises UserError without glibc."""
    if not available():
        libc = platform.libc_ver()[0] or "another"
        raise UserError(f"allocator='kept' is a setting of glibc, and this system's C library is {libc}.")
    return _written({**_read(own), **KEPT})


def plain(own: Mapping[str, str]) -> dict[str, str]:
    """The same for a process that is not to keep its memory, whatever its parent does."""
    return _written({name: value for name, value in _read(own).items() if name not in KEPT}) if VARIABLE in own else {}


def _read(own: Mapping[str, str]) -> dict[str, str]:
    return dict(part.split("=", 1) for part in own.get(VARIABLE, "").split(":") if "=" in part)


def _written(settings: Mapping[str, str]) -> dict[str, str]:
    return {VARIABLE: ":".join(f"{name}={value}" for name, value in settings.items())}


def available() -> bool:
    """Whether this system's C library knows these settings."""
    return platform.libc_ver()[0] == "glibc"


def is_kept() -> bool:
    """Whether this process was started with these settings."""
    there = os.environ.get(VARIABLE, "").split(":")
    return all(f"{name}={value}" in there for name, value in KEPT.items())


def check(execution: Execution) -> None:
    """Refuse an execution whose allocator this process does not have."""
    if execution.allocator == "kept" and not is_kept():
        wanted = environment(os.environ)[VARIABLE]
        raise UserError(f"The allocator is chosen when a process starts: set {VARIABLE}={wanted} in the environment.")


def restart_if_asked(execution: Execution) -> None:
    """Begin this command again with the allocator that it asks for, if it has another."""
    if execution.allocator == "kept" and not is_kept():
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment(os.environ)})
