"""What other work takes of the cores while a contest is on: no contender's fault, and no other run's."""

import time

import psutil

from common.cores import usable_cores

NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # guests are in "user" already
MUCH = 0.05  # of the cores: from here on a report says so


class Others:
    """A watch on the cores that this process may use. Work beside a contest takes caches and memory from some
    contenders more than from others, which no interval of one run knows. What neighbours on one host take from a
    virtual machine is seen as far as the system tells of it (steal)."""

    def __init__(self):
        self._own = psutil.Process()
        self._last = self._now()

    def share(self) -> float:
        """Of the seconds of these cores since the last call, the share that others than this process and those that it
        started have taken, in [0, 1]."""
        before, self._last = self._last, self._now()
        elapsed, busy, own = (late - early for late, early in zip(self._last, before, strict=True))
        return min(1.0, max(0.0, busy - own) / max(elapsed * len(usable_cores()), 1e-9))

    def _now(self) -> tuple[float, float, float]:
        """Seconds: of the clock, in which these cores were not idle, and of these processes."""
        return time.perf_counter(), _busy(), self._taken()

    def _taken(self) -> float:
        """Seconds of these processes, ended ones that were waited for included."""
        total = 0.0
        for one in (self._own, *self._own.children(recursive=True)):
            try:
                total += sum(one.cpu_times()[:4])  # user, system, and both of ended children
            except psutil.NoSuchProcess:  # it has just ended; who waits for it has its seconds
                continue
        return total


def _busy() -> float:
    each = psutil.cpu_times(percpu=True)
    mine = (each[core] for core in usable_cores() if core < len(each))
    return sum(sum(one) - sum(getattr(one, name, 0.0) for name in NOT_BUSY) for one in mine)
