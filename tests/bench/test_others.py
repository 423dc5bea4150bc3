"""Other work on the cores is seen, our own is not."""

import subprocess
import sys

import pytest

from benchmarks.harness import others

BUSY = "import time\nuntil = time.process_time() + 0.4\nwhile time.process_time() < until: pass"


@pytest.mark.parametrize(("busy", "own", "due"), [(3.0, 2.0, 0.25), (1.0, 1.0, 0.0), (1.0, 1.2, 0.0), (90.0, 0.0, 1.0)])
def test_the_share_is_of_the_cores_without_our_own(monkeypatch, busy, own, due):
    now = iter([(10.0, 100.0, 50.0), (12.0, 100.0 + busy, 50.0 + own), (13.0, 100.0 + busy, 50.0 + own)])
    monkeypatch.setattr(others.Others, "_now", lambda self: next(now))
    monkeypatch.setattr(others, "usable_cores", lambda: [0, 1])
    watch = others.Others()
    assert watch.share() == pytest.approx(due)
    assert watch.share() == 0.0  # since the last call


def test_processes_that_we_start_are_ours_also_when_they_have_ended():
    watch = others.Others()
    before, busy = watch._taken(), others._busy()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert watch._taken() - before > 0.35
    assert others._busy() - busy > 0.3
