"""How PyTorch multiplies a single row: by its library where all threads read the weights there, else by a reduction."""

import platform
from pathlib import Path

import pytest
import torch

from common import cores
from common.config import SamplingConfig
from torch_impl import generate, layers


@pytest.fixture(autouse=True)
def fresh():
    """The processor is asked anew in every test, and afterwards."""
    cores.vendor.cache_clear()
    yield
    cores.vendor.cache_clear()


@pytest.mark.parametrize(("told", "due"), [
    ("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 207\n", "GenuineIntel"),
    ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "AuthenticAMD"),
    ("processor\t: 0\nFeatures\t: asimd\n", ""),
])  # fmt: skip
def test_who_made_the_processor(told, due, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, **_: told)
    assert cores.vendor() == due


def test_other_systems_tell_it_elsewhere_or_not_at_all(monkeypatch):
    def fails(self, **_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fails)
    for told, due in (
        ("Intel64 Family 6 Model 207 Stepping 2, GenuineIntel", "GenuineIntel"),
        ("arm", "arm"),
        ("", ""),
    ):
        monkeypatch.setattr(platform, "processor", lambda told=told: told)
        cores.vendor.cache_clear()
        assert cores.vendor() == due


@pytest.mark.parametrize(("maker", "kind", "device", "due"), [
    ("GenuineIntel", torch.float32, "cpu", True),
    ("AuthenticAMD", torch.float32, "cpu", False),
    ("GenuineIntel", torch.bfloat16, "cpu", False),
    ("GenuineIntel", torch.float64, "cpu", False),
    ("GenuineIntel", torch.float32, "cuda:0", False),
])  # fmt: skip
def test_where_the_library_reads_with_all_threads(maker, kind, device, due, monkeypatch):
    monkeypatch.setattr(layers, "vendor", lambda: maker)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert layers.library_streams(kind, device) is due
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not layers.library_streams(kind, device)


@pytest.mark.parametrize("library", [True, False])
def test_either_way_gives_the_tokens_of_plain_products(small, fresh_model, monkeypatch, library):
    asked = []
    monkeypatch.setattr(generate, "library_streams", lambda *_: library)
    product = generate.streamed_product
    monkeypatch.setattr(generate, "streamed_product", lambda *a, **k: asked.append(1) or product(*a, **k))
    plain = fresh_model("torch", small, "float32")
    streamed = fresh_model("torch", small, "float32", decode="streamed", compile=False)
    assert streamed.generate([[3, 1, 4]], SamplingConfig(9)) == plain.generate([[3, 1, 4]], SamplingConfig(9))
    assert bool(asked) is not library
