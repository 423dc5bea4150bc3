"""The machine's yardsticks are measured on the device that is asked for, and in the formats that it multiplies in."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.harness import peaks

PLACED = """
import re
import jax
from benchmarks.harness import peaks

known, jit = jax.devices, jax.jit
jax.devices = lambda kind=None: known("cpu")

def told(function):
    def run(*arrays):
        text = jit(function).lower(*arrays).as_text()
        precisions.update(re.findall(r"precision = \\[(\\w+)", text))
        return jit(function)(*arrays)
    return run

jax.jit = told
for what, dtype, size, work, run in peaks.TASKS["jax"]("cuda:1", (8, 16), 1 << 16):
    precisions = set()
    (device,) = run().devices()
    print(what, dtype, device.id, *precisions)
"""


def test_jaxs_yardsticks_are_measured_on_the_device_that_was_asked_for():
    """Two devices are played by the CPU. Products of TF32 are compiled as such, all others as exact as they can be."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PLACED], cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[2] for line in lines} == {"1"}
    short = {"tf32": "HIGH"}
    products = [["gemm", kind, "1", short.get(kind, "HIGHEST")] for kind in ("float32", "tf32", "bfloat16")]
    assert lines[:6] == [line for line in products for _ in range(2)]
    assert [line[0] for line in lines[6:]] == ["read", "read", "copy"]


def test_pytorchs_products_are_cut_short_for_tf32_alone(monkeypatch):
    """A CPU plays the device, whose switch is there too."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    found = []
    monkeypatch.setitem(peaks.FORMATS, "cpu", peaks.FORMATS["cuda"])
    for what, dtype, _, _, run in peaks.TASKS["torch"]("cpu", (8, 16), 1 << 16):
        run()
        found.append((what, dtype, switch.fp32_precision == "tf32"))
    kinds = ("float32", "tf32", "bfloat16")
    assert found[:6] == [("gemm", kind, kind == "tf32") for kind in kinds for _ in range(2)]
    assert not any(short for _, _, short in found[6:])
    assert switch.fp32_precision == before


def test_a_cpu_has_no_tf32(monkeypatch):
    for sizes, small in ((peaks.SIZES, (16,)), (peaks.BYTES, 1 << 16)):
        monkeypatch.setitem(sizes, "cpu", small)
    monkeypatch.setattr(peaks, "PATIENCE", 1e-9)
    found = peaks.measure("torch", "cpu", quick=True)
    assert {one["dtype"] for one in found if one["what"] == "gemm"} == {"float32", "bfloat16"}
