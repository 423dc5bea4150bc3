"""Provenance: the machine, its software and its mood, as plain data without host or user names."""

import csv
import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from common.cores import usable_cores
from common.gpu import gpus, run

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "numpy", "torch", "jax", "jaxlib", "flax", "optax", "transformers", "safetensors", "tiktoken", "tokenizers",
    "ml_dtypes", "triton",
    *(f"jax-cuda{major}-plugin" for major in (12, 13)),
    *(f"nvidia-{what}-cu{major}" for what in ("cudnn", "cublas", "cuda-runtime") for major in (12, 13)),
)  # fmt: skip
WHEELS = ("numpy", "torch", "jax", "jaxlib")
CODE = ("common", "torch_impl", "jax_impl", "benchmarks")  # what measures, and what is measured
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")  # what products are made with
NARROW = ("amx_bf16", "avx512_bf16", "bf16")  # of these what multiplies 16 bits, the fastest first
PREFIXES = (
    "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "XLA_", "JAX_", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS", "CUDNN",
    "TRITON_", "RAYON_", "TOKENIZERS_",
)  # fmt: skip
SECRETS = ("KEY", "TOKEN", "SECRET", "PASS")  # what names of variables have whose values nobody should see
SWITCHES = ("NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "NPROC", "MALLOC_CONF", "LD_PRELOAD", "GLIBC_TUNABLES")


def describe(env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """CPU, memory, system, versions and checksums, relevant variables of the environment in which the work is done,
    commit and GPU of this machine."""
    return {
        "cpu": cpu_model(),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable_cores()),
        "affinity": usable_cores(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions(),
        "wheels": wheels(),
        "environment": environment(env),
        "commit": commit(),
        "code": code(),
        "gpus": gpus(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter, without importing any."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def wheels() -> dict[str, str]:
    """SHA-256 of what the installed packages in WHEELS consist of: of the path and checksum of each of their files, as
    installers record them. What an installer adds (scripts, its own notes) is left out, so the same wheel tells the
    same everywhere."""
    found = {}
    for name in WHEELS:
        try:
            rows = list(csv.reader((metadata.distribution(name).read_text("RECORD") or "").splitlines()))
        except metadata.PackageNotFoundError:
            continue
        own = [(path, digest) for path, digest, *_ in rows if digest and not path.startswith("..")]
        lines = sorted(f"{path},{digest}\n" for path, digest in own if ".dist-info/" not in path)
        if lines:
            found[name] = hashlib.sha256("".join(lines).encode()).hexdigest()
    return found


def environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those variables of an environment that change how the libraries run; values that are paths are not told."""
    names = sorted(name for name in env if name.startswith(PREFIXES) or name in SWITCHES)
    names = [name for name in names if not any(word in name.upper() for word in SECRETS)]
    return {name: "(a path)" if os.sep in env[name] else env[name] for name in names}


def load_average() -> list[float] | None:
    """Load over 1, 5 and 15 minutes, where the system counts it."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def cpu_model() -> str:
    """The processor's name as its system gives it."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return run("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Those of INSTRUCTIONS that the processor says it has; empty where it says nothing."""
    lines = (_read("/proc/cpuinfo") or "").splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split()
    return [name for name in INSTRUCTIONS if name in flags]


def narrow() -> str | None:
    """The instructions by which the processor multiplies bfloat16, as far as it is known to have any: two processors of
    one name may differ in them, and are several times as fast in 16 bits or not."""
    return next((name for name in NARROW if name in instructions()), None)


def has_bfloat16() -> bool:
    """Whether the processor is known to have instructions for products of bfloat16."""
    return narrow() is not None


def commit() -> dict[str, Any] | None:
    """{id, changed} of the repository this code lies in; None outside one."""
    if not (ROOT / ".git").exists():
        return None
    found = run("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not found:
        return None
    return {"id": found, "changed": bool(run("git", "-C", str(ROOT), "status", "--porcelain", "-uno"))}


def code() -> str:
    """SHA-256 of the Python files of CODE, by path and content: the same wherever the same is measured by the same."""
    found = hashlib.sha256()
    for path in sorted(path for name in CODE for path in (ROOT / name).rglob("*.py")):
        found.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def free_container_bytes(root: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that the control groups (version 2) of this process may still take, files that could be dropped not counted
    as taken; None where none of them has a limit."""
    told = (line[3:] for line in (_read("/proc/self/cgroup") or "").splitlines() if line.startswith("0::"))
    own = Path(next(told, "/"))
    found = []
    for group in (own, *own.parents):
        place = f"{root}/{str(group).strip('/')}".rstrip("/")
        most, taken = _read(f"{place}/memory.max"), _read(f"{place}/memory.current")
        if most and taken and most.isdigit():
            stat = dict(line.split() for line in (_read(f"{place}/memory.stat") or "").splitlines())
            found.append(max(0, int(most) - int(taken) + int(stat.get("file", 0))))
    return min(found, default=None)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
