"""The harness's memory against what the system says of a whole process that nobody watches from inside."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import footprint
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.process import Rules
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.suites.scope import wing
from common.config import preset

BATCH, LENGTH = 32, 128
PROGRAM = f"""
import sys, numpy as np
from common import backend, params
from common.config import Execution, TrainConfig, preset

config = preset("nano")
model = backend.load(sys.argv[1]).build(config, params.initialise(config, 0), Execution())
model.start_training(TrainConfig(schedule="constant"))
ids = np.random.default_rng(0).integers(0, 256, ({BATCH}, {LENGTH + 1}), dtype=np.int32)
for _ in range(4):
    model.train_step(ids[:, :-1], ids[:, 1:])
print("trained", flush=True)
sys.stdin.read()
"""


def high_water(wing_name):
    """Peak resident bytes of a process that trains, read by its parent while it still lives."""
    command = [sys.executable, "-c", PROGRAM, wing_name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, **pipes) as running:
        assert running.stdout.readline() == "trained\n"
        status = Path(f"/proc/{running.pid}/status").read_text()
        running.stdin.close()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory as Linux tells it")
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_training_steps_memory_is_what_the_system_says(name, tmp_path):
    """Whose steps the process makes, peak included: within a tenth, for allocators keep what they like."""
    cell = Cell("train", "train", "nano", preset("nano"), BATCH, LENGTH, "float32", (wing(name),), memory=True)
    record = Record(tmp_path)
    footprint.measure(cell, {cell.config: Recipe("initial", cell.config)}, Rules(1), record, {name: str(tmp_path)})
    (found,) = (line for line in record.lines if line["kind"] == "memory")
    assert TRAIN.schedule == "constant"
    assert found["peak"] == pytest.approx(high_water(name), rel=0.1)
