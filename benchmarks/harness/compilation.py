"""Compilation watched: forbidden in the timed region, where it would void the measurement, and timed in first calls."""

import contextlib
import sys
from collections.abc import Iterator

from common.errors import UserError

TRACING = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
COMPILED = "It compiled while it was timed, and compiling is no part of a steady call."
COMPILING = ("/jax/core/compile/backend_compile_duration",)


@contextlib.contextmanager
def forbidden() -> Iterator[None]:
    """A context in which every framework of this process may not compile; UserError if one does."""
    with contextlib.ExitStack() as stack:
        if (jax := sys.modules.get("jax")) is not None:
            stack.enter_context(jax.no_tracing())
        # loaded as soon as anything has been compiled by PyTorch, and slow to load
        if (dynamo := sys.modules.get("torch._dynamo")) is not None:
            stack.enter_context(dynamo.config.patch(error_on_recompile=True))
        before = compiled()
        try:
            yield
        except Exception as error:
            if type(error).__name__ == "RecompileError" or "no_tracing" in str(error):
                raise UserError(COMPILED) from error
            raise
        if compiled() > before:
            raise UserError(COMPILED)


def compiled() -> int:
    """How many graphs PyTorch has compiled in this process; `error_on_recompile` says nothing of first ones."""
    if (dynamo := sys.modules.get("torch._dynamo")) is None:
        return 0
    return int(dynamo.utils.counters["stats"]["unique_graphs"])


class Watch:
    """A context that adds up what frameworks say of their own tracing and compiling: `trace` and `compile` in seconds,
    None where nothing was told. JAX tells both. PyTorch tells what it took to trace (Dynamo, without the compilers
    behind it), and not when it loads compilers, so its `compile` is derived from a steady call (`summary`)."""

    def __init__(self):
        self.trace: float | None = None
        self.compile: float | None = None
        self._on = False
        self._before: list = []
        if (jax := sys.modules.get("jax")) is not None:
            jax.monitoring.register_event_duration_secs_listener(self._hear)

    def __enter__(self) -> "Watch":
        self._on, self.trace, self.compile = True, None, None
        self._before = _frames()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        known = set(map(id, self._before))
        new = [_traced(frame) for frame in _frames() if id(frame) not in known]
        if new:
            self.trace = (self.trace or 0.0) + sum(new)

    def _hear(self, event: str, seconds: float, **_: object) -> None:
        if self._on and event in TRACING:
            self.trace = (self.trace or 0.0) + seconds
        if self._on and event in COMPILING:
            self.compile = (self.compile or 0.0) + seconds


def _frames() -> list:
    """What Dynamo keeps of the frames that it compiled last, up to 64; loaded when anything was compiled at all."""
    dynamo = sys.modules.get("torch._dynamo")
    return [] if dynamo is None else dynamo.utils.get_compilation_metrics()


def _traced(frame: object) -> float:
    """Seconds of a frame's compilation less those in its backend (of a backward pass, which is not traced, none)."""
    whole, backend = frame.dynamo_cumulative_compile_time_us, frame.aot_autograd_cumulative_compile_time_us
    return max(0, (whole or 0) - (backend or 0)) / 1e6
