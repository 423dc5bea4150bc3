"""Evidence that can be checked again: a few random projections of what a wing computed, kept in the certificate.

A projection is the sum of all elements under random signs, divided by sqrt(n). The difference of two arrays'
projections is, in the mean square, the RMS of their difference: eight numbers tell the error of a tensor of any size.
So a reader who has the vectors and NumPy, and neither framework, sees whether the numbers were what the row says.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import rng

COUNT = 8
ROUNDING = 4e-15  # what the projections' own sums add, relative: a few float64 roundings of sums of up to 1e4 terms
LOW, HIGH = 30.0, 8.0  # 8 squared normals: the estimate is 30 times too low, or 8 times too high, once in 1e10 rows
KINDS = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I8": "i1"}


def project(array: Any) -> list[float]:
    """`COUNT` projections of an array, float64; the signs depend on the array's size alone."""
    flat = np.asarray(array, np.float64).ravel()
    signs = [1.0 - 2.0 * (rng.bits(rng.address(0, number), flat.shape) & np.uint32(1)) for number in range(COUNT)]
    return [float((flat * sign).sum() / np.sqrt(max(1, flat.size))) for sign in signs]


def source(what: str) -> str | None:
    """The tensor in the vectors' file that a row of C2 was judged by, or None if there is none."""
    if what == "output" or what.startswith("grad/"):
        return f"expected/{what}"
    return "expected/loss" if what == "loss/dropout" else None


def recheck(rows: Iterable[Mapping[str, Any]], folder: Path) -> list[str]:
    """Faults of all rows that carry evidence, each a sentence; rows whose vectors are not at hand are left out."""
    faults, files = [], {}
    for row in rows:
        if not row.get("evidence"):
            continue
        path = folder / f"{row['case']}.safetensors"
        if path not in files:
            files[path] = read(path) if path.exists() else {}
        want = files[path].get(source(row["what"]))
        if want is None:
            continue
        for name, numbers in row["evidence"].items():
            faults += _fault(row, name, numbers, want)
    return faults


def _fault(row: Mapping[str, Any], name: str, numbers: list[float], want: np.ndarray) -> list[str]:
    if name not in row["errors"] or len(numbers) != COUNT:
        return [f"{_place(row)}: the evidence of {name} is not {COUNT} numbers beside an error of {name}"]
    written = float(row["errors"][name])
    scale = float(np.sqrt(np.mean(np.square(want)))) or 1.0
    gaps = np.array([float(n) for n in numbers]) - np.array(project(want))
    seen = float(np.sqrt(np.mean(np.square(gaps)))) / scale
    if seen > HIGH * written + ROUNDING or written > LOW * seen + ROUNDING or not np.isfinite(seen + written):
        return [f"{_place(row)}: the error of {name} is written as {written!r}, its evidence shows about {seen:.2g}"]
    return []


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['claim']} {row['case']} {row['what']} {row['tier']}"


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, with NumPy alone."""
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    found = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = (start + at for at in entry["data_offsets"])
            found[name] = np.frombuffer(raw[first:last], KINDS[entry["dtype"]]).reshape(entry["shape"])
    return found
