"""From the record of a run to what it says: a pure function, so that every published number can be derived again."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import timing
from benchmarks.harness.cells import DECODING, FRESH
from benchmarks.harness.record import Line, of, written
from common.meter import WIDER

SCHEMA = 1
TOLD, DERIVED = "as the framework tells it", "first call less a steady one"  # where seconds of compiling are from
REST = "first call less tracing and a steady one"
SHORT = ("tf32", "tensorfloat32")  # what the frameworks' flags call products of float32 numbers cut short
SHARES = {
    **dict.fromkeys(("mfu_full", "mfu_causal", "mbu"), "this machine's measured peak"),
    **dict.fromkeys(("mfu_sheet", "mbu_sheet"), "the data sheet's peak"),
}


def summarise(lines: Sequence[Line], sha256: str | None = None) -> dict[str, Any]:
    """The summary of a record: what was run, the machine's peaks, every cell with its contenders and pairs, and from
    how many calls on a compilation pays. `sha256` is that of their file, if they have one."""
    lines = list(lines)
    run, end = lines[0], next(of(lines, "end"), {"finished": None, "partial": "not finished", "load": None})
    peaks, beyond = _peaks(lines)
    apart = _apart(lines)
    cells = [_cell(lines, cell, peaks, apart) for cell in of(lines, "cell")]
    kept = ("command", "started", "device", "machine", "threads", "quick", "suites")
    return {
        "schema": SCHEMA,
        **{name: run.get(name) for name in kept},
        **({"together": True} if run.get("together") else {}),
        "finished": end["finished"],
        "partial": end["partial"],
        "load": {"start": run.get("load"), "end": end["load"]},
        **_provenance(run, end, [line["started"] for line in of(lines, "resumed")]),
        "raw_sha256": sha256 or hashlib.sha256("".join(map(written, lines)).encode()).hexdigest(),
        "peaks": peaks,
        "apart": apart,
        "cells": cells,
        "break_even": list(itertools.chain.from_iterable(map(_break_even, cells))),
        "skipped": [_without(line, "kind") for line in of(lines, "skipped")] + beyond,
    }


def _provenance(run: Line, end: Line, resumed: Sequence[str]) -> dict[str, Any]:
    """What a run says of its seeds, of its GPUs at both ends, and of when it went on: nothing where it does not, as
    older ones."""
    states = {"start": run.get("gpu_state"), "end": end.get("gpu_state")}
    found = {"seeds": run.get("seeds"), "gpu_state": states if any(states.values()) else None, "resumed": resumed}
    return {name: value for name, value in found.items() if value}


def _without(line: Line, *names: str) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


def _peaks(lines: Sequence[Line]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The best of every measured peak: GEMM in FLOP/s by dtype, reading and copying in bytes/s; the data sheet's. And
    those that exceed the data sheet, which are left out: what was skipped, and why."""
    sheet = next((line["value"] for line in of(lines, "peak", what="sheet")), None)
    found: dict[str, Any] = {"gemm": {}, "read": None, "copy": None, "sheet": sheet}
    beyond = []
    for line in of(lines, "peak"):
        what, value = line["what"], line["value"]
        if what == "sheet":
            continue
        most = (sheet or {}).get(line["dtype"] if what == "gemm" else "bandwidth")
        if most is not None and not 0 < value / most <= 1:
            told = f"{value:.3g} is {value / most:.0%} of the data sheet's {most:.3g}: one of them is wrong"
            beyond.append({"what": f"peak of {what}, {line['dtype']}, {line['wing']}", "reason": told})
            continue
        if what == "gemm":
            entry = found["gemm"].setdefault(line["dtype"], {"value": 0.0, "by": {}})
        else:
            entry = found[what] = found[what] or {"value": 0.0, "by": {}}
        entry["by"][line["wing"]] = max(value, entry["by"].get(line["wing"], 0.0))
        entry["value"] = max(value, entry["value"])
    return found, beyond


def _apart(lines: Sequence[Line]) -> float | None:
    """What two processes of one contender differ by in this run beyond the scatter of their turns, in log seconds; None
    where too few had two."""
    contests = []
    for cell in of(lines, "cell"):
        blocks = [timing.of_rows(line["turns"]) for line in of(lines, "block", cell=cell["cell"])]
        if cell.get("processes", 1) > 1 or timing.rounds(blocks) > 1:
            contests.append(blocks)
    return timing.apart(contests)


def _cell(lines: Sequence[Line], cell: Line, peaks: Mapping[str, Any], apart: float | None) -> dict[str, Any]:
    mine = [line for line in lines if line.get("cell") == cell["cell"]]
    blocks = [timing.of_rows(line["turns"]) for line in of(mine, "block")]
    contenders = [_contender(mine, blocks, cell, one, peaks) for one in of(mine, "contender")]
    timed = [one["name"] for one in contenders if one["seconds"] is not None and one["refused"] is None]
    processes = 2 if cell["task"] in FRESH else cell.get("processes", 1)  # of a beginning every turn has its own
    known = [apart, timing.apart([blocks]) if processes > 1 or timing.rounds(blocks) > 1 else None]
    apart = max((one for one in known if one is not None), default=timing.APART)  # some tasks' differ by more
    return {
        **_without(cell, "kind", "own"),
        "blocks": len(blocks),
        **({"rounds": timing.rounds(blocks)} if timing.rounds(blocks) > 1 else {}),
        **_others(of(mine, "block")),
        "flops": [_without(line, "kind", "cell") for line in of(mine, "flops")],
        "contenders": contenders,
        "pairs": [timing.compare(blocks, *pair, processes, apart) for pair in itertools.combinations(timed, 2)],
    }


def _others(blocks: Iterable[Line]) -> dict[str, float]:
    """The mean share of the cores that other work took meanwhile; nothing where blocks do not tell, as older ones."""
    shares = [line["others"] for line in blocks if "others" in line]
    return {"others": float(np.mean(shares))} if shares else {}


def _contender(mine, blocks, cell: Line, line: Line, peaks: Mapping[str, Any]) -> dict[str, Any]:
    name = line["name"]
    refused = next((found["reason"] for found in of(mine, "refused", name=name)), None)
    ran = any(turn.name == name for block in blocks for turn in block)
    timed = (
        timing.of_one(blocks, name, cell.get("processes", 1))
        if ran
        else {"seconds": None, "self_ratio": None, "carry_over": None}
    )
    kind, own = multiplies(line["settings"]), {**cell, **cell["own"].get(name, {})}
    found = {
        **_without(line, "kind", "cell"),
        "dtype": own["dtype"],
        **{name: own[name] for name in ("bytes", "flops_full", "flops_causal")},
        "multiplies": kind,
        **timed,
        "device_seconds": _device_seconds(of(mine, "block"), name),
        **_rates(own, kind, timed["seconds"], peaks),
        "phases": _phases(mine, cell, line, timed["seconds"]),
        "gate": [_without(one, "kind", "cell", "name") for one in of(mine, "gate", name=name)],
        "memory": next((_without(one, "kind", "cell", "name") for one in of(mine, "memory", name=name)), None),
        "refused": refused,
    }
    over = [what for what in SHARES if found[what] is not None and not 0 < found[what] <= 1]
    if over and refused is None:
        found["refused"] = impossible(found, over[0])
    return found


def _device_seconds(blocks: Iterable[Line], name: str) -> float | None:
    """Median seconds of a call by the device's own events, where there are any."""
    pairs = itertools.chain.from_iterable(zip(b["turns"], b.get("device_ms", ()), strict=False) for b in blocks)
    found = [told for turn, told in pairs if turn[0] == name and told is not None]
    return float(np.median(found)) / 1e3 if found else None


def _phases(mine, cell: Line, line: Line, seconds: Mapping[str, float] | None) -> dict[str, Any] | None:
    """Seconds before the steady state. PyTorch tells what it took to trace at most, so where it compiles that is its
    first call less tracing and a steady one (the median); `compile_how` says which it is. What compiling cells time is
    the first call less a steady one already."""
    found = next((_without(one, "kind", "cell", "name") for one in of(mine, "phase", name=line["name"])), None)
    if found is None:
        return None
    how, traced = None if found["compile"] is None else TOLD, found["trace"]
    silent = _compiles_silently(cell, line) or traced is not None  # PyTorch's flex attention compiles by itself
    if found["compile"] is None and seconds is not None and silent:
        steady = seconds["median"]
        both = steady if cell["task"] == "compile" else found["first"] - steady
        found["compile"], how = max(0.0, both - (traced or 0.0)), DERIVED if traced is None else REST
    return {**found, "compile_how": how}


def _compiles_silently(cell: Line, line: Line) -> bool:
    """Whether PyTorch compiles in a cell: blocks where it is told to, and steps of streamed decoding with a cache."""
    settings = line["settings"]
    streams = cell["task"] in DECODING and cell["cached"] and settings.get("decode") == "streamed"
    return line["wing"] == "torch" and settings.get("compile", streams)


def impossible(found: Mapping[str, Any], what: str) -> str:
    """More than the machine can do means a wrong peak, wrong work or work that was not waited for."""
    return (
        f"{found['name']} would use {found[what]:.0%} of {SHARES[what]} ({what}): its time, its work or the peak is"
        " wrong, so it is not published."
    )


def multiplies(settings: Mapping[str, Any]) -> str | None:
    """The format in which linear layers multiply, as a contender's settings have it: the one whose peak holds. None
    where they are not known."""
    kind = settings.get("compute")
    if settings.get("products") == "wide":
        kind = WIDER.get(kind, kind)
    cut = any(value in SHORT for value in settings.values())
    return "tf32" if kind == "float32" and cut else kind


def _rates(
    cell: Line, kind: str | None, seconds: Mapping[str, float] | None, peaks: Mapping[str, Any]
) -> dict[str, float | None]:
    """Units, FLOPs and bytes per second at the median, and their shares of the measured peaks and of the data sheet's,
    those of matrix products in the format that is multiplied in."""
    found: dict[str, float | None] = dict.fromkeys(("per_second", "flops_per_second", "bytes_per_second", *SHARES))
    if seconds is None:
        return found
    median, sheet = seconds["median"], peaks["sheet"] or {}
    found["per_second"] = cell["work"] / median if cell.get("work") else None
    if cell.get("flops_full"):
        rate, gemm = cell["flops_full"] / median, (peaks["gemm"].get(kind) or {}).get("value")
        causal = cell["flops_causal"] / median if cell.get("flops_causal") else None
        found |= {"flops_per_second": rate, "mfu_full": _share(rate, gemm), "mfu_causal": _share(causal, gemm)}
        found["mfu_sheet"] = _share(rate, sheet.get(kind))
    if cell.get("bytes"):
        rate, read = cell["bytes"] / median, (peaks["read"] or {}).get("value")
        found |= {"bytes_per_second": rate, "mbu": _share(rate, read)}
        found["mbu_sheet"] = _share(rate, sheet.get("bandwidth"))
    return found


def _share(rate: float | None, peak: float | None) -> float | None:
    return None if rate is None or peak is None else rate / peak


def _break_even(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For two contenders of one wing, and for two wings as they are: how many calls it takes until the longer compiling
    of one is earned back. Beginnings have no calls that could."""
    if cell["task"] in FRESH:
        return []
    found = []
    ready = [one for one in cell["contenders"] if one["refused"] is None and one["seconds"] and one["phases"]]
    for a, b in itertools.permutations(ready, 2):
        extra = _compiling(b) - _compiling(a)
        if (a["wing"] != b["wing"] and {a["mode"], b["mode"]} != {"default"}) or extra <= 0:
            continue
        saved = a["seconds"]["median"] - b["seconds"]["median"]
        calls = math.ceil(extra / saved) if saved > 0 else None
        found.append(
            {
                "cell": cell["cell"],
                "first": a["name"],
                "second": b["name"],
                "extra_compile": extra,
                "saved_per_call": saved,
                "calls": calls,
            }
        )
    return found


def _compiling(one: Mapping[str, Any]) -> float:
    """Seconds of tracing and compiling; who tells of none does neither."""
    return sum(one["phases"][what] or 0.0 for what in ("trace", "compile"))
