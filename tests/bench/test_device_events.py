"""Milliseconds by a device's own events beside the host's clock, in samples and in records; CUDA is played."""

import json
import pickle
import sys
from types import SimpleNamespace

import pytest

from benchmarks.harness import compilation, contending, events, record, service
from benchmarks.harness.cells import Cell
from benchmarks.harness.process import Rules
from benchmarks.harness.record import Record
from benchmarks.harness.summary import summarise
from common.config import GPTConfig
from common.errors import UserError

CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)
CELL = Cell("forward", "forward", "tiny", CONFIG, 3, 8, "bfloat16", ())


class Device:
    """A GPU whose work takes virtual milliseconds, and `torch.cuda` as far as the harness calls it."""

    def __init__(self):
        self.now, self.told = 0.0, []
        self.cuda = SimpleNamespace(
            Event=lambda enable_timing: Event(self),
            current_stream=lambda device: f"stream of {device}",
            is_initialized=lambda: True,
            synchronize=lambda device: self.told.append(f"{device} waited for"),
        )

    def work(self):
        self.now += 4.0
        return {}


class Event:
    def __init__(self, device):
        self.device = device

    def record(self, stream):
        self.at = self.device.now
        self.device.told.append(stream)

    def synchronize(self):
        self.device.told.append("event waited for")

    def elapsed_time(self, other):
        return other.at - self.at


def worker(device, on="cuda:1"):
    made = service.Service("none")
    made.models["model"] = SimpleNamespace(execution=SimpleNamespace(device=on))
    made.timed["model", "task"], made.watch = device.work, compilation.Watch()
    return made


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(service, "SETTLED", 0.4)  # its work takes no real time: any pause of the host would look late
    monkeypatch.setitem(sys.modules, "torch", made)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    return made


def test_a_sample_has_the_devices_milliseconds_beside_the_hosts_seconds(device):
    """Of the timed calls alone, on the model's own device; the host waits for its work first, and then for events."""
    sample = worker(device).sample("model", "task", 3, 2, 0.0)
    assert sample.device_ms == pytest.approx(4.0)
    assert 0 < sample < 1
    waited = "cuda:1 waited for"
    assert device.told == [waited] * 2 + ["stream of cuda:1"] * 2 + [waited, "event waited for"]


@pytest.mark.parametrize(("on", "there"), [("cpu", True), ("cuda", False)])
def test_without_events_there_is_host_time_alone(device, on, there, monkeypatch):
    """On a CPU, and where the worker has another framework."""
    if not there:
        monkeypatch.delitem(sys.modules, "torch")
    sample = worker(device, on).sample("model", "task", 3, 2, 0.0)
    assert sample.device_ms is None
    assert sample > 0


def test_events_do_not_hide_work_that_nobody_waited_for(device, monkeypatch):
    monkeypatch.setattr(service.waiting, "rest", lambda device, outputs=None: 0.5)
    with pytest.raises(UserError, match="not waited for is not timed"):
        worker(device).sample("model", "task", 3, 2, 0.0)


def test_a_sample_is_a_number_and_travels():
    sample = pickle.loads(pickle.dumps(events.Sample(0.25, 3.5), protocol=5))
    assert (sample, sample.device_ms, sample + 1) == (0.25, 3.5, 1.25)
    assert json.dumps([sample]) == "[0.25]"


def contested(folder, **arms):
    kept = Record(folder)
    kept.add("run", schema=1, device={"kind": "cuda"}, load=None)
    kept.add("cell", **CELL.line())
    for name in arms:
        about = {"title": name, "wing": name, "mode": "", "lower_bound": False, "settings": {}, "versions": {}}
        kept.add("contender", cell=CELL.name, name=name, **about)
    contending.contend(CELL, arms, dict.fromkeys(arms, 1), True, Rules(1, seconds=0.0, least=4), kept)
    kept.finish(None, None)
    return record.read(folder / record.RAW)


def test_a_record_has_the_devices_milliseconds_turn_by_turn(tmp_path):
    """Where anybody has some; what reads only seconds finds them as before."""
    plain = contested(tmp_path / "a", one=lambda copy: 0.004, other=lambda copy: 0.008)
    both = contested(tmp_path / "b", one=lambda copy: events.Sample(0.004, 3.5), other=lambda copy: 0.008)
    assert not any("device_ms" in line for line in plain)
    for line in record.of(both, "block"):
        assert line["device_ms"] == [3.5 if name == "one" else None for name, _, _ in line["turns"]]
    sums = [{**summarise(lines), "raw_sha256": "", "finished": ""} for lines in (plain, both)]
    told = [{one["name"]: one.pop("device_seconds") for one in found["cells"][0]["contenders"]} for found in sums]
    assert told == [{"one": None, "other": None}, {"one": pytest.approx(0.0035), "other": None}]
    for found in sums:  # what else the machine did meanwhile is another matter
        assert 0 <= found["cells"][0].pop("others") <= 1
    assert sums[0] == sums[1]
