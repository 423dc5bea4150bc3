"""The harness's memory and seconds against what is seen of a whole process that nobody watches from inside."""

import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.harness import contest, footprint
from benchmarks.harness.cells import TRAIN, Cell
from benchmarks.harness.process import Rules
from benchmarks.harness.recipe import Recipe
from benchmarks.harness.record import Record
from benchmarks.harness.summary import summarise
from benchmarks.harness.worker import environment
from benchmarks.suites.scope import transformers, wing
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


PROMPT, NEW, CALLS = 64, 16, 6
HAND = f"""
import sys, time, statistics, torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)
config = GPT2Config(vocab_size=256, n_positions=128, n_embd=128, n_layer=4, n_head=4)
net = GPT2LMHeadModel(config).eval()
ids = torch.randint(0, 256, ({BATCH}, {LENGTH}) if sys.argv[1] == "forward" else (1, {PROMPT}))

def call():
    if sys.argv[1] == "forward":
        net(ids, use_cache=False)
    else:
        net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens={NEW}, min_new_tokens={NEW},
                     do_sample=False, pad_token_id=0)

with torch.inference_mode():
    for _ in range(2):
        call()
    found = []
    for _ in range({CALLS}):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
print(statistics.median(found))
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


def on_one_core(work):
    """What `work` gives when it and its processes, which have those of their parent, have one core."""
    usable = usable_cores()
    os.sched_setaffinity(0, usable[:1])
    try:
        return work()
    finally:
        os.sched_setaffinity(0, usable)


def wall(wing_name):
    """Seconds of a process that trains, from its start to its end, with the cores and the environment of a worker."""
    command = [sys.executable, "-c", PROGRAM, wing_name, str(STEPS)]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "env": environment(1, "cpu"), "check": True}

    def work():
        begun = time.perf_counter()
        subprocess.run(command, cwd=Path(__file__).parents[2], **options)
        return time.perf_counter() - begun

    return on_one_core(work)


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


def by_hand(task):
    """Seconds of a call of `transformers`, as one times it who knows nothing of this project."""
    command = [sys.executable, "-c", HAND, task]
    options = {"capture_output": True, "text": True, "check": True, "env": environment(1, "cpu")}
    return float(on_one_core(lambda: subprocess.run(command, **options)).stdout)


def by_the_harness(task, folder):
    """The same calls as a cell of the benchmarks."""
    size = (BATCH, LENGTH) if task == "forward" else (1, PROMPT)
    cell = Cell(task, task, "nano", preset("nano"), *size, "float32", transformers(), 0 if task == "forward" else NEW)
    record = Record(folder)
    record.add("run", schema=1, device={"kind": "cpu"}, load=None)
    rules = Rules(1, seconds=1.0, least=3, quick=True, all_memory=False)
    on_one_core(lambda: contest.run([cell], rules, record, lambda what, share: None, processes=1))
    ((found,),) = (one["contenders"] for one in summarise(record.lines)["cells"])
    assert found["refused"] is None
    return found["seconds"]["median"]


@pytest.mark.full
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="runs on one core, as Linux lets a process choose")
@pytest.mark.parametrize("task", ["forward", "decode"])
def test_transformers_takes_as_long_as_when_it_is_timed_by_hand(task, tmp_path):
    """In turns. Of another model, length, number of tokens or cache it would be another time."""
    ratios = [by_hand(task) / by_the_harness(task, tmp_path / str(number)) for number in range(REPEATS)]
    assert LEAST < statistics.median(ratios) < MOST
