"""Signals that end a long run as Ctrl-C does, so that what it has is kept."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

STOPS = ("SIGTERM", "SIGHUP")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does, once; where they are ignored, or somebody else's, they stay so."""
    before: dict[int, Any] = {}

    def stop(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        if threading.current_thread() is threading.main_thread():  # no other thread may ask for signals
            for number in (getattr(signal, name) for name in STOPS if hasattr(signal, name)):
                if signal.getsignal(number) == signal.SIG_DFL:
                    before[number] = signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
