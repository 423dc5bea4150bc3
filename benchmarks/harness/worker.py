"""One process for each wing: the parent asks, the worker computes, and nobody imports two frameworks.

The worker lives as long as its parent: it ends when its input does. What it does is in `service.py`.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from common import allocator, gpu
from common.cores import usable_cores
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SPIN = {"GOMP_SPINCOUNT": "30000"}
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NPROC")


owner: ContextVar[Any] = ContextVar("owner", default=None)  # for whom workers are started, also by threads of its own
_alive: dict["Worker", Any] = {}  # and their owners
_changing = threading.Lock()


def end_all(whose: Any) -> None:
    """End every process that was started for this owner, now: who waits for its answer gets an error."""
    with _changing:
        for worker, own in _alive.items():
            if own is whose:
                worker.process.kill()


class WorkerFault(RuntimeError):
    """A fault of ours inside a worker, with the worker's own traceback."""


def environment(threads: int, device: str, memory: str = "plain", compiled: str | None = None) -> dict[str, str]:
    """The environment of a worker: the same threads for every library, no framework cache that would hide compiling,
    unless it may find in the folder `compiled` what another process compiled; `memory` is the allocator of its
    execution.

    GNU OpenMP's threads wait by spinning, by default (300,000 spins) for 5 ms on a Xeon, in which nobody else can have
    their cores; here they give way after a tenth of that, unless the caller's environment decides. PyTorch is as fast
    so as by default. If they gave way at once (1,000 spins), many small operations would take up to 1.3 times as long.
    """
    env = {**os.environ, **dict.fromkeys(POOLS, str(threads))}
    if "OMP_WAIT_POLICY" not in env:
        env = {**SPIN, **env}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if compiled is None:
        env["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    else:
        env["TORCHINDUCTOR_CACHE_DIR"] = compiled
    env["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if device == "cpu":
        env["JAX_PLATFORMS"] = "cpu"
    else:
        env.pop("JAX_PLATFORMS", None)
        env |= gpu.environment(env, device)
    return {**env, **(allocator.environment(env) if memory == "kept" else allocator.plain(env))}


class Worker:
    """A process that serves one backend. `ask` calls a method of `service.Service` there and gives its answer.

    Errors of the user (and memory that is not there) come back as UserError, faults of ours as WorkerFault.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int | None = None,
        device: str = "cpu",
        memory: str = "plain",
        compiled: str | None = None,
    ):
        self.name = name
        self.threads = len(usable_cores()) if threads is None else threads
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        command = [sys.executable, "-m", "benchmarks.harness.service", name, str(self.threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(self.threads, device, memory, compiled),
            process_group=0,  # what stops the parent's group is the parent's to answer
        )
        with _changing:
            _alive[self] = owner.get()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """The answer of one call; waits for it."""
        self.post(method, *args, **options)
        return self.answer()

    def post(self, method: str, *args: Any, **options: Any) -> None:
        """Send a call without waiting; `answer` gives its result."""
        try:
            pickle.dump((method, args, options), self.process.stdin, protocol=5)
            self.process.stdin.flush()
        except OSError as error:
            raise self._died() from error

    def answer(self) -> Any:
        """The result of the oldest call that has not been answered."""
        try:
            kind, value = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError, OSError) as error:
            raise self._died() from error
        if kind == "user":
            raise UserError(value)
        if kind == "memory":
            raise UserError(f"{self.name} ran out of memory ({value}); choose a smaller batch, length or model.")
        if kind == "fault":
            raise WorkerFault(f"in the worker of {self.name}:\n{value}")
        return value

    def close(self) -> None:
        """End the process now; whatever it is doing is dropped."""
        with _changing:
            _alive.pop(self, None)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            try:
                pipe.close()
            except BrokenPipeError:  # a call that was still on its way to the process that is gone
                continue

    def _died(self) -> UserError:
        code = self.process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {-code}, {signal.strsignal(-code)}"
            if -code == signal.SIGKILL:
                how += ": often the system's answer when memory runs out"
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f" Its last words: {words[-1][:300]}" if words else ""
        return UserError(f"The process of {self.name} ended unexpectedly ({how}).{last}")
