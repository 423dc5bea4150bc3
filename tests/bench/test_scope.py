"""Which precisions and modes the suites take follows from what the device can multiply."""

import pytest

from benchmarks.harness import machine
from benchmarks.suites import SUITES, Scope

CPUINFO = "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu {flags} sse\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {flags}\n"


@pytest.mark.parametrize("scope", [Scope(), Scope(quick=True), Scope(model="nano"), Scope("cuda", model="gpt2-355m")])
def test_no_two_cells_have_one_name(scope):
    named = [cell.name for suite in SUITES.values() for cell in suite(scope)]
    assert sorted(set(named)) == sorted(named)


@pytest.mark.parametrize(
    ("told", "flags", "device", "modes", "large"),
    [
        (CPUINFO, "avx2", "cpu", ("fast+wide",), ("float32",)),
        (CPUINFO, "avx2 avx512f avx512_bf16", "cpu", ("fast", "fast+wide"), ("float32", "bfloat16")),
        (ARM, "bf16", "cpu", ("fast", "fast+wide"), ("float32", "bfloat16")),
        (CPUINFO, "avx2", "cuda", ("fast",), ("float32", "bfloat16")),
        (None, "", "cpu", ("fast+wide",), ("float32",)),
    ],
)
def test_large_models_run_in_16_bits_where_the_device_multiplies_them(told, flags, device, modes, large, monkeypatch):
    monkeypatch.setattr(machine, "_read", lambda path: told and told.format(flags=flags))
    scope = Scope(device)
    assert (scope.narrow, scope.dtypes(scope.model)) == (modes, large)
    assert scope.dtypes(scope.small) == ("float32", "bfloat16")
    for suite in ("forward", "train", "decode"):
        narrow = [cell for cell in SUITES[suite](scope) if cell.dtype == "bfloat16"]
        assert narrow
        for cell in narrow:
            fast = [one.mode for one in cell.contenders if one.wing == "torch" and one.mode.startswith("fast")]
            assert [mode for mode in fast if mode not in scope.flash] == list(modes), cell.name


@pytest.mark.parametrize(("device", "asked"), [("cpu", []), ("cuda", ["torch", "jax"]), ("cuda:1", ["torch", "jax"])])
def test_a_gpus_own_attention_is_asked_for_in_16_bits(device, asked):
    """In forward passes and training, of both wings, by a contender of its own; elsewhere nobody has it."""
    for suite in ("forward", "train", "decode", "prefill", "loss"):
        for cell in SUITES[suite](Scope(device)):
            found = [one.wing for one in cell.contenders if one.options.get("attention") == "fused"]
            expected = asked if suite in ("forward", "train") and cell.dtype == "bfloat16" else []
            assert found == expected, cell.name
