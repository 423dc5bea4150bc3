"""A run that never happened: raw lines from a seeded generator."""

import json
import math
import random

PARAMETERS = 124_439_808
SUITES = ("forward", "train", "decode", "depth")
CONTENDERS = {  # name: (title, wing, mode, kernel, speed, seconds of compiling)
    "torch eager": ("PyTorch eager", "torch", "eager", "flash (CPU)", 1.00, None),
    "torch compiled": ("PyTorch compiled", "torch", "compiled", "flash (CPU)", 1.17, 21.0),
    "jax loop": ("JAX loop", "jax", "jit", "XLA", 1.21, 9.0),
    "jax scan": ("JAX scan", "jax", "jit, scan", "XLA", 1.208, 2.8),
    "transformers": ("Transformers", "transformers", "eager", "flash (CPU)", 0.93, None),
}
WRONG = "The logits are 3.1e-02 from the oracle's, and the bound is 1.0e-05: a faster wrong answer is no result."
PEAKS = {"gemm": {"float32": {"torch": 1.9e11, "jax": 1.8e11}, "bfloat16": {"torch": 6.1e11, "jax": 2.2e11}}}
PEAKS |= {"read": {"torch": 3.1e10, "jax": 2.9e10}, "copy": {"torch": 2.2e10, "jax": 2.3e10}}


def cell(suite, task, title, dtype="float32", batch=1, length=256, *, seconds, work, axis=None, flops=None, least=None):
    """A cell line, and the seconds that the reference takes in it."""
    where = "" if axis is None else f"/{axis[0]}-{axis[1]}"
    size = 4 if dtype == "float32" else 2
    ideal = dict.fromkeys(("parameters", "gradients", "optimizer", "activations", "cache"), 0)
    ideal["parameters"] = size * PARAMETERS
    if suite == "train":
        ideal |= {"gradients": size * PARAMETERS, "optimizer": 8 * PARAMETERS, "activations": 610_000_000}
    if suite == "decode":
        ideal["cache"] = 75_497_472 * batch
    return {
        "kind": "cell", "cell": f"{suite}/gpt2-124m/{batch}x{length}/{dtype}{where}", "suite": suite, "task": task,
        "title": f"{title}, GPT-2 124M, {batch} × {length}, {dtype}", "model": "gpt2-124m", "batch": batch,
        "length": length, "dtype": dtype, "unit": "tokens", "work": work, "flops_full": flops,
        "flops_causal": None if flops is None else int(0.98 * flops), "bytes": least, "ideal": ideal,
        "axis": None if axis is None else {"name": axis[0], "value": axis[1]},
    }, seconds  # fmt: skip


def cells():
    """Forward, training, decoding by context and batch, and depth."""
    forward = 2.9e11
    yield cell("forward", "forward", "Forward", batch=4, seconds=2.1, work=1024, flops=int(forward), least=498_000_000)
    yield cell(
        "forward", "forward", "Forward", "bfloat16", 4, seconds=0.9, work=1024, flops=int(forward), least=249_000_000
    )
    yield cell(
        "train", "train", "Training step", batch=2, seconds=3.9, work=512, flops=int(1.5 * forward), least=int(2e9)
    )
    for context in (16, 256, 512, 1023):
        about = {"seconds": 0.021 + 9e-6 * context, "flops": 247_000_000 + 36_864 * context}
        title, least = f"Decoding at context {context}", 498_000_000 + 73_728 * context
        yield cell("decode", "decode", title, length=1024, work=1, axis=("context", context), least=least, **about)
    for batch in (2, 4, 8):
        about = {"seconds": 0.021 + 0.003 * batch, "flops": batch * 260_000_000}
        about["least"] = 498_000_000 + batch * 9_000_000
        yield cell("decode", "decode", "Decoding", "float32", batch, 512, work=batch, axis=("batch", batch), **about)
    for layers in (2, 6, 12, 24):
        about = {"seconds": 0.1 * layers, "axis": ("layers", layers)}
        yield cell("depth", "loss + gradient", f"Gradient, {layers} layers", work=256, **about)


def lines(seed=0, *, suites=SUITES, partial=None, quick=False, noisy=("train",), few=(), refused=(), blocks=8):
    """The lines of raw.jsonl, as objects."""
    coin = random.Random(seed)
    yield _run(suites, quick)
    for what, by in PEAKS.items():
        for dtype, own in by.items() if what == "gemm" else [("float32", by)]:
            for wing, value in own.items():
                size = 2048 if what == "gemm" else 2**28
                yield {"kind": "peak", "what": what, "wing": wing, "dtype": dtype, "size": size, "value": value}
    for made, seconds in cells():
        if made["suite"] not in suites:
            continue
        yield made
        if made["flops_full"] and made["task"] in ("forward", "train"):
            yield from _flops(made)
        yield from _contest(coin, made, seconds, noisy, few, refused, blocks)
    yield {"kind": "skipped", "what": "GPU cells", "reason": "this machine has no GPU"}
    yield {"kind": "end", "finished": "2026-11-24T16:41:07+00:00", "partial": partial, "load": [1.9, 1.7, 1.2]}


def _flops(made):
    closed = made["flops_full"]
    figures = {"loop": (1.1 * closed, "XLA adds elementwise work, 9.1% here"), "scan": (None, "XLA gives no figure")}
    for layers, (xla, reason) in figures.items():
        counts = {"closed": closed, "causal": made["flops_causal"], "torch": closed, "jaxpr": closed, "equal": True}
        about = {"kind": "flops", "cell": made["cell"], "task": made["task"], "layers": layers}
        yield {**about, **counts, "xla": xla, "reason": reason}


def _run(suites, quick):
    machine = {
        "cpu": "AMD EPYC 7B13", "cores": 2, "usable_cores": 2, "governor": None, "memory_bytes": 16_782_934_016,
        "system": "Linux 6.1.0", "architecture": "x86_64", "python": "CPython 3.11.2",
        "versions": {"numpy": "2.3.1", "torch": "2.13.0+cpu", "jax": "0.10.2"},
        "environment": {"OMP_NUM_THREADS": "2"}, "gpus": [],
        "commit": {"id": "82e4ef6a0b1c2d3e4f5061728394a5b6c7d8e9f0", "changed": False},
    }  # fmt: skip
    return {
        "kind": "run", "schema": 1, "command": "parallax bench --suite forward --suite train --suite decode",
        "started": "2026-11-24T16:00:00+00:00", "machine": machine, "threads": 2, "load": [0.1, 0.2, 0.3],
        "device": {"kind": "cpu", "name": "AMD EPYC 7B13", "slug": "cpu-amd-epyc-2-threads"}, "quick": quick,
        "suites": list(suites),
    }  # fmt: skip


def _contest(coin, made, seconds, noisy, few, refused, blocks):
    depth = made["axis"]["value"] if made["axis"] and made["axis"]["name"] == "layers" else 12
    names = [name for name in CONTENDERS if name != "transformers" or made["suite"] == "forward"]
    timed = [name for name in names if (made["cell"], name) not in refused]
    for name in names:
        title, wing, mode, kernel, _, compiling = CONTENDERS[name]
        key = {"cell": made["cell"], "name": name}
        low = {"param": made["dtype"], "compute": made["dtype"], "reduce": "float32"}
        settings = {**low, "threads": 2, "attention": "fused", "kernel": kernel, "loss": "chunked", "tf32": False}
        yield {
            "kind": "contender", **key, "title": title, "wing": wing, "mode": mode, "lower_bound": False,
            "settings": settings, "versions": {wing: "2.13.0" if wing != "jax" else "0.10.2"},
        }  # fmt: skip
        if compiling is not None and name != "jax scan":
            compiling *= depth / 12
        trace = None if wing != "jax" else 0.1 * depth
        yield {
            "kind": "phase", **key, "import": 2.4 + coin.random(), "build": 1.1 + coin.random(), "trace": trace,
            "compile": compiling, "first": seconds + (compiling or 0.2) + (trace or 0),
        }  # fmt: skip
        error = coin.uniform(2e-7, 8e-7)
        gate = {"against": "oracle", "what": "logits", "error": error, "bound": 1e-5, "passed": True}
        yield {"kind": "gate", **key, **gate}
        yield _memory(coin, key, made, wing)
        if name not in timed:
            yield {"kind": "refused", **key, "reason": WRONG}
    swing = 0.12 if made["suite"] in noisy else 0.006
    for block in range(2 if made["suite"] in few else blocks):
        order = [(name, copy) for name in timed for copy in (0, 1)]
        coin.shuffle(order)
        drift = math.exp(coin.gauss(0, 0.03))
        turns = [
            [n, c, seconds * drift / CONTENDERS[n][4] * math.exp(coin.gauss(0, swing))]
            for n, c in order + order[::-1]
        ]  # fmt: skip
        calls = {name: max(1, math.ceil(0.02 / seconds)) for name in timed}
        yield {"kind": "block", "cell": made["cell"], "block": block, "calls": calls, "turns": turns}


def _memory(coin, key, made, wing):
    base = {"torch": 228_000_000, "jax": 194_000_000}.get(wing, 301_000_000)
    peak = base + int(sum(made["ideal"].values()) * coin.uniform(1.15, 1.5))
    return {
        "kind": "memory", **key, "import": base, "build": base + int(1.05 * made["ideal"]["parameters"]), "peak": peak,
        "how": "VmHWM of a process of its own", "planned": peak - base if wing == "jax" else None,
        "planned_how": "XLA planned" if wing == "jax" else "", "device": None,
    }  # fmt: skip


def text(found):
    """raw.jsonl"""
    return "".join(json.dumps(line) + "\n" for line in found)
