"""Loading is memory-lean: a wing's process never holds two copies of the weights beyond its own."""

import subprocess
import sys

import pytest

from common import params
from common.config import GPTConfig
from common.weights.huggingface import write_hf

CONFIG = GPTConfig(50257, 64, 768, 6, 12)

PROGRAM = """
import sys
from common import backend as door
from common.config import Execution
from common.weights import formats

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

wing, folder = sys.argv[1:]
backend = door.load(wing)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
found = formats.load(folder)
model = backend.build(found.config, found.weights, Execution())
print(status("VmHWM") - before)
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory as Linux tells it")
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_peak_while_loading(tmp_path, wing):
    """Peak growth of a fresh process that loads a 300 MB model: its own copy, and the largest tensor twice."""
    write_hf(tmp_path / "model", CONFIG, params.initialise(CONFIG, 0))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, wing, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    size = 4 * params.count(CONFIG)
    largest = 4 * max(parameter.size for parameter in params.table(CONFIG).values())
    peak = int(done.stdout)
    print(f"{wing}: peak {peak / 1e6:.0f} MB for {size / 1e6:.0f} MB of weights")
    assert size < peak < size + 2 * largest + 64e6
