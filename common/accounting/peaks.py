"""What a device can do at most, by its data sheet, and the share of it that a measured rate is.

An unknown device has no peak, and so no share: there is no default. A slice of a device (MIG) has another name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense matmul FLOP/s by number format ("tf32" is float32 storage with short products), memory bytes/s."""

    flops: dict[str, float]
    bandwidth: float


def _peak(gigabytes: float, float32: float, tf32: float | None = None, bfloat16: float | None = None) -> Peak:
    formats = {"bfloat16": bfloat16, "tf32": tf32, "float32": float32}
    return Peak({name: rate * 1e12 for name, rate in formats.items() if rate}, gigabytes * 1e9)


# By the name that the driver gives (nvidia-smi, torch.cuda.get_device_name). GB/s; TFLOP/s without sparsity, of 16 bits
# those that sum in float32. Source: NVIDIA's data sheets of the V100 (January 2020; it multiplies neither format), A10,
# A100 (June 2021), L4, L40S, H100 and H200; of the GeForce RTX 3090 and 4090 the white papers "Ampere GA102 GPU
# Architecture" and "Ada GPU Architecture".
PEAKS: dict[str, Peak] = {
    "Tesla V100-PCIE-16GB": _peak(900, 14),
    "Tesla V100-PCIE-32GB": _peak(900, 14),
    "Tesla V100-SXM2-16GB": _peak(900, 15.7),
    "Tesla V100-SXM2-32GB": _peak(900, 15.7),
    "NVIDIA A10": _peak(600, 31.2, 62.5, 125),
    "NVIDIA A100-PCIE-40GB": _peak(1555, 19.5, 156, 312),
    "NVIDIA A100-SXM4-40GB": _peak(1555, 19.5, 156, 312),
    "NVIDIA A100 80GB PCIe": _peak(1935, 19.5, 156, 312),
    "NVIDIA A100-SXM4-80GB": _peak(2039, 19.5, 156, 312),
    "NVIDIA L4": _peak(300, 30.3, 60, 121),
    "NVIDIA L40S": _peak(864, 91.6, 183, 362),
    "NVIDIA H100 80GB HBM3": _peak(3350, 67, 495, 989),
    "NVIDIA H200": _peak(4800, 67, 495, 989),
    "NVIDIA GeForce RTX 3090": _peak(936, 35.6, 35.6, 71),
    "NVIDIA GeForce RTX 4090": _peak(1008, 82.6, 82.6, 165.2),
}


def peak(device: str) -> Peak | None:
    """The data sheet's figures for a device of that name, or None."""
    return PEAKS.get(device)


def mfu(flops: int, seconds: float, device: str, kind: str) -> float | None:
    """Model FLOPs utilisation: FLOPs of the closed form per second, over the peak of the format that was used.

    None for an unknown device or format. Raises ValueError outside (0, 1]. Source: Chowdhery et al. 2022, appendix B.
    """
    found = peak(device)
    most = found.flops.get(kind) if found else None
    return None if most is None else share(flops / seconds, most, f"FLOP/s of {device} in {kind}")


def mbu(moved: int, seconds: float, device: str) -> float | None:
    """Memory bandwidth utilisation: bytes that had to move (`memory.decode_bytes`) per second, over the bandwidth.

    None for an unknown device. Raises ValueError outside (0, 1].
    """
    found = peak(device)
    return None if found is None else share(moved / seconds, found.bandwidth, f"bytes/s of {device}")


def share(rate: float, most: float, unit: str) -> float:
    """rate / most, which must lie in (0, 1]: nothing is faster than its peak. `most` may be a measured peak."""
    found = rate / most
    if not 0 < found <= 1:
        raise ValueError(
            f"{rate:.3g} are {found:.3g} times the peak of {most:.3g} {unit}: the peak or the count is wrong, or the"
            " clock stopped before the work was done."
        )
    return found
