"""The numbers of every plot, as rows that are also written as CSV: a plot draws these rows and nothing else."""

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

from reports.perf.numbers import Found
from reports.perf.view import Cell, Contender, break_evens, cells

Row = dict[str, Any]
PARTS = ("parameters", "gradients", "optimizer", "activations", "cache")
CLOSED = "closed form"
ELSEWHERE = ("cases", "components", "ablation")  # calling takes the time of models so small; what options buy


def forest(found: Found) -> list[Row]:
    """Every ratio to its cell's reference that may be shown; above 1 the contender is faster than the reference. What
    carry-over voids is named, without a ratio."""
    rows = []
    for cell in cells(found):
        for one in cell.contenders:
            pair = cell.versus(one)
            if pair is not None and (pair.usable or pair.state == "carried"):
                ratio, low, high = pair.values if pair.usable else (None, None, None)
                rows.append({
                    "cell": cell.cell["cell"], "title": cell.title, "reference": pair.base.title, "name": one.title,
                    "wing": one.wing, "reference_wing": pair.base.wing, "ratio": ratio, "low": low, "high": high,
                    "floor": pair.pair["floor"], "carry_over": pair.pair["carry_over"], "state": pair.state,
                })  # fmt: skip
    return rows


def roofline(found: Found) -> list[Row]:
    """Achieved FLOP/s by arithmetic intensity, with the measured peaks of the format that is multiplied in, where work,
    bytes and peaks are all known; not of suites about other things."""
    peaks, rows = found["peaks"], []
    read = (peaks.get("read") or {}).get("value")
    for cell in cells(found):
        if not read or cell.cell["suite"] in ELSEWHERE:
            continue
        for one in cell.contenders:
            kind, moved, flops = (one.one[what] for what in ("multiplies", "bytes", "flops_full"))
            gemm = ((peaks.get("gemm") or {}).get(kind) or {}).get("value")
            if one.timed and gemm and moved and flops:
                rows.append({
                    "cell": cell.cell["cell"], "title": cell.title, "name": one.title, "wing": one.wing,
                    "multiplies": kind, "intensity": flops / moved, "flops_per_second": one.one["flops_per_second"],
                    "peak_gemm": gemm, "peak_read": read,
                })  # fmt: skip
    return rows


def memory(found: Found) -> list[Row]:
    """What plain eager PyTorch keeps by closed form, and what was measured: {import, peak, device, planned} of each."""
    rows = []
    for cell in cells(found):
        measured = [one for one in cell.contenders if one.one["memory"] is not None]
        if not measured:
            continue
        about = {"cell": cell.cell["cell"], "title": cell.title}
        ideal = cell.cell["ideal"] or {}
        if cell.cell["task"] == "gradients" and not ideal.get("gradients"):  # records that told of parameters alone
            ideal = {}
        rows += [
            {**about, "name": CLOSED, "wing": "", "what": part, "bytes": ideal[part]}
            for part in PARTS
            if ideal.get(part)
        ]
        for one in measured:
            for what in ("import", "peak", "device", "planned"):
                value = one.one["memory"].get(what)
                if value is not None:
                    rows.append({**about, "name": one.title, "wing": one.wing, "what": what, "bytes": value})
    return rows


def breakeven(found: Found) -> list[Row]:
    """Where compiling pays, seen from each cell's reference; where it never does there is nothing to draw."""
    rows = []
    for one in break_evens(found):
        if one.entry["calls"] and one.settled and one.first.name == getattr(one.cell.reference, "name", None):
            rows.append({
                "cell": one.entry["cell"], "title": one.cell.title, "first": one.first.title,
                "first_wing": one.first.wing, "second": one.second.title, "second_wing": one.second.wing,
                "first_seconds": one.first.one["seconds"]["median"], "extra_compile": one.entry["extra_compile"],
                "saved_per_call": one.entry["saved_per_call"], "calls": one.entry["calls"],
            })  # fmt: skip
    return rows


def depth(found: Found) -> list[Row]:
    """Seconds of compiling a training step, as its cells time it, by number of layers."""
    rows = []
    for group, value, cell, one in _along(found, ("layers",)):
        if one.timed:
            spread = one.one["seconds"]
            rows.append({
                "group": group, "axis": "layers", "value": value, "cell": cell.cell["cell"], "name": one.title,
                "wing": one.wing, "seconds": spread["median"], "low": spread["p10"], "high": spread["p90"],
            })  # fmt: skip
    return _with_two_places(rows)


def scaling(found: Found) -> list[Row]:
    """Units per second, with the rate of the 10th and 90th percentile, by context and by batch."""
    rows = []
    for group, value, cell, one in _along(found, ("context", "batch")):
        if one.timed:
            rows.append({
                "group": group, "axis": cell.cell["axis"]["name"], "value": value, "cell": cell.cell["cell"],
                "name": one.title, "wing": one.wing, "unit": cell.cell["unit"], **_rates(cell, one),
            })  # fmt: skip
    return _with_two_places(rows)


def _rates(cell: Cell, one: Contender) -> dict[str, float]:
    work, spread = cell.cell["work"], one.one["seconds"]
    return {"per_second": one.one["per_second"], "low": work / spread["p90"], "high": work / spread["p10"]}


def variants(found: Found) -> list[Row]:
    """Units per second, with the rate of the 10th and 90th percentile, and the bytes of the cache by context, for kinds
    of layers side by side."""
    rows = []
    for cell in cells(found):
        if cell.cell["suite"] == "variants":
            for one in cell.contenders:
                if one.timed and not _refused(one):
                    rows.append({
                        "variant": cell.cell["group"], "value": cell.cell["axis"]["value"], "cell": cell.cell["cell"],
                        "wing": one.wing, "unit": cell.cell["unit"], **_rates(cell, one),
                        "cache": cell.cell["ideal"]["cache"],
                    })  # fmt: skip
    return rows


def _along(found: Found, names: Sequence[str]) -> list[tuple[str, float, Cell, Contender]]:
    """(group, place on the axis, cell, contender) of all cells that lie on one of these axes, in order of the place."""
    out = []
    for cell in cells(found):
        axis = cell.cell["axis"]
        if axis is not None and axis["name"] in names and cell.cell["suite"] != "variants":
            parts = [cell.cell["task"].capitalize(), cell.cell["group"], cell.cell["dtype"]]
            parts += [f"batch {cell.cell['batch']}"] if axis["name"] != "batch" else []
            out += [(", ".join(parts), axis["value"], cell, one) for one in cell.contenders if not _refused(one)]
    return sorted(out, key=lambda entry: entry[1])


def _refused(one: Contender) -> bool:
    return one.one["refused"] is not None


def _with_two_places(rows: list[Row]) -> list[Row]:
    """Groups that lie on one place only are no line."""
    places: dict[tuple, set] = {}
    for row in rows:
        places.setdefault((row["group"], row["axis"]), set()).add(row["value"])
    return [row for row in rows if len(places[row["group"], row["axis"]]) > 1]


SERIES: dict[str, Callable[[Found], list[Row]]] = {
    "ratio_forest": forest,
    "roofline": roofline,
    "scaling": scaling,
    "variants": variants,
    "memory": memory,
    "breakeven": breakeven,
    "depth": depth,
}


def series(found: Found) -> dict[str, list[Row]]:
    """The rows of every plot that has any."""
    every = {name: rows(found) for name, rows in SERIES.items()}
    return {name: rows for name, rows in every.items() if rows}


def as_csv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def stamp(rows: list[Row], footer: str = "") -> str:
    """The sha256 of the rows as CSV and of the footer: what a drawing says it shows."""
    return hashlib.sha256((as_csv(rows) + footer).encode()).hexdigest()
