"""Memory of a GPU is looked at before anything is built on it; what the driver says is played."""

from types import SimpleNamespace

import pytest

from benchmarks import job, room
from benchmarks.harness import machine
from benchmarks.suites import SUITES, Scope
from common import gpu
from common.errors import UserError

TWO = (
    {"name": "NVIDIA H200", "driver_version": "570.1", "memory.total": "143771 MiB", "memory.free": "143000 MiB"},
    {"name": "NVIDIA H200", "driver_version": "570.1", "memory.total": "143771 MiB", "memory.free": "900 MiB"},
)


def driver(*gpus):
    """`gpu.run` where nvidia-smi lists these."""

    def run(*command):
        if command[0] != "nvidia-smi":
            return None
        (query,) = (word.partition("=")[2] for word in command if word.startswith("--query-gpu="))
        return "\n".join(", ".join(one.get(field, "[N/A]") for field in query.split(",")) for one in gpus) or None

    return run


@pytest.mark.parametrize(
    ("gpus", "index", "free"),
    [(TWO, 0, 143000 << 20), (TWO, 1, 900 << 20), (TWO, 2, None), ((), 0, None), (({"name": "MIG"},), 0, None)],
)
def test_free_memory_of_a_gpu_is_what_the_driver_says(gpus, index, free, monkeypatch):
    monkeypatch.setattr(gpu, "run", driver(*gpus))
    assert gpu.free_gpu_bytes(index) == free


def test_the_machine_tells_of_its_gpus_what_does_not_change(monkeypatch):
    monkeypatch.setattr(gpu, "run", driver(*TWO))
    first, second = gpu.gpus()
    assert first == second
    assert first["memory"] == "143771 MiB"
    assert list(first) == ["name", "driver", "memory", "power_limit", "mig"]


@pytest.mark.parametrize("word", ["event", "throttle", None])
def test_the_state_of_a_gpu_is_asked_for_by_either_name(monkeypatch, word):
    """A driver refuses a whole question in which one name is none of its own."""
    held = {f"clocks_{word}_reasons.active": "0x0000000000000044"}
    known = driver({"clocks.sm": "1980 MHz", "temperature.gpu": "34", **held})

    def run(*command):
        asked = [what for what in ("event", "throttle") if f"clocks_{what}_reasons" in " ".join(command)]
        return known(*command) if asked == [word] else None

    monkeypatch.setattr(gpu, "run", run)
    found = gpu.state()
    if word is None:
        assert found is None
        return
    (told,) = found
    assert told == {
        "clock": "1980 MHz",
        "memory_clock": "[N/A]",
        "temperature": "34",
        "power": "[N/A]",
        "held_back": "0x0000000000000044",
    }
    assert gpu.reasons(told["held_back"]) == ["power cap", "heat (hardware)"]
    assert gpu.reasons("[N/A]") == []


def prepared(folder, device):
    return job.prepare(job.Settings(suites=("forward",), device=device, quick=True, out=folder))


def test_too_little_memory_on_the_device_is_refused_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run", driver(*TWO))
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 40))
    assert prepared(tmp_path, "cuda").device["slug"] == "nvidia-h200"
    words = r"needs about \d+\.\d GB for its \d+ contenders at once, and 0\.9 GB are free on cuda:1"
    with pytest.raises(UserError, match=words):
        prepared(tmp_path, "cuda:1")


def test_a_driver_that_does_not_tell_refuses_nothing_and_the_host_still_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run", driver({"name": "NVIDIA H200"}))
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 40))
    assert prepared(tmp_path, "cuda").cells
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 28))
    with pytest.raises(UserError, match=r"and 0\.3 GB are free; choose"):
        prepared(tmp_path, "cuda")


@pytest.mark.parametrize(
    ("free", "limit", "words"),
    [(50, None, "50.0 GB are free;"), (50, 60, "50.0 GB are free;"), (200, 9, "9.0 GB are free in this container;")],
)
def test_a_judge_computes_on_the_host_so_no_gpu_limits_it(free, limit, words, monkeypatch):
    """The host's memory does, or that of its container, whichever is less."""
    there = {"": free * 10**9, " in this container": None if limit is None else limit * 10**9, " on cuda": 10**9}
    monkeypatch.setattr(room, "room", lambda device: there)
    monkeypatch.setattr(room, "need", lambda cell: 0)
    (cell, *_) = SUITES["forward"](Scope("cuda", quick=True))
    monkeypatch.setattr(room, "judges", lambda cell: 8 * 10**9)
    room.check_memory([[cell]], "cuda")
    monkeypatch.setattr(room, "judges", lambda cell: 123_400_000_000)
    with pytest.raises(UserError) as refused:
        room.check_memory([[cell]], "cuda")
    assert f"needs about 123.4 GB for its judge in float64, and {words} choose" in str(refused.value)


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        (None, ["a", "b", "c"]),
        ("2,0", ["c", "a"]),
        ("GPU-2,7,0", ["b"]),
        ("", []),
        ("-1", []),
        ("MIG-7", ["a", "b", "c"]),
    ],
)
def test_gpus_are_those_that_processes_see_in_their_order(shown, names):
    """By number or by the beginning of their UUID; the first that is none ends the list."""
    gpus = [{"index": str(number), "uuid": f"GPU-{number + 1}", "name": name} for number, name in enumerate("abc")]
    env = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert [one["name"] for one in gpu.visible(gpus, env)] == names


def test_secrets_among_the_variables_are_not_told():
    told = machine.environment({"NVIDIA_API_KEY": "x", "TORCH_TOKEN": "y", "CUDA_LAUNCH_BLOCKING": "1", "HOME": "z"})
    assert told == {"CUDA_LAUNCH_BLOCKING": "1"}
