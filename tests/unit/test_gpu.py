"""What JAX is told when a process starts for a GPU, and that a caller's own word stays."""

import subprocess
import sys

import pytest

from benchmarks.harness.worker import environment
from common import gpu

OFF = "--xla_gpu_enable_triton_gemm=false"


def test_a_gpu_keeps_its_memory_and_multiplies_by_cublas():
    assert gpu.environment({}, "cuda:1") == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": OFF}
    assert gpu.environment({}, "cpu") == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    assert gpu.environment({"XLA_FLAGS": "--xla_dump_to=x"}, "cuda")["XLA_FLAGS"] == f"--xla_dump_to=x {OFF}"


@pytest.mark.parametrize("said", [OFF, "--xla_gpu_enable_triton_gemm=true"])
def test_what_is_said_stays(said):
    own = {"XLA_FLAGS": said, "XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
    assert gpu.environment(own, "cuda") == {}


def test_processes_that_are_timed_on_a_gpu_get_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert environment(2, "cuda")["XLA_FLAGS"] == OFF
    assert "XLA_FLAGS" not in environment(2, "cpu")


def test_xla_knows_the_flag():
    """It ends a process whose flags it does not know."""
    code = "import jax; jax.numpy.ones(2).block_until_ready()"
    for flag, knows in ((OFF, True), ("--xla_gpu_enable_no_such_thing=false", False)):
        env = {**environment(1, "cpu"), "XLA_FLAGS": flag}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
        assert (done.returncode == 0) is knows, done.stderr
