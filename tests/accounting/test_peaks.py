"""Peaks of known devices only, and shares of them that are possible only."""

import pytest

from common.accounting import flops, memory, peaks
from common.config import GPTConfig

H100 = "NVIDIA H100 80GB HBM3"
CONFIG = GPTConfig(50257, 1024, 768, 12, 12)


def test_the_data_sheets():
    """Dense figures: with sparsity they are double, the usual error."""
    ampere, hopper = (312e12, 156e12, 19.5e12), (989e12, 495e12, 67e12)
    sheet = {
        "NVIDIA A10": (125e12, 62.5e12, 31.2e12, 600e9),
        "NVIDIA A100-PCIE-40GB": (*ampere, 1555e9),
        "NVIDIA A100-SXM4-40GB": (*ampere, 1555e9),
        "NVIDIA A100 80GB PCIe": (*ampere, 1935e9),
        "NVIDIA A100-SXM4-80GB": (*ampere, 2039e9),
        "NVIDIA L4": (121e12, 60e12, 30.3e12, 300e9),
        "NVIDIA L40S": (362e12, 183e12, 91.6e12, 864e9),
        H100: (*hopper, 3350e9),
        "NVIDIA H200": (*hopper, 4800e9),
        "NVIDIA GeForce RTX 3090": (71e12, 35.6e12, 35.6e12, 936e9),
        "NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12, 82.6e12, 1008e9),
    }
    for size in (16, 32):  # it has no products of bfloat16 or TF32
        sheet[f"Tesla V100-PCIE-{size}GB"] = (None, None, 14e12, 900e9)
        sheet[f"Tesla V100-SXM2-{size}GB"] = (None, None, 15.7e12, 900e9)
    assert set(peaks.PEAKS) == set(sheet)
    for name, figures in sheet.items():
        found = peaks.peak(name)
        known = [found.flops.get(kind) for kind in ("bfloat16", "tf32", "float32")]
        assert [*known, found.bandwidth] == [None if one is None else pytest.approx(one, rel=1e-12) for one in figures]


@pytest.mark.parametrize("device", ["", "cpu", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", f"{H100} MIG 1g.10gb", "H100"])
def test_an_unknown_device_has_no_peak(device):
    assert peaks.peak(device) is None
    assert peaks.mfu(10**12, 1.0, device, "bfloat16") is None
    assert peaks.mbu(10**9, 1.0, device) is None


def test_shares():
    assert peaks.mfu(989 * 10**12, 2.0, H100, "bfloat16") == 0.5
    assert peaks.mfu(67 * 10**12, 1.0, H100, "float32") == 1.0
    assert peaks.mfu(1, 1.0, H100, "float64") is None  # no peak of that format is known here
    assert peaks.mfu(1, 1.0, "Tesla V100-SXM2-32GB", "bfloat16") is None  # it has no such products
    assert peaks.mbu(335 * 10**10, 4.0, H100) == 0.25
    step = flops.flops_full(CONFIG, "train", 8, 1024)
    assert peaks.mfu(step, 0.02, H100, "bfloat16") == step / 0.02 / 989e12
    moved = sum(memory.decode_bytes(CONFIG, 1, 1024).values())
    assert peaks.mbu(moved, 1e-3, H100) == moved / 1e-3 / 3350e9


def test_what_cannot_be_is_not_shown():
    """Faster than the peak means a wrong peak, a wrong count or a clock that stopped early; nothing takes no time."""
    with pytest.raises(ValueError, match=r"2e\+15 are 2\.02 times the peak of 9\.89e\+14 FLOP/s of NVIDIA H100"):
        peaks.mfu(2 * 10**15, 1.0, H100, "bfloat16")
    with pytest.raises(ValueError, match=r"bytes/s of NVIDIA H100.*the clock stopped before the work was done"):
        peaks.mbu(4 * 10**12, 1.0, H100)
    with pytest.raises(ValueError, match="0 are 0 times the peak"):
        peaks.mfu(0, 1.0, H100, "bfloat16")
    with pytest.raises(ValueError, match="measured"):
        peaks.share(1.1e11, 1e11, "FLOP/s measured")
