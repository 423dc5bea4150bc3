"""Both wings trained from the same weights on the same batches, step by step in turns."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.recipe import read_arrays
from benchmarks.harness.worker import Worker
from common import params
from reports.compare.plan import Plan


def train(plan: Plan, workers: Mapping[str, Worker], folder: Path, progress: Callable[[float], None]) -> dict[str, Any]:
    """Curves, their difference, held-out loss and parameter distance. The trained models stay in the workers, under
    "trained", and their weights in `folder`."""
    for wing, worker in workers.items():
        worker.ask("build", "trained", plan.recipe, plan.execution(wing))
    before = _held_out(plan, workers)
    for worker in workers.values():
        worker.ask("start_training", "trained", plan.train)
    curves = {wing: {"loss": [], "grad_norm": [], "seconds": []} for wing in plan.wings}
    for step, batch in enumerate(plan.batches):
        for wing in plan.wings if step % 2 == 0 else plan.wings[::-1]:
            for name, value in zip(curves[wing], workers[wing].ask("train_step", "trained", *batch), strict=True):
                curves[wing][name].append(value)
        progress((step + 1) / len(plan.batches))
    after = _held_out(plan, workers)
    for wing, worker in workers.items():
        worker.ask("save_weights", "trained", str(weights_path(folder, wing)))
    return {
        "config": plan.train.to_dict(),
        "dtype": plan.settings.dtype,
        "curves": curves,
        **_differences(plan, curves),
        "parameters": _distance(plan, folder),
        "held_out": {"before": before, "after": after},
    }


def weights_path(folder: Path, wing: str) -> Path:
    """Where a wing's trained weights lie."""
    return folder / f"trained-{wing}.safetensors"


def _held_out(plan: Plan, workers: Mapping[str, Worker]) -> dict[str, float] | None:
    if not plan.held_out:
        return None
    return {wing: worker.ask("loss", "trained", plan.held_out) for wing, worker in workers.items()}


def _differences(plan: Plan, curves: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    first, second = (np.array(curves[wing]["loss"]) for wing in plan.wings)
    gap = np.abs(first - second)
    return {
        "difference": gap.tolist(),
        "max_difference": float(gap.max()),
        "max_difference_step": int(gap.argmax()),
        "final_difference": float(gap[-1]),
        "final_loss": {wing: curves[wing]["loss"][-1] for wing in plan.wings},
        "finite": bool(np.isfinite(gap).all()),
    }


def _distance(plan: Plan, folder: Path) -> dict[str, float]:
    """How far the wings' weights are apart, relative to their size and to how far training moved them. Parameters
    without a gradient in theory are left out: AdamW moves them by rounding noise."""
    first, second = (read_arrays(str(weights_path(folder, wing))) for wing in plan.wings)
    start = plan.recipe.weights()
    apart = size = moved = 0.0
    for name, parameter in params.table(plan.config).items():
        if parameter.dead:
            continue
        a, b = first[name].astype(np.float64), second[name].astype(np.float64)
        apart += float(np.square(a - b).sum())
        size += float(np.square(a).sum())
        moved += float(np.square(a - start[name]).sum())
    return {
        "relative_to_weights": float(np.sqrt(apart / size)) if size else 0.0,
        "relative_to_update": float(np.sqrt(apart / moved)) if moved else 0.0,
    }
