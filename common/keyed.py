"""The key of what is being computed, for what lies too deep in it to be handed one: adapters inside of linear maps."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


class Drawn(threading.local):
    """`key` is that of the block (or head) that is being computed in this thread; None draws nothing."""

    key: Any = None


DRAWN = Drawn()


@contextlib.contextmanager
def keyed(key: Any) -> Iterator[None]:
    """As long as it lasts, dropout of adapters is drawn with this key."""
    before, DRAWN.key = DRAWN.key, key
    try:
        yield
    finally:
        DRAWN.key = before
