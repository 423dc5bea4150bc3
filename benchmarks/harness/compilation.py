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
    """A context that adds up what JAX says of its own tracing and compiling: `trace` and `compile` in seconds, None
    where no framework told anything (PyTorch does not; its share is the first call less a steady one)."""

    def __init__(self):
        self.trace: float | None = None
        self.compile: float | None = None
        self._on = False
        if (jax := sys.modules.get("jax")) is not None:
            jax.monitoring.register_event_duration_secs_listener(self._hear)

    def __enter__(self) -> "Watch":
        self._on, self.trace, self.compile = True, None, None
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _hear(self, event: str, seconds: float, **_: object) -> None:
        if self._on and event in TRACING:
            self.trace = (self.trace or 0.0) + seconds
        if self._on and event in COMPILING:
            self.compile = (self.compile or 0.0) + seconds
