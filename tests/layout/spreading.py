"""What tests of spread runs share: a small model, processes that follow one, and what they are told and tell."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from common import run as runs
from common.config import GPTConfig, TrainConfig, model_to_dict

FOLLOW = Path(__file__).with_name("follow.py")
ROOT = Path(__file__).parents[2]
CONFIG = model_to_dict(GPTConfig(32, 16, 16, 2, 4, ff_dim=24))  # every axis can be dealt out to eight, or to four
DROPPING = {"dropout_embed": 0.1, "dropout_attn": 0.1, "dropout_shortcut": 0.1}
LORA = {"adapters": [{"targets": ["*.q_proj", "*.down_proj"], "rank": 4, "alpha": 6.0, "dropout": 0.2}], **DROPPING}
FIRST = {"targets": ["*"], "rank": 4, "dora": True, "dropout": 0.2}
NF4 = {"base": "nf4"}
EXACT, SINGLE = 1e-12, 2e-5  # of the largest number of a tensor
ENGINE = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def free_port():
    """A port behind which the next one is free too, as far as one can know."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(**more):
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    found.pop("XLA_FLAGS", None)
    return found | {name: value for name, value in more.items() if name == "XLA_FLAGS"}


def follow(backend, layout, processes=1, *, model=None, execution=None, train=None, dtype="float64", preference=None):
    """Run it; what the first process says."""
    settings = {"steps": 5, "batch_size": 4, "accumulate": 2, "warmup_steps": 1, "learning_rate": 0.01, **(train or {})}
    asked = {
        "backend": backend,
        "config": {**CONFIG, **(model or {})},
        "train": TrainConfig(**settings).to_dict(),
        "execution": {"dtype": dtype, "layout": layout, **(execution or {})},
        "steps": 3,
        "length": 12,
        "preference": preference,
    }
    sizes = [int(part.split("=")[1]) for part in layout.split(",")]
    devices = 1
    for size in sizes:
        devices *= size
    own = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if backend == "jax":
        own["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices // processes}"
    running = [
        subprocess.Popen(
            [sys.executable, str(FOLLOW), json.dumps(asked)],
            env=environment(**own, RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        told = [one.communicate(timeout=300) for one in running]
    finally:
        for one in running:
            one.kill()
    assert [one.returncode for one in running] == [0] * processes, told[0][1][-3000:]
    (line,) = (line for out, _ in told for line in out.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def check(found, limit=EXACT, filled=1.0, least=0.95):
    assert set(found["errors"]) == {"told", "held", "weight", "slot", "grad"}
    assert max(found["errors"].values()) < limit, found["errors"]
    # bytes by the closed form; FSDP also cuts biases that tensor parallelism has cut before
    assert found["due"] * least < found["held"] <= found["due"] * filled


def by_two(*words):
    """Run `parallax …` in two processes, by torchrun."""
    _by(ENGINE, words)


def by_one(*words):
    """Run `parallax …` in a process of its own: of JAX's devices it has as many as the layout wants."""
    _by([sys.executable], words)


def _by(engine, words):
    command = [*engine, "-m", "common.cli", *map(str, words)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def losing_a_worker(*words, out):
    """Run `parallax …` in two processes, of which one is killed after the first steps; what they say on the way."""
    command = [*ENGINE, "--max-restarts", "2", "-m", "common.cli", *map(str, words), "--out", str(out)]
    with tempfile.TemporaryFile("w+") as told:
        running = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 200
            while running.poll() is None and time.monotonic() < end:
                if (out / runs.CHECKPOINT).is_dir() and len(log_of(out)) >= 4:
                    break
                time.sleep(0.05)
            workers = [
                one for one in psutil.Process(running.pid).children(recursive=True) if "common.cli" in one.cmdline()
            ]
            assert len(workers) == 2
            os.kill(workers[-1].pid, signal.SIGKILL)
            code = running.wait(timeout=240)
        finally:
            running.kill()
        told.seek(0)
        said = told.read()
    assert code == 0, said[-3000:]
    return said


def log_of(folder):
    return list(runs.read_log(folder / runs.LOG))
