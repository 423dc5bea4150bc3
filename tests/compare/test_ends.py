"""How the main job ends when it does not end well: interruption, a parent that vanishes, disagreement, bad text."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from benchmarks.harness import timing
from benchmarks.harness.worker import Worker, WorkerFault
from common import cli
from common.config import GPTConfig, SamplingConfig
from common.errors import UserError
from reports.compare import generation, job, plan
from reports.compare.settings import Settings

TINY = GPTConfig(256, 32, 16, 1, 2)


def gone(pid, seconds=10.0):
    """Whether a process ends within that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_control_c_ends_with_130_and_leaves_nothing(tmp_path):
    words = [sys.executable, "-m", "common.cli", "compare", "--quick", "--out", str(tmp_path / "out")]
    run = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    assert "Starting both wings" in run.stderr.readline()
    workers = [child.pid for child in psutil.Process(run.pid).children(recursive=True)]
    assert len(workers) >= 2
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in said
    assert list((tmp_path / "out").iterdir()) == []
    assert all(gone(pid) for pid in workers)


def test_a_worker_does_not_outlive_its_parent():
    script = (
        "import os; from benchmarks.harness.worker import Worker; worker = Worker('numpy', threads=1);"
        "worker.ask('start'); print(worker.process.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert gone(int(done.stdout))


def test_a_fault_of_ours_arrives_with_its_traceback():
    with Worker("numpy", threads=1) as worker:
        worker.ask("start")
        with pytest.raises(WorkerFault, match="KeyError: 'nobody'"):
            worker.ask("loss", "nobody", [(None, None)])
        assert worker.ask("free", "nobody") is None  # and it still serves


def test_a_failed_job_exits_with_1(tmp_path, monkeypatch, capsys):
    def failed(settings, progress):
        return {"passed": {"all": False}}

    monkeypatch.setattr("reports.compare.result.produce", failed)
    monkeypatch.setattr("reports.compare.result.show", lambda found: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "--quick", "--out", str(tmp_path)])
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"a\0b", "is binary"), (b"\xff\xfe ", "not UTF-8"), (b"short", "5 tokens")],
)
def test_a_text_that_will_not_do_is_refused(tmp_path, content, words):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        plan.make(Settings(model=TINY, data=str(path)))


def test_a_short_text_trains_without_a_held_out_part(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("To see one thing from two places. " * 4)
    made = plan.make(Settings(model=TINY, data=str(path), length=16, batch_size=2, steps=3))
    assert made.held_out == []
    assert any(row["what"] == "held-out loss" for row in made.skipped)


def test_the_command_can_be_given_again():
    told = Settings(preset="gpt2-124m", batch_size=2, compile=True, prompt="Two words").command()
    assert told == "parallax compare --preset gpt2-124m --prompt 'Two words' --batch-size 2 --compile"


def test_large_models_have_tensors_of_all_parts_checked():
    names = [f"layers.{i}.{part}" for i in range(12) for part in ("norm", "q", "k", "v", "up", "down")]
    picked = plan._some_of_every_kind(["embed", *names, "last"], 8)
    assert {name.split(".")[-1] for name in picked} == {"embed", "norm", "q", "k", "v", "up", "down", "last"}


def test_too_few_blocks_give_no_verdict():
    arms = {"torch": lambda copy: 0.002, "jax": lambda copy: 0.001}
    few, many = timing.Contest(arms, seed=0), timing.Contest(arms, seed=0)
    few.block()
    for _ in range(timing.ENOUGH):
        many.block()
    assert timing.compare(few.blocks, "torch", "jax")["faster"] is None
    assert timing.compare(many.blocks, "torch", "jax")["faster"] == "jax"
    assert timing.compare(many.blocks, "torch", "jax")["ratio"] == pytest.approx(2)


def test_a_margin_beyond_rounding_is_no_tie():
    logits, greedy = np.array([1.0, 3.0, 3.0 + 1e-7, 0.0]), SamplingConfig()
    margin, allowed = generation._margin(logits, [1, 2], greedy, position=5, error=1e-6)
    assert margin <= allowed
    margin, allowed = generation._margin(logits, [0, 2], greedy, position=5, error=1e-6)
    assert margin > allowed
    drawn = SamplingConfig(temperature=0.5, top_k=2)
    margin, allowed = generation._margin(logits, [2, 3], drawn, position=5, error=1e-6)  # 3 is outside the top two
    assert margin > allowed


def test_numbers_that_are_not_finite_become_none():
    assert job.plain({"a": [float("nan"), (1.5, float("inf"))]}) == {"a": [None, [1.5, None]]}
