"""What a device can do at most, by its data sheet, and the share of it that a measured rate is.

An unknown device has no peak, and so no share: there is no default. A slice of a device (MIG) has another name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense matmul FLOP/s by number format ("tf32" is float32 storage with short products), memory bytes/s."""

    flops: dict[str, float]
    bandwidth: float


def _peak(bfloat16: float, tf32: float, float32: float, gigabytes: float) -> Peak:
    return Peak({"bfloat16": bfloat16 * 1e12, "tf32": tf32 * 1e12, "float32": float32 * 1e12}, gigabytes * 1e9)


# By the name that the driver gives (nvidia-smi, torch.cuda.get_device_name). TFLOP/s without sparsity, GB/s.
# Source: NVIDIA's data sheets "A100 Tensor Core GPU" (June 2021), "H100 Tensor Core GPU", "H200 Tensor Core GPU".
PEAKS: dict[str, Peak] = {
    "NVIDIA A100-SXM4-80GB": _peak(312, 156, 19.5, 2039),
    "NVIDIA H100 80GB HBM3": _peak(989, 495, 67, 3350),
    "NVIDIA H200": _peak(989, 495, 67, 4800),
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
