"""The meter of runs: tokens per second, and the share of what a device can do."""

import pytest

from common import meter, params
from common.accounting import flops
from common.adapters import Adapter
from common.config import Execution, GPTConfig, TrainConfig

BYTES = GPTConfig(256, 32, 16, 2, 2, ff_dim=32)


def test_the_meter_leaves_out_the_first_step_and_never_shows_more_than_all():
    speed = meter.of_run(BYTES, TrainConfig(batch_size=2, accumulate=3), 32, Execution(), None)
    assert speed.tokens == 192
    speed.add(100.0)
    assert (str(speed), speed.tokens_per_second, speed.mfu) == ("", None, None)
    speed.most = speed.work / 0.25
    speed.add(0.5)
    assert speed.tokens_per_second == 384
    assert speed.mfu == pytest.approx(0.5)
    assert str(speed) == "  384 tokens/s  MFU 50%"
    speed.most = speed.work * 1.0
    assert speed.mfu is None
    assert meter.most(Execution(dtype="bfloat16"), None) is None
    assert meter.most(Execution(device="cuda"), "an unknown device") is None
    assert meter.most(Execution(device="cuda"), "NVIDIA H100 80GB HBM3") == 67e12


def test_the_peak_is_that_of_the_format_that_is_multiplied_in():
    """TF32's numbers are stored as float32, and have another peak; wide products have that of float32."""
    h100 = "NVIDIA H100 80GB HBM3"
    for settings, peak in (
        ({"products": "tf32"}, 495e12),
        ({"products": "wide"}, 67e12),
        ({"dtype": "bfloat16"}, 989e12),
        ({"dtype": "bfloat16", "products": "wide"}, 67e12),
        ({"dtype": "float64", "products": "wide"}, None),
        ({"products": "tf32", "layout": "data=2"}, 990e12),
    ):
        assert meter.most(Execution(device="cuda", **settings), h100) == peak
    assert meter.most(Execution(device="cuda"), "Tesla V100-SXM2-16GB") == 15.7e12
    for short in ({"products": "tf32"}, {"dtype": "bfloat16"}):  # it has no such products
        assert meter.most(Execution(device="cuda", **short), "Tesla V100-SXM2-16GB") is None
    assert meter.most(Execution(dtype="bfloat16", products="wide"), None) > 1e9


def test_processes_on_a_cpu_have_cores_of_their_own_and_simulated_devices_have_not(monkeypatch):
    monkeypatch.setattr(meter, "reached", lambda kind: ({"float32": 2e9, "float64": 1e9}[kind], 1.02))
    monkeypatch.setattr(meter, "usable_cores", lambda: list(range(8)))
    assert meter.most(Execution(), None) == 2e9
    assert meter.most(Execution(layout="data=2,shard=4"), None) == 2e9  # JAX's, in this process
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert meter.most(Execution(layout="shard=2"), None) == 4e9
    assert meter.most(Execution(layout="shard=2", dtype="float64"), None) == 2e9
    assert meter.most(Execution(layout="data=2,shard=2"), None) == 4e9  # two devices in each
    assert meter.most(Execution(layout="data=2", device="cuda"), "NVIDIA H100 80GB HBM3") == 134e12
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert meter.most(Execution(layout="shard=16"), None) == pytest.approx(16e9 / 1.02)  # they share the 8 there are
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert meter.most(Execution(layout="shard=16"), None) == 32e9  # on four machines


@pytest.mark.parametrize(
    ("taken", "cores", "processes", "here", "times"),
    [
        (1.0, 2, 1, 1, 1),
        (2.0, 2, 1, 1, 1),
        (2.1, 2, 1, 1, 1),
        (1.0, 2, 2, 2, 2),
        (2.0, 2, 2, 2, 1),  # what one reached while the other waited is all there is
        (0.5, 2, 2, 2, 2),
        (4.0, 4, 2, 1, 2),  # a machine for each
        (3.0, 4, 2, 2, 4 / 3),
    ],
)
def test_what_one_process_reaches_is_what_all_reach_as_far_as_there_are_cores(taken, cores, processes, here, times):
    assert meter.together(taken, cores, processes, here) == pytest.approx(times)


def test_the_meter_counts_what_a_run_multiplies():
    """Of a run that trains a part: what is frozen has no gradient, so the same speed is less of what the device can."""
    adapted = BYTES.with_(adapters=Adapter(rank=2))
    plan, how = TrainConfig(batch_size=2, accumulate=3), (32, Execution(), None)
    for config, train in ((adapted, plan), (BYTES, plan.with_(trained=("model.layers.1.*",)))):
        part, full = (meter.of_run(config, one, *how).work for one in (train, plan.with_(trained=("*",))))
        assert part == sum(flops.training(config, 6, 32, trained=params.trained(config, train)).values())
        assert part < 0.85 * full
