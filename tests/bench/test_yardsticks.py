"""The machine's yardsticks are measured on the device that is asked for."""

import os
import subprocess
import sys
from pathlib import Path

PLACED = """
import jax
from benchmarks.harness import peaks

known = jax.devices
jax.devices = lambda kind=None: known("cpu")
for what, dtype, size, work, run in peaks.TASKS["jax"]("cuda:1", (8,), 1 << 16):
    (device,) = run().devices()
    print(what, dtype, device.id)
"""


def test_jaxs_yardsticks_are_measured_on_the_device_that_was_asked_for():
    """Two devices are played by the CPU."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PLACED], cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["gemm", "gemm", "read", "read", "copy"]
    assert {line[2] for line in lines} == {"1"}
