"""Shared by every test: where the real data lies, and devices and threads that make runs comparable."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # models this small only lose by sharing their work
    os.environ.setdefault(name, "1")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background of a script; tests interrupt themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent
pytest_plugins = ("reports.perf.plugin",)


def _data() -> Path:
    return Path(os.environ.get("PARALLAX_DATA", ROOT.parent / "shared" / "data"))


# cases that JAX compiles anew for little: gpt_dpo, gpt_lora and gpt_classifier stand for them, and PyTorch does all
SIBLINGS = ("gpt_cdpo", "gpt_ipo", "gpt_hinge", "gpt_simpo", "gpt_orpo", "gpt_dora", "gpt_classifier_mean")


def pytest_itemcollected(item):
    """Which parameters of a test are for the longer checks only: they compile long, and have siblings that do not."""
    own = item.callspec.id if hasattr(item, "callspec") else ""
    if "jax" in own and any(name in own for name in SIBLINGS):
        item.add_marker("full")
    for marker in item.iter_markers("full_for") if hasattr(item, "callspec") else ():
        if any(text in item.callspec.id for text in marker.args):
            item.add_marker("full")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(request):
    """Compiled JAX programs are kept between files, processes and runs (unless pytest has no cache); those of other
    processes compile anew."""
    import jax

    if not hasattr(request.config, "cache"):
        return
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def call(capsys):
    """Run `parallax …` in this process: (exit code, stdout, stderr)."""
    from common.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return (stopped.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real texts, vocabularies and checkpoints; tests that need them skip where they are absent."""
    path = _data()
    if not path.is_dir():
        pytest.skip(f"needs the data folder {path.name!r} (set PARALLAX_DATA)")
    return path
