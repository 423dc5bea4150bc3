"""The harness's memory and seconds against what is seen of a whole process that nobody watches from inside."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness import contest, footprint
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.process import Rules
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.harness.summary import summarise
from benchmarks.harness.worker import environment
from benchmarks.suites.scope import wing
from common.config import preset
from common.cores import usable_cores

BATCH, LENGTH, STEPS = 32, 128, 12
REPEATS, LEAST, MOST = 3, 0.7, 1.4
PROGRAM = f"""
import sys, numpy as np
from common import backend, params
from common.config import Execution, TrainConfig, preset

config = preset("nano")
model = backend.load(sys.argv[1]).build(config, params.initialise(config, 0), Execution())
model.start_training(TrainConfig(schedule="constant"))
ids = np.random.default_rng(0).integers(0, 256, ({BATCH}, {LENGTH + 1}), dtype=np.int32)
for _ in range(int(sys.argv[2])):
    model.train_step(ids[:, :-1], ids[:, 1:])
print("trained", flush=True)
sys.stdin.read()
"""


def high_water(wing_name):
    """Peak resident bytes of a process that trains, read by its parent while it still lives."""
    command = [sys.executable, "-c", PROGRAM, wing_name, "4"]
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


def wall(wing_name):
    """Seconds of a process that trains, from its start to its end, with the cores and the environment of a worker."""
    command = [sys.executable, "-c", PROGRAM, wing_name, str(STEPS)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    usable = usable_cores()
    os.sched_setaffinity(0, usable[:1])  # a process has those of its parent
    try:
        begun = time.perf_counter()
        subprocess.run(command, cwd=Path(__file__).parents[2], env=environment(1, "cpu"), check=True, **quiet)
        return time.perf_counter() - begun
    finally:
        os.sched_setaffinity(0, usable)


def reported(wing_name, folder):
    """What the harness says of the same: import, build, the first step, and the others at their median."""
    cell = Cell("train", "train", "nano", preset("nano"), BATCH, LENGTH, "float32", (wing(wing_name),))
    record = Record(folder)
    record.add("run", schema=1, device={"kind": "cpu"}, load=None)
    rules = Rules(1, seconds=2.0, least=3, quick=True, all_memory=False)
    contest.run([cell], rules, record, lambda what, share: None, processes=1)
    ((found,),) = (one["contenders"] for one in summarise(record.lines)["cells"])
    assert found["refused"] is None
    beginning = sum(found["phases"][what] for what in ("import", "build", "first"))
    return beginning + (STEPS - 1) * found["seconds"]["median"]


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="runs on one core, as Linux lets a process choose")
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_what_a_training_run_takes_is_the_sum_of_what_is_reported(name, tmp_path):
    """Both in turns, for machines have better and worse minutes. The process also starts Python, makes the weights and
    ends; what was reported far too small would be missing in every turn, and so would a phase that is most of it."""
    ratios = []
    for number in range(REPEATS):
        outside = wall(name)
        ratios.append(outside / reported(name, tmp_path / str(number)))
    assert LEAST < statistics.median(ratios) < MOST
