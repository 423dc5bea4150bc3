"""The doctor: every disorder becomes a finding with advice, and nothing makes it raise."""

import os
import sys
from types import SimpleNamespace

import pytest

from common import doctor
from common.errors import UserError

PROJECT = """
[project]
dependencies = ["numpy>=2.0", "jax>=0.10.2", "flax>=0.12.8,<0.12.9; python_version < '3.12'",
                "flax>=0.12.10; python_version >= '3.12'", "ml_dtypes>=0.5"]
[project.optional-dependencies]
lint = ["ruff>=0.12"]
"""
FLAX = "0.12.8" if sys.version_info < (3, 12) else "0.12.12"
INSTALLED = {"numpy": "2.4.6", "jax": "0.10.2", "flax": FLAX, "ml-dtypes": "0.6.0"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine in order: its packages, backends and environment can be changed before `examine`."""
    root = tmp_path / "project"
    root.mkdir()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "constraints.txt").write_text("numpy==2.4.6\nml_dtypes==0.6.0  # a remark\n")
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PARALLAX_DATA", "PARALLAX_VOCAB", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    made = SimpleNamespace(
        root=root, installed=dict(INSTALLED), backends={"numpy": ["cpu"], "torch": ["cpu"], "jax": ["cpu"]}
    )

    def load(name):
        devices = made.backends[name]
        if isinstance(devices, Exception):
            raise devices
        return SimpleNamespace(name=name, versions=lambda: {name: "1.0"}, devices=lambda: devices)

    monkeypatch.setattr(doctor, "_version", lambda name: made.installed.get(name))
    monkeypatch.setattr(doctor.backend, "names", lambda: sorted(made.backends))
    monkeypatch.setattr(doctor.backend, "load", load)
    made.examine = lambda: {check.what: check for check in doctor.examine(root)}
    return made


def test_machine_in_order(machine):
    found = machine.examine()
    for what in ("Python", "numpy", "jax", "flax", "ml-dtypes", "jax and flax", "backend torch", "backend jax"):
        assert found[what].status == "ok", found[what]
    assert found["numpy"].found == "2.4.6"
    assert found["backend jax"].found == "cpu (jax 1.0)"
    assert found["cores and threads"].status == found["corpus pydoc"].status == found["HF_HUB_OFFLINE"].status == "ok"
    assert "accelerator" not in found
    assert "ruff" not in found  # optional and not there


def test_every_finding_that_is_not_ok_says_what_to_do(machine, monkeypatch):
    machine.installed.update({"jax": "0.11.2", "flax": "0.12.8", "numpy": "1.0"})
    machine.backends.update(torch=RuntimeError("no driver\ndetails"), jax=["cuda:0"], other=["cpu"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    found = machine.examine()
    assert {check.status for check in found.values()} == {"ok", "warn", "fail"}
    for check in found.values():
        assert bool(check.advice) == (check.status != "ok"), check
        assert "\n" not in check.found + check.advice


def test_wrong_python(machine, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert machine.examine()["Python"].status == "fail"


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [
        ("2.4.6+local", "ok", "2.4.6+local"),
        ("2.4.5", "warn", "2.4.5, tested is 2.4.6"),
        ("1.26.4", "fail", "1.26.4, older than 2.0"),
        (None, "fail", "not installed"),
    ],
)
def test_installed_versions(machine, version, status, words):
    machine.installed["numpy"] = version
    check = machine.examine()["numpy"]
    assert (check.status, check.found) == (status, words)


@pytest.mark.parametrize(
    ("jax", "flax", "status"),
    [
        ("0.10.2", "0.12.8", "ok"),
        ("0.11.2", "0.12.8", "fail"),
        ("0.11.2", "0.12.9", "fail"),
        ("0.11.0", "0.12.10", "ok"),
        ("0.11.2", "0.12.12", "ok"),
    ],
)
def test_pairs_of_jax_and_flax(machine, jax, flax, status):
    machine.installed.update(jax=jax, flax=flax)
    assert machine.examine()["jax and flax"].status == status


def test_pinned_versions_hold_for_a_python():
    text = '# remark\nA_b==1.0\nc==2.0; python_version < "3.12"\nc==3.0; python_version >= "3.12"\n'
    assert doctor.pinned_versions(text, (3, 11)) == {"a-b": "1.0", "c": "2.0"}
    assert doctor.pinned_versions(text, (3, 12)) == {"a-b": "1.0", "c": "3.0"}
    with pytest.raises(UserError, match=r"Line 2 of constraints\.txt is 'd>=1'"):
        doctor.pinned_versions("c==1\nd>=1\n")


@pytest.mark.parametrize("python", [(3, 11), (3, 12)])
def test_the_repositorys_pins_cover_every_direct_dependency(python):
    pins = doctor.pinned_versions((doctor.ROOT / "constraints.txt").read_text(), python)
    for name, (lowest, _) in doctor._requirements(doctor.ROOT).items():
        assert name in pins
        if name != "flax":  # its lowest version differs between Pythons
            assert doctor.release(pins[name]) >= doctor.release(lowest)
    assert doctor.release(pins["flax"]) >= ((0, 12, 8) if python < (3, 12) else (0, 12, 10))
    assert pins["jax"] == pins["jaxlib"]


def test_damaged_constraints(machine):
    (machine.root / "constraints.txt").write_text("numpy\n")
    found = machine.examine()
    assert found["constraints.txt"].status == "warn"
    assert found["numpy"].status == "ok"


def test_without_a_repository(machine):
    (machine.root / "pyproject.toml").unlink()
    assert machine.examine()["packages"].status == "warn"


def test_backend_that_fails_is_a_finding(machine):
    machine.backends["torch"] = UserError("Backend 'torch' is not usable: no module torch; install it.")
    check = machine.examine()["backend torch"]
    assert check.status == "fail"
    assert "no module torch" in check.found


def test_no_backends(machine):
    machine.backends.clear()
    assert machine.examine()["backends"].status == "fail"


def test_accelerator_that_one_wing_misses(machine):
    machine.backends["torch"] = ["cpu", "cuda:0"]
    check = machine.examine()["accelerator"]
    assert (check.status, check.found) == ("warn", "torch sees one, jax does not")
    machine.backends["jax"] = ["cuda:0"]
    assert "accelerator" not in machine.examine()


@pytest.mark.parametrize(("threads", "status"), [("1", "ok"), ("0", "warn"), ("many", "warn"), ("99999", "warn")])
def test_threads(machine, monkeypatch, threads, status):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    check = machine.examine()["cores and threads"]
    assert check.status == status
    assert threads in check.found


def test_little_memory_and_disk(machine, monkeypatch):
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9, total=8e9))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e8))
    found = machine.examine()
    assert (found["memory"].status, found["memory"].found) == ("warn", "1.0 of 8.0 GB available")
    assert found["disk"].status == "warn"


def test_compiler(machine, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert machine.examine()["C++ compiler"].found == "none found"


def test_data_vocabulary_and_weights(machine, monkeypatch, tmp_path):
    found = machine.examine()
    assert found["data for tests"].status == "ok"
    assert found["GPT-2 vocabulary"].status == "warn"
    assert found["fetched weights"].found.startswith("none")
    monkeypatch.setenv("PARALLAX_DATA", str(tmp_path / "gone"))
    (tmp_path / "home" / "gpt2-124m").mkdir(parents=True)
    (tmp_path / "home" / "gpt2-124m" / "model.safetensors").touch()
    found = machine.examine()
    assert found["data for tests"].status == "warn"
    assert found["fetched weights"].found.startswith("gpt2-124m in ")


def test_vocabulary_that_is_not_gpt2s(machine, monkeypatch, tmp_path):
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setenv("PARALLAX_VOCAB", str(tmp_path))
    check = machine.examine()["GPT-2 vocabulary"]
    assert check.status == "warn"
    assert "is not GPT-2's" in check.advice


def test_vocabulary_that_is(machine, monkeypatch, data_dir):
    monkeypatch.setenv("PARALLAX_VOCAB", str(data_dir / "gpt2"))
    assert machine.examine()["GPT-2 vocabulary"].status == "ok"


@pytest.mark.parametrize(("value", "status"), [("1", "warn"), ("true", "warn"), ("0", "ok"), ("", "ok")])
def test_hub_offline(machine, monkeypatch, value, status):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert machine.examine()["HF_HUB_OFFLINE"].status == status
    assert os.environ["HF_HUB_OFFLINE"] == value
