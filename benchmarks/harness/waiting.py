"""Whether a device is still at work after a contender said it was done: such work is waited for, and told."""

import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from numbers import Number
from typing import Any

import numpy as np

from common.errors import UserError

ARRAYS = ("numpy", "torch", "jax", "jaxlib")  # packages whose own arrays are known, and known how to be waited for


def done(outputs: Any) -> None:
    """Refuse outputs that may not have been computed: whatever is no array of a framework and no plain data makes its
    numbers when somebody asks for them."""
    for leaf in _leaves(outputs):
        kind = type(leaf)
        known = kind.__module__.partition(".")[0] in ARRAYS and getattr(leaf, "dtype", None) != np.dtype(object)
        if not known and not isinstance(leaf, (Number, str, bytes, type(None))):
            raise UserError(
                f"gives a {kind.__name__}, which may be a promise: outputs must be arrays or plain numbers."
            )


def _leaves(outputs: Any) -> Iterator[Any]:
    if type(outputs) in (dict, list, tuple):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _leaves(part)
    else:
        yield outputs


def join(before: Collection[threading.Thread], patience: float = 60.0) -> float:
    """Seconds until threads that were not there `before` have ended; refused if one does not."""
    begun = time.perf_counter()
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(patience)
            if thread.is_alive():
                raise UserError(
                    f"started a thread ({thread.name}) that goes on after its call: such work is not timed."
                )
    return time.perf_counter() - begun


def rest(device: str, outputs: Any = None) -> float:
    """Seconds until `device` ("cpu", "cuda", "cuda:1") has finished what any loaded framework has given to it,
    `outputs` (what calls returned, and may be promises) among it."""
    jax = sys.modules.get("jax")
    alive = []
    if jax is not None:
        held = [leaf for leaf in jax.tree.leaves(outputs) if isinstance(leaf, jax.Array)]
        alive = [array for array in (*jax.live_arrays(), *held) if not array.is_deleted()]
    begun = time.perf_counter()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize(device if device.startswith("cuda") else None)
    if jax is not None:
        jax.effects_barrier()
        jax.block_until_ready(alive)
    return time.perf_counter() - begun
