"""GPUs: what the driver says of them, and what JAX has to be told when a process starts for one."""

import os
import subprocess
from collections.abc import Mapping

MEMORY = "XLA_PYTHON_CLIENT_PREALLOCATE"
FLAGS = "XLA_FLAGS"
REASONS = (  # NVML's nvmlClocksEventReasons, from the lowest bit on
    "idleness", "clocks that were set", "power cap", "hardware slowdown", "sync boost", "heat (driver)",
    "heat (hardware)", "power brake", "display clocks",
)  # fmt: skip
TRITON = "--xla_gpu_enable_triton_gemm"


def environment(own: Mapping[str, str], device: str) -> dict[str, str]:
    """What to add to the environment `own` of a process for `device` ("cpu", "cuda", "cuda:1"); what is said there
    stays.

    JAX would take three quarters of a GPU's memory, used or not. And on the GPU XLA would write matrix products, fused
    with what surrounds them, in Triton, the fastest of many that it compiles and tries: measured on an H100 with jax
    0.11.2, the output of a small block in bfloat16 was off by 12 to 20 % then, and by 0.4 % with cuBLAS.
    """
    found = {} if MEMORY in own else {MEMORY: "false"}
    said = own.get(FLAGS, "")
    return found if device == "cpu" or TRITON in said else found | {FLAGS: f"{said} {TRITON}=false".strip()}


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of the NVIDIA GPUs that processes see; empty where there is none."""
    return asked(name="name", driver="driver_version", memory="memory.total", power_limit="power.limit",
                  mig="mig.mode.current")  # fmt: skip


def state() -> list[dict[str, str]] | None:
    """Clocks, temperature and power of these GPUs now, and what holds their clocks back (see `reasons`); None where the
    driver does not tell."""
    for what in ("event", "throttle"):  # older drivers call it so
        found = asked(clock="clocks.sm", memory_clock="clocks.mem", temperature="temperature.gpu", power="power.draw",
                      held_back=f"clocks_{what}_reasons.active")  # fmt: skip
        if found:
            return found
    return None


def reasons(mask: str) -> list[str]:
    """What holds a GPU's clocks back, by the driver's mask (as in "0x0000000000000004")."""
    try:
        bits = int(mask, 16)
    except ValueError:  # it does not tell
        return []
    return [words for number, words in enumerate(REASONS) if bits >> number & 1]


def name(device: str) -> str | None:
    """The name of the GPU "cuda" or "cuda:N"; None where the driver does not tell, or has cut it into slices."""
    index, found = int(device.partition(":")[2] or 0), gpus()
    return found[index].get("name") if index < len(found) and not sliced() else None


def sliced() -> bool:
    """Whether a GPU is cut into slices (MIG), each of which the driver gives the name of the whole."""
    return any(gpu.get("mig") == "Enabled" for gpu in gpus())


def free_gpu_bytes(index: int) -> int | None:
    """Memory of a GPU that nobody has taken now; None where the driver does not tell."""
    told = [gpu["free"] for gpu in asked(free="memory.free")][index : index + 1]
    number, _, unit = (told[0] if told else "").partition(" ")
    return int(number) << 20 if number.isdigit() and unit == "MiB" else None


def asked(**fields: str) -> list[dict[str, str]]:
    """What nvidia-smi says of every GPU, by our names for its fields."""
    names = {"index": "index", "uuid": "uuid", **fields}
    found = run("nvidia-smi", f"--query-gpu={','.join(names.values())}", "--format=csv,noheader")
    lines = [dict(zip(names, map(str.strip, line.split(",")), strict=False)) for line in (found or "").splitlines()]
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


def run(*command: str) -> str | None:
    """What a command prints; None where it fails, or there is none of that name."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
