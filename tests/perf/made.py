"""A run that never happened: the lines that real cells and contenders write, with times from a seeded generator."""

import functools
import json
import math
import random
from types import SimpleNamespace

from benchmarks.harness import contenders, timing
from benchmarks.harness.cells import FRESH, Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.contest import judge_title
from benchmarks.suites.scope import wing
from common.accounting import counters
from common.config import preset

MODEL = "gpt2-124m"
SUITES = ("forward", "train", "decode", "compile")
OURS = (wing("torch"), wing("torch", "compiled"), wing("jax"), wing("jax", "scan"))
TRANSFORMERS = Contender("transformers", "transformers", "transformers", "transformers", "as it is")
SPEED = {"torch": 1.0, "torch compiled": 1.17, "jax": 1.21, "jax scan": 1.208, "transformers": 0.93}
USUAL = 1.1  # speed of everybody else
COMPILING = {"torch": 21.0, "jax": 9.0, "scan": 2.8}  # seconds, of twelve layers in a loop
RATE, BANDWIDTH = 1.3e11, 2.2e10  # what the reference reaches
WRONG = "The logits are 3.1e-02 from the oracle's, and the bound is 1.0e-05: a faster wrong answer is no result."
PEAKS = {"gemm": {"float32": {"torch": 1.9e11, "jax": 1.8e11}, "bfloat16": {"torch": 6.1e11, "jax": 2.2e11}}}
PEAKS |= {"read": {"torch": 3.1e10, "jax": 2.9e10}, "copy": {"torch": 2.2e10, "jax": 2.3e10}}
FLAGS = {"torch": {"fp32_precision": "ieee", "deterministic": False}}
FLAGS["jax"] = {"matmul_precision": "highest", "x64": "in float64 only", "threefry_partitionable": True}


def cells():
    """Forward, training, decoding by context and batch, and compiling by depth."""
    config, small = preset(MODEL), preset("nano")
    for dtype in ("float32", "bfloat16"):
        yield Cell("forward", "forward", MODEL, config, 4, 256, dtype, (*OURS, TRANSFORMERS))
    yield Cell("train", "train", MODEL, config, 2, 256, "float32", OURS, memory=True)
    for length in (16, 256, 512, 960):
        along = {"part": "context", "axis": ("context", length)}
        yield Cell("decode", "decode", MODEL, config, 1, length, "float32", OURS, 16, **along)
    for batch in (2, 4, 8):
        along = {"part": "batch", "axis": ("batch", batch)}
        yield Cell("decode", "decode", MODEL, config, batch, 128, "float32", OURS, 16, **along)
    for layers in (2, 6, 12, 24):
        deep, along = small.with_(num_layers=layers), {"axis": ("layers", layers), "group": "nano"}
        chosen = (OURS[2], OURS[3], OURS[1])
        yield Cell("compile", "compile", f"nano × {layers} layers", deep, 2, 64, "float32", chosen, **along)


def lines(
    seed=0, *, chosen=None, suites=SUITES, partial=None, quick=False, noisy=("train",), few=(), refused=(), blocks=8,
    peaks=PEAKS, sheet=None,
):  # fmt: skip
    """The lines of raw.jsonl, as objects."""
    coin, every = random.Random(seed), list(cells() if chosen is None else chosen)
    if chosen is None:
        every = [cell for cell in every if cell.suite in suites]
    yield run(suites, quick)
    for what, by in peaks.items():
        for dtype, own in by.items() if what == "gemm" else [("float32", by)]:
            for name, value in own.items():
                size = 2048 if what == "gemm" else 2**28
                yield {"kind": "peak", "what": what, "wing": name, "dtype": dtype, "size": size, "value": value}
    if sheet is not None:
        yield {"kind": "peak", "what": "sheet", "value": sheet}
    for cell in every:
        yield {"kind": "cell", **told(cell), **({} if cell.task in FRESH else {"processes": 2})}
        yield from _contest(coin, cell, noisy, few, refused, blocks)
    for cell in every:
        if cell.task in counters.TASKS and cell.dtype == "float32":
            yield from _flops(cell)
    yield {"kind": "skipped", "what": "GPU", "reason": "this machine has none"}
    yield {"kind": "end", "finished": "2026-11-24T16:41:07+00:00", "partial": partial, "load": [1.9, 1.7, 1.2]}


@functools.cache
def told(cell):
    """What a cell writes."""
    return cell.line()


def _flops(cell):
    closed, causal = (told(cell)[key] for key in ("flops_full", "flops_causal"))
    figures = {"loop": (1.1 * closed, "XLA adds elementwise work, 9.1% here"), "scan": (None, "XLA gives no figure")}
    for layers, (xla, reason) in figures.items():
        row = counters.Row(cell.task, layers, closed, causal, closed, closed, xla, reason, closed)
        yield {"kind": "flops", "cell": cell.name, **vars(row), "equal": row.equal}


def run(suites, quick):
    machine = {
        "cpu": "AMD EPYC 7B13", "instructions": ["avx2"], "cores": 2, "usable_cores": 2, "governor": None,
        "memory_bytes": 16_782_934_016, "system": "Linux 6.1.0", "architecture": "x86_64", "python": "CPython 3.11.2",
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


def settings(cell, one):
    """What `contenders.settings` reads back from a model."""
    about = {}
    if one.wing == "transformers":
        about = {"param": cell.dtype, "compute": cell.dtype, "reduce": "float32 (softmax, loss)", "attention": "sdpa"}
    backend = SimpleNamespace(threads=lambda: 2, flags=lambda: FLAGS.get(one.wing, FLAGS["torch"]))
    model = SimpleNamespace(execution=one.execution(cell.dtype, "cpu", 2), about=lambda: about)
    return contenders.settings(backend, model)


def compiling(cell, one):
    """Seconds of it, None for those who do not."""
    streams = cell.task == "decode" and cell.cached and one.options.get("decode") == "streamed"
    if one.wing == "torch" and not (one.options.get("compile") or streams):
        return None
    if one.options.get("layers") == "scan":
        return COMPILING["scan"]
    return COMPILING[one.wing] * cell.config.num_layers / 12 if one.wing in COMPILING else None


def typical(cell, one):
    """Seconds of a steady call; of a beginning, what its cell times."""
    line, speed = told(cell), SPEED.get(one.name, USUAL)
    line = line | line["own"].get(one.name, {})
    if cell.task == "compile":
        return compiling(cell, one)
    if cell.task in FRESH:
        return 2.5 / speed
    return (1e-4 + max((line["flops_full"] or 0) / RATE, (line["bytes"] or 0) / BANDWIDTH)) / speed


def _contest(coin, cell, noisy, few, refused, blocks):
    timed = [one for one in cell.contenders if (cell.name, one.name) not in refused]
    for one in cell.contenders:
        key, versions = {"cell": cell.name}, {one.wing: "0.10.2" if one.wing == "jax" else "2.13.0"}
        yield {"kind": "contender", **key, **one.line(settings(cell, one), versions)}
        if cell.task != "load":
            yield {"kind": "phase", **key, "name": one.name, **_phases(coin, cell, one)}
        if cell.task not in FRESH:
            error = {"error": coin.uniform(2e-7, 8e-7), "least": 5e-8, "bound": 1e-5, "passed": True}
            yield {"kind": "gate", **key, "name": one.name, "against": judge_title(cell), "what": "logits", **error}
        if one not in timed:
            yield {"kind": "refused", **key, "name": one.name, "reason": WRONG}
    steady = {one.name: typical(cell, one) for one in timed}
    mirrored = cell.task not in FRESH and max(steady.values()) < timing.LONG_CALL
    swing = 0.12 if cell.suite in noisy else 0.006
    for block in range(2 if cell.suite in few else blocks):
        order = [(name, copy) for name in steady for copy in (0, 1)]
        coin.shuffle(order)
        drift = math.exp(coin.gauss(0, 0.03))
        order += order[::-1] if mirrored else []
        turns = [[name, copy, steady[name] * drift * math.exp(coin.gauss(0, swing))] for name, copy in order]
        calls = {name: timing.turns(seconds)[0] for name, seconds in steady.items()}
        beside = {"calls": calls, "others": 0.01}
        yield {"kind": "block", "cell": cell.name, "block": block, **beside, "turns": turns}
    if cell.memory:
        yield from (_memory(coin, cell, one) for one in timed)


def _phases(coin, cell, one):
    """Only JAX tells all that it spent; PyTorch what it took to trace, where it compiles."""
    spent = compiling(cell, one) or 0.0
    trace = 0.1 * cell.config.num_layers if one.wing == "jax" or spent else 0.0
    steady = 0.5 if cell.task in FRESH else typical(cell, one)
    return {
        "import": 2.4 + coin.random(), "build": 1.1 + coin.random(), "trace": trace or None,
        "compile": spent if one.wing == "jax" else None, "first": steady + spent + trace + 0.2 * coin.random(),
    }  # fmt: skip


def _memory(coin, cell, one):
    base, ideal = {"torch": 228_000_000, "jax": 194_000_000}.get(one.wing, 301_000_000), told(cell)["ideal"]
    peak, planned = base + int(sum(ideal.values()) * coin.uniform(1.15, 1.5)), one.wing == "jax"
    return {
        "kind": "memory", "cell": cell.name, "name": one.name, "import": base,
        "build": base + int(1.05 * ideal["parameters"]), "peak": peak, "how": "VmHWM, reset before the work",
        "planned": peak - base if planned else None, "planned_how": "XLA: arguments and more" if planned else "",
        "device": None,
    }  # fmt: skip


def text(found):
    """raw.jsonl"""
    return "".join(json.dumps(line) + "\n" for line in found)
