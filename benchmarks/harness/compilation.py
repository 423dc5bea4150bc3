"""A guard for the timed region: if a framework compiles in there, the measurement is void and must not pass."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def _jax() -> Iterator[None]:
    import jax

    with jax.no_tracing():
        yield


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    import sys

    dynamo = sys.modules.get("torch._dynamo")  # loaded as soon as anything has been compiled, and slow to load
    if dynamo is None:
        yield
        return
    with dynamo.config.patch(error_on_recompile=True):
        yield


GUARDS = {"jax": _jax, "torch": _torch}


def forbidden(name: str) -> contextlib.AbstractContextManager[None]:
    """A context in which the framework of that backend raises if it compiles; backends without a guard have none."""
    return GUARDS.get(name, contextlib.nullcontext)()
