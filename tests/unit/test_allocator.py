"""Memory that stays with the process: an environment of glibc, asked for by name and refused where it is not."""

import os
import subprocess
import sys

import pytest

from common import allocator, backend, params
from common.config import Execution, SamplingConfig, preset
from common.errors import UserError

GLIBC = allocator.platform.libc_ver()[0] == "glibc"
pytestmark = pytest.mark.skipif(not GLIBC, reason="these are settings of glibc, which this system does not have")
COUNT = """
import resource
import numpy as np
def step():
    for block in [np.ones(1 << 20) for _ in range(16)]:
        block.sum()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(env):
    return int(subprocess.run([sys.executable, "-c", COUNT], env=env, capture_output=True, check=True).stdout)


def test_a_process_that_keeps_its_memory_takes_no_new_pages():
    plain = {name: value for name, value in os.environ.items() if name != allocator.VARIABLE}
    assert faults({**plain, **allocator.environment(plain)}) < 100
    assert faults(plain) > 200  # 8 times 16 blocks of 8 MiB: in pages of 4 KiB or of 2 MiB, whatever the system gives


def test_other_settings_stay():
    (value,) = allocator.environment(
        {allocator.VARIABLE: "glibc.malloc.tcache_count=3:glibc.malloc.hugetlb=2"}
    ).values()
    parts = value.split(":")
    assert "glibc.malloc.tcache_count=3" in parts
    assert "glibc.malloc.hugetlb=1" in parts
    assert len(parts) == len(allocator.KEPT) + 1


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_an_allocator_that_is_not_there_is_refused_and_said_how_to_get(wing, monkeypatch):
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    config = preset("nano")
    with pytest.raises(UserError, match=r"set GLIBC_TUNABLES=glibc.malloc.hugetlb=1:.* in the environment"):
        backend.load(wing).build(config, params.initialise(config, 0), Execution(allocator="kept"))
    monkeypatch.setenv(allocator.VARIABLE, next(iter(allocator.environment({}).values())))
    model = backend.load(wing).build(config, params.initialise(config, 0), Execution(allocator="kept"))
    assert len(model.generate([[1, 2]], SamplingConfig(max_new_tokens=2))[0]) == 2


def test_without_glibc_it_is_refused(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(UserError, match="a setting of glibc"):
        allocator.environment({})


def test_a_command_begins_again_with_the_allocator_it_asks_for(tmp_path):
    """`parallax train --mode kept` prints what it did once, by a process that was started with the settings."""
    env = {name: value for name, value in os.environ.items() if name != allocator.VARIABLE}
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 400)
    words = f"train --backend torch --mode kept --steps 2 --batch-size 2 --data {text} --out {tmp_path / 'run'}".split()
    done = subprocess.run(
        [sys.executable, "-m", "common.cli", *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run").is_dir()
