"""From the record of a run to what it says: a pure function, so that every published number can be derived again."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import timing
from benchmarks.harness.record import Line, of, written

SCHEMA = 1


def summarise(lines: Sequence[Line], sha256: str | None = None) -> dict[str, Any]:
    """The summary of a record: what was run, the machine's peaks, every cell with its contenders and pairs, and from
    how many calls on a compilation pays. `sha256` is that of their file, if they have one."""
    lines = list(lines)
    run, end = lines[0], next(of(lines, "end"), {"finished": None, "partial": "not finished", "load": None})
    peaks = _peaks(lines)
    cells = [_cell(lines, cell, peaks) for cell in of(lines, "cell")]
    kept = ("command", "started", "device", "machine", "threads", "quick", "suites")
    return {
        "schema": SCHEMA,
        **{name: run.get(name) for name in kept},
        "finished": end["finished"],
        "partial": end["partial"],
        "load": {"start": run.get("load"), "end": end["load"]},
        "raw_sha256": sha256 or hashlib.sha256("".join(map(written, lines)).encode()).hexdigest(),
        "peaks": peaks,
        "cells": cells,
        "break_even": list(itertools.chain.from_iterable(map(_break_even, cells))),
        "skipped": [_without(line, "kind") for line in of(lines, "skipped")],
    }


def _without(line: Line, *names: str) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


def _peaks(lines: Sequence[Line]) -> dict[str, Any]:
    """The best of every measured peak: GEMM in FLOP/s by dtype, reading and copying in bytes/s; the data sheet's."""
    found: dict[str, Any] = {"gemm": {}, "read": None, "copy": None, "sheet": None}
    for line in of(lines, "peak"):
        what, value = line["what"], line["value"]
        if what == "sheet":
            found["sheet"] = value
            continue
        if what == "gemm":
            entry = found["gemm"].setdefault(line["dtype"], {"value": 0.0, "by": {}})
        else:
            entry = found[what] = found[what] or {"value": 0.0, "by": {}}
        entry["by"][line["wing"]] = max(value, entry["by"].get(line["wing"], 0.0))
        entry["value"] = max(value, entry["value"])
    return found


def _cell(lines: Sequence[Line], cell: Line, peaks: Mapping[str, Any]) -> dict[str, Any]:
    mine = [line for line in lines if line.get("cell") == cell["cell"]]
    blocks = [timing.of_rows(line["turns"]) for line in of(mine, "block")]
    contenders = [_contender(mine, blocks, cell, one, peaks) for one in of(mine, "contender")]
    timed = [one["name"] for one in contenders if one["seconds"] is not None and one["refused"] is None]
    return {
        **_without(cell, "kind"),
        "blocks": len(blocks),
        "flops": [_without(line, "kind", "cell") for line in of(mine, "flops")],
        "contenders": contenders,
        "pairs": [timing.compare(blocks, *pair) for pair in itertools.combinations(timed, 2)],
    }


def _contender(mine, blocks, cell: Line, line: Line, peaks: Mapping[str, Any]) -> dict[str, Any]:
    name = line["name"]
    refused = next((found["reason"] for found in of(mine, "refused", name=name)), None)
    ran = any(turn.name == name for block in blocks for turn in block)
    timed = timing.of_one(blocks, name) if ran else {"seconds": None, "self_ratio": None, "carry_over": None}
    found = {
        **_without(line, "kind", "cell"),
        **timed,
        **_rates(cell, timed["seconds"], peaks),
        "phases": next((_without(one, "kind", "cell", "name") for one in of(mine, "phase", name=name)), None),
        "gate": [_without(one, "kind", "cell", "name") for one in of(mine, "gate", name=name)],
        "memory": next((_without(one, "kind", "cell", "name") for one in of(mine, "memory", name=name)), None),
        "refused": refused,
    }
    over = [what for what in ("mfu_full", "mfu_causal", "mbu") if (found[what] or 0) > 1]
    if over and refused is None:
        found["refused"] = impossible(found, over[0])
    return found


def impossible(found: Mapping[str, Any], what: str) -> str:
    """More than the machine can do means a wrong peak, wrong work or work that was not waited for."""
    return (
        f"{found['name']} would use {found[what]:.0%} of this machine's measured peak ({what}): its time, its work or"
        " the peak is wrong, so it is not published."
    )


def _rates(cell: Line, seconds: Mapping[str, float] | None, peaks: Mapping[str, Any]) -> dict[str, float | None]:
    """Units, FLOPs and bytes per second at the median, and their shares of the measured peaks."""
    names = ("per_second", "flops_per_second", "mfu_full", "mfu_causal", "bytes_per_second", "mbu")
    found: dict[str, float | None] = dict.fromkeys(names)
    if seconds is None:
        return found
    median = seconds["median"]
    gemm, read = peaks["gemm"].get(cell["dtype"]), peaks["read"]
    found["per_second"] = cell["work"] / median if cell.get("work") else None
    if cell.get("flops_full"):
        found["flops_per_second"] = cell["flops_full"] / median
        if gemm:
            found["mfu_full"] = cell["flops_full"] / median / gemm["value"]
            found["mfu_causal"] = cell["flops_causal"] / median / gemm["value"] if cell.get("flops_causal") else None
    if cell.get("bytes"):
        found["bytes_per_second"] = cell["bytes"] / median
        found["mbu"] = cell["bytes"] / median / read["value"] if read else None
    return found


def _break_even(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For two contenders of the same wing: how many calls it takes until the slower start of one is earned back."""
    found = []
    ready = [one for one in cell["contenders"] if one["refused"] is None and one["seconds"] and one["phases"]]
    for a, b in itertools.permutations(ready, 2):
        extra = b["phases"]["first"] - a["phases"]["first"]
        if a["wing"] != b["wing"] or extra <= 0:
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
