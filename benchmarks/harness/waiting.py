"""Whether a device is still at work after a contender said it was done: such work is waited for, and told."""

import sys
import time
from typing import Any


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
