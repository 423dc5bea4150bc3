"""What this machine can do: the best matrix product per precision, reading and copying of memory, in each framework.

These are the yardsticks of every share in a report. A product counts 2 n^3 FLOPs; reading counts the bytes of a weight
matrix that a single row is multiplied with, as decoding does, or of an array that is summed; copying counts both ways.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
FORMATS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16")}  # that are multiplied in
STORED = {"tf32": "float32"}  # numbers that a GPU cuts short while it multiplies them
CALLS = {False: 9, True: 3}
PATIENCE = 2.0  # seconds for one yardstick; some processors have no fast 16-bit products at all


def measure(name: str, device: str, quick: bool) -> list[dict[str, Any]]:
    """[{what, dtype, size, value}] of one framework: FLOP/s of "gemm", bytes/s of "read" and "copy"; the dtype of a
    product is the format that is multiplied in.

    The best of several calls; what is very slow is called once, and not at a larger size. A quick look at a GPU takes
    the largest size alone, for every program is compiled.
    """
    kind = device.partition(":")[0]
    found, slow = [], set()
    sizes = SIZES[kind][-1:] if quick and kind != "cpu" else SIZES[kind]
    for what, dtype, size, work, run in TASKS[name](device, sizes, BYTES[kind]):
        if (what, dtype) in slow:
            continue
        run()  # compiles
        spent = [_seconds(run)]
        if spent[0] > PATIENCE:
            slow.add((what, dtype))
        while sum(spent) < PATIENCE and len(spent) <= CALLS[quick]:
            spent.append(_seconds(run))
        found.append({"what": what, "dtype": dtype, "size": size, "value": work / min(spent)})
    return found


def _seconds(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


Tasks = Iterator[tuple[str, str, int, float, Callable[[], None]]]


def _torch(device: str, sizes: tuple[int, ...], size: int) -> Tasks:
    import torch

    def waited(run):
        def once():
            with torch.inference_mode():
                run()
            if device != "cpu":
                torch.cuda.synchronize(device)

        return once

    for dtype in FORMATS[device.partition(":")[0]]:
        kind = getattr(torch, STORED.get(dtype, dtype))
        with _short(torch.backends) if dtype == "tf32" else contextlib.nullcontext():
            for n in sizes:
                a, b = (torch.randn(n, n, device=device).to(kind) for _ in "ab")
                yield "gemm", dtype, n, 2.0 * n**3, waited(lambda a=a, b=b: a @ b)
    weights = torch.randn(size // 4 // 4096, 4096, device=device)
    row, target = torch.randn(1, 4096, device=device), torch.empty_like(weights)
    yield "read", "float32", size, size, waited(lambda: torch.nn.functional.linear(row, weights))
    yield "read", "float32", size, size, waited(weights.sum)
    yield "copy", "float32", size, 2 * size, waited(lambda: target.copy_(weights))


@contextlib.contextmanager
def _short(backends: Any) -> Iterator[None]:
    """As long as it lasts PyTorch lets a GPU cut the factors of float32 products."""
    switch = backends.cuda.matmul
    before, switch.fp32_precision = switch.fp32_precision, "tf32"
    try:
        yield
    finally:
        switch.fp32_precision = "none" if before == backends.fp32_precision else before  # "none" follows that


def _jax(device: str, sizes: tuple[int, ...], size: int) -> Tasks:
    import jax
    import jax.numpy as jnp

    kind, _, index = device.partition(":")
    where = jax.devices("gpu" if kind == "cuda" else kind)[int(index or 0)]

    def waited(function, *arrays):
        compiled, placed = jax.jit(function), jax.device_put(arrays, where)  # what is put there is computed there
        return lambda: jax.block_until_ready(compiled(*placed))

    def product(a, b):
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    with jax.default_matmul_precision("highest"), jax.default_device(where):
        keys = iter(jax.random.split(jax.random.key(0), 64))
        for dtype in FORMATS[kind]:
            with jax.default_matmul_precision("tensorfloat32" if dtype == "tf32" else "highest"):
                for n in sizes:
                    a, b = (jax.random.normal(next(keys), (n, n)).astype(STORED.get(dtype, dtype)) for _ in "ab")
                    yield "gemm", dtype, n, 2.0 * n**3, waited(product, a, b)
        weights = jax.random.normal(next(keys), (size // 4 // 4096, 4096))
        row = jax.random.normal(next(keys), (1, 4096))
        yield "read", "float32", size, size, waited(lambda x, w: jnp.einsum("bi,oi->bo", x, w), row, weights)
        yield "read", "float32", size, size, waited(jnp.sum, weights)
        yield "copy", "float32", size, 2 * size, waited(lambda w: w + 1, weights)


TASKS = {"torch": _torch, "jax": _jax}
