"""What JAX has to be told when a process starts on a machine with a GPU."""

from collections.abc import Mapping

MEMORY = "XLA_PYTHON_CLIENT_PREALLOCATE"
FLAGS = "XLA_FLAGS"
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
