"""Provenance: the machine, its software and its mood, as plain data without host or user names."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.worker import usable_cores

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "numpy", "torch", "jax", "jaxlib", "flax", "optax", "transformers", "safetensors", "tiktoken", "ml_dtypes",
    "triton",
    *(f"jax-cuda{major}-plugin" for major in (12, 13)),
    *(f"nvidia-{what}-cu{major}" for what in ("cudnn", "cublas", "cuda-runtime") for major in (12, 13)),
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")  # what products are made with
NARROW = ("avx512_bf16", "amx_bf16", "bf16")
PREFIXES = (
    "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "XLA_", "JAX_", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS", "CUDNN",
    "TRITON_",
)  # fmt: skip
SECRETS = ("KEY", "TOKEN", "SECRET", "PASS")  # what names of variables have whose values nobody should see
SWITCHES = ("NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "NPROC", "MALLOC_CONF", "LD_PRELOAD", "GLIBC_TUNABLES")


def describe(env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """CPU, memory, system, versions, relevant variables of the environment in which the work is done, commit and GPU of
    this machine."""
    return {
        "cpu": cpu_model(),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable_cores()),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions(),
        "environment": environment(env),
        "commit": commit(),
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
        return _run("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Those of INSTRUCTIONS that the processor says it has; empty where it says nothing."""
    lines = (_read("/proc/cpuinfo") or "").splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split()
    return [name for name in INSTRUCTIONS if name in flags]


def has_bfloat16() -> bool:
    """Whether the processor is known to have instructions for products of bfloat16."""
    return not set(NARROW).isdisjoint(instructions())


def commit() -> dict[str, Any] | None:
    """{id, changed} of the repository this code lies in; None outside one."""
    if not (ROOT / ".git").exists():
        return None
    found = _run("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not found:
        return None
    return {"id": found, "changed": bool(_run("git", "-C", str(ROOT), "status", "--porcelain", "-uno"))}


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of the NVIDIA GPUs that processes see; empty where there is none."""
    return _asked(name="name", driver="driver_version", memory="memory.total", power_limit="power.limit",
                  mig="mig.mode.current")  # fmt: skip


def sliced() -> bool:
    """Whether a GPU is cut into slices (MIG), each of which the driver gives the name of the whole."""
    return any(gpu.get("mig") == "Enabled" for gpu in gpus())


def free_gpu_bytes(index: int) -> int | None:
    """Memory of a GPU that nobody has taken now; None where the driver does not tell."""
    told = [gpu["free"] for gpu in _asked(free="memory.free")][index : index + 1]
    number, _, unit = (told[0] if told else "").partition(" ")
    return int(number) << 20 if number.isdigit() and unit == "MiB" else None


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


def _asked(**fields: str) -> list[dict[str, str]]:
    """What nvidia-smi says of every GPU, by our names for its fields."""
    asked = {"index": "index", "uuid": "uuid", **fields}
    found = _run("nvidia-smi", f"--query-gpu={','.join(asked.values())}", "--format=csv,noheader")
    lines = [dict(zip(asked, map(str.strip, line.split(",")), strict=False)) for line in (found or "").splitlines()]
    return [{name: gpu[name] for name in fields if name in gpu} for gpu in visible(lines)]


def visible(gpus: list[dict[str, str]], env: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """Of GPUs with "index" and "uuid" those that CUDA shows to processes, in the order of CUDA_VISIBLE_DEVICES (numbers
    are the driver's, as with CUDA_DEVICE_ORDER=PCI_BUS_ID); the first name that is none ends the list, as CUDA has it.
    Slices, which the driver does not list, leave it as it is."""
    names = [name.strip() for name in env.get("CUDA_VISIBLE_DEVICES", "MIG-").split(",")]
    if any(name.startswith("MIG-") for name in names):
        return gpus
    found = []
    for name in names:
        known = (gpu for gpu in gpus if name and (gpu.get("index") == name or gpu.get("uuid", "").startswith(name)))
        own = next(known, None)
        if own is None:
            break
        found.append(own)
    return found


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
