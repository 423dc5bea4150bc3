"""What is in a peak of a device's memory is said beside it; the frameworks' accounts of a GPU are played."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks.harness import memory


@pytest.mark.parametrize(
    ("peaks", "words"),
    [((700, 700), "reached before the work"), ((700, 900), "the work raised"), ((None, 900), "reached before")],
)
def test_what_is_in_jaxs_peak_is_said(peaks, words, monkeypatch):
    """It cannot be reset, and compiling is in it unless the work needs more."""
    left = iter(None if peak is None else {"peak_bytes_in_use": peak} for peak in peaks)
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: next(left))
    monkeypatch.setattr("jax.local_devices", lambda: [gpu])
    monkeypatch.setattr(memory, "sys", SimpleNamespace(modules={"jax": None}, platform=sys.platform))
    with memory.Peak() as peak:
        pass
    assert peak.found["device_bytes"] == peaks[1]
    assert words in peak.found["how"]
    assert "peak_bytes_in_use" in peak.found["how"]


def test_pytorchs_peak_is_reset_on_every_device(monkeypatch):
    told, high = [], {0: 0, 1: 5}
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        reset_peak_memory_stats=told.append,
        max_memory_allocated=high.get,
    )
    monkeypatch.setattr("torch.cuda", cuda)
    monkeypatch.setattr(memory, "sys", SimpleNamespace(modules={"torch": None}, platform=sys.platform))
    with memory.Peak() as peak:
        assert told == [0, 1]
    assert peak.found["device_bytes"] == 5
    assert peak.found["how"].endswith("max_memory_allocated, reset before the work")


def test_memory_without_a_device_is_told_as_before():
    with memory.Peak() as peak:
        pass
    assert peak.found["device_bytes"] is None
    assert "device" not in peak.found["how"]
