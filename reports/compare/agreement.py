"""Do both wings compute what the oracle computes? Logits, loss, every gradient, optimizer steps.

float64: all pairs within 1e-12. Lower precisions: each wing's error against float64 is at most twice the other's plus
one unit round-off, and the reverse, so neither is worse than the arithmetic allows while the other shows it can be met.
The RMS of n roundings is itself uncertain by 1/sqrt(2n), a ratio of two by 1/sqrt(n): three of these widen the 2.
Errors within one token hang together, so n is at most the number of tokens.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.recipe import Recipe, read_arrays
from benchmarks.harness.worker import Worker
from common import backend, params
from common.compare import UNIT_ROUNDOFF, difference, rms
from common.config import Execution
from common.oracle.gradient import slope
from reports.compare.plan import Plan, gate_dtypes

BOUND = 1e-12  # relative, float64: a thousand times its rounding, far below any mistake
DEAD_BOUND = 1e-13  # a gradient that is zero in theory, as a share of the RMS of all gradients
STEPS = 5

Weights = Mapping[str, np.ndarray]
Workers = Mapping[str, Worker]


def check(plan: Plan, workers: Workers, folder: Path, progress: Callable[[float], None]) -> dict[str, Any]:
    """All rows, the worst tensor of each, and the verdict, as plain data."""
    sets = [("randomised weights", Recipe("randomised", plan.config, plan.settings.seed))]
    if plan.recipe.kind == "initial":
        sets.insert(0, ("initial weights", plan.recipe))
        if plan.large:
            sets.pop()
            plan.skip("agreement on randomised weights", "too costly at this size; the initial weights are checked")
    else:
        sets = [("given weights", plan.recipe)]
    rows, tensors = [], []
    for number, (label, recipe) in enumerate(sets):

        def part(share: float, number: int = number) -> None:
            progress((number + share) / (len(sets) + 0.3))

        found = _one_set(plan, workers, recipe, folder, part)
        rows += [{"weights": label, **row} for row in found["rows"]]
        tensors += [{"weights": label, **row} for row in found["tensors"]]
    if plan.large:
        plan.skip("optimizer steps in float64", "too much memory at this size; they are part of the training below")
    else:
        rows.append({"weights": sets[0][0], **_optimizer(plan, workers, sets[0][1], folder)})
    return {
        "passed": all(row["passed"] for row in rows),
        "bound_float64": BOUND,
        "sequences": int(plan.check[0].shape[0]),
        "length": int(plan.check[0].shape[1]),
        "rows": rows,
        "tensors": tensors,
    }


def _one_set(
    plan: Plan, workers: Workers, recipe: Recipe, folder: Path, progress: Callable[[float], None]
) -> dict[str, Any]:
    ids, targets = plan.check
    oracle = backend.load("numpy").build(recipe.config, recipe.weights(), Execution("float64"))
    logits = oracle.forward(ids).logits
    loss = float(oracle.loss(ids, targets).real)
    exact = {wing: _evaluate(plan, workers[wing], recipe, "float64", folder) for wing in plan.wings}
    progress(0.2)
    live = [name for name, p in params.table(plan.config).items() if not p.dead]
    dead = [name for name, p in params.table(plan.config).items() if p.dead]
    grads = {wing: exact[wing]["grads"] for wing in plan.wings}
    checked = [name for name in plan.slopes if name in live]
    slopes = _slopes(oracle, ids, targets, checked, grads, lambda share: progress(0.2 + share * 0.6))
    rows = [
        _exact_row("logits", _errors(plan, {w: exact[w]["logits"] for w in plan.wings}, logits), logits.size),
        _exact_row("loss", _errors(plan, {w: exact[w]["loss"] for w in plan.wings}, loss), 1),
        _gradient_row(plan, grads, slopes, live),
    ]
    if dead:
        rows.append(_dead_row(plan, grads, dead, live))
    first, second = plan.wings
    tensors = [
        {"name": name, "float64": {"pair": difference(name, grads[first][name], grads[second][name]).relative}}
        for name in live
    ]
    for row in tensors:
        row["float64"] |= slopes.get(row["name"], {})
    lower = gate_dtypes(plan)
    for number, dtype in enumerate(lower):
        near = {wing: _evaluate(plan, workers[wing], recipe, dtype, folder) for wing in plan.wings}
        rows += _rounded_rows(plan, dtype, near, logits, loss, grads, live, tensors)
        progress(0.8 + 0.2 * (number + 1) / len(lower))
    return {"rows": rows, "tensors": tensors}


def _evaluate(plan: Plan, worker: Worker, recipe: Recipe, dtype: str, folder: Path) -> dict[str, Any]:
    """Logits, loss and gradients (in a file, read by tensor) of one wing in one precision."""
    path = folder / f"gradients-{worker.name}-{dtype}.safetensors"
    worker.ask("build", "check", recipe, plan.execution(worker.name, dtype))
    found = {"logits": worker.ask("forward", "check", plan.check[0])}
    found["loss"] = worker.ask("gradients", "check", *plan.check, str(path))
    worker.ask("free", "check")
    found["grads"] = read_arrays(str(path))
    return found


def _errors(plan: Plan, got: Mapping[str, Any], want: Any) -> dict[str, float]:
    """Relative errors of both wings against the oracle, and of the wings against each other."""
    first, second = plan.wings
    errors = {wing: _relative(got[wing], want) for wing in plan.wings}
    return {**errors, "pair": _relative(got[first], got[second])}


def _relative(got: Any, want: Any) -> float:
    """Relative RMS error; infinite where a number is missing or out of place."""
    try:
        return difference("", np.asarray(got), np.asarray(want)).relative
    except ValueError:
        return float("inf")


def _exact_row(
    what: str, errors: dict[str, float], count: int, worst: str | None = None, bound: float = BOUND
) -> dict[str, Any]:
    return {
        "dtype": "float64",
        "what": what,
        "errors": errors,
        "bounds": dict.fromkeys(errors, bound),
        "worst": worst,
        "count": int(count),
        "passed": all(error <= bound for error in errors.values()),
    }


def _slopes(oracle, ids, targets, names, grads, progress) -> dict[str, dict[str, float]]:
    """By tensor and wing: |<g, v> - slope| / |g|, with the oracle's slope along one random direction v."""
    found = {}
    for number, name in enumerate(names):
        direction = _direction(name, oracle.params[name].shape)
        true = slope(lambda moved: oracle.loss_of(moved, ids, targets), oracle.params, {name: direction})
        found[name] = {}
        for wing, own in grads.items():
            gradient = own[name].astype(np.float64)
            norm = max(float(np.linalg.norm(gradient)), np.finfo(float).tiny)
            error = abs(float(np.vdot(gradient, direction)) - float(true)) / norm
            found[name][wing] = error if np.isfinite(error) else float("inf")
        progress((number + 1) / len(names))
    return found


def _direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A Gaussian direction that depends on the tensor's name alone."""
    key = int.from_bytes(hashlib.sha256(f"direction/{name}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)


def _gradient_row(plan: Plan, grads: Mapping[str, Weights], slopes: Mapping[str, Mapping], live: list[str]) -> dict:
    first, second = plan.wings
    pair = {name: _relative(grads[first][name], grads[second][name]) for name in live}
    errors = {wing: max(slopes[name][wing] for name in slopes) for wing in plan.wings}
    errors["pair"] = max(pair.values())
    return {
        **_exact_row("gradients", errors, len(live), max(pair, key=pair.get)),
        "slopes": len(slopes),
    }


def _dead_row(plan: Plan, grads: Mapping[str, Weights], dead: list[str], live: list[str]) -> dict:
    errors = {}
    for wing in plan.wings:
        squares = sum(float(np.square(grads[wing][name]).sum()) for name in live)
        overall = np.sqrt(squares / sum(grads[wing][name].size for name in live))
        errors[wing] = max(rms(grads[wing][name]) for name in dead) / float(overall)
    return _exact_row("gradients that are zero in theory", errors, len(dead), bound=DEAD_BOUND)


def _rounded_rows(plan, dtype, near, logits, loss, exact, live, tensors) -> list[dict[str, Any]]:
    """Rows of a lower precision against float64; a gradient's reference is the mean of both wings' float64 ones."""
    unit = UNIT_ROUNDOFF[dtype]
    errors = _errors(plan, {wing: near[wing]["logits"] for wing in plan.wings}, logits)
    rows = [_two_sided_row(plan, dtype, "logits", errors, unit, logits.size, logits.size)]
    rows.append(_loss_row(plan, dtype, near, logits, loss, unit))
    by_tensor, kept = {}, {row["name"]: row for row in tensors}
    first, second = plan.wings
    for name in live:
        middle = (exact[first][name].astype(np.float64) + exact[second][name]) / 2
        by_tensor[name] = _errors(plan, {wing: near[wing]["grads"][name] for wing in plan.wings}, middle)
        kept[name][dtype] = by_tensor[name]
    sizes = {name: exact[first][name].size for name in live}
    worst = max(live, key=lambda name: _use(plan, by_tensor[name], unit, sizes[name]))
    rows.append(_two_sided_row(plan, dtype, "gradients", by_tensor[worst], unit, sizes[worst], len(live), worst))
    return rows


def _allowed(plan: Plan, errors: Mapping[str, float], unit: float, size: int) -> dict[str, float]:
    first, second = plan.wings
    factor = 2 * (1 + 3 / np.sqrt(min(size, plan.check[0].size)))
    return {first: float(factor * errors[second] + unit), second: float(factor * errors[first] + unit)}


def _use(plan: Plan, errors: Mapping[str, float], unit: float, size: int) -> float:
    """How much of the bound is used; above 1 the row fails."""
    used = max(errors[wing] / bound for wing, bound in _allowed(plan, errors, unit, size).items())
    return used if np.isfinite(used) else float("inf")


def _two_sided_row(plan, dtype, what, errors, unit, size, count, worst=None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "what": what,
        "errors": errors,
        "bounds": _allowed(plan, errors, unit, size),
        "worst": worst,
        "count": int(count),
        "passed": _use(plan, errors, unit, size) <= 1,
    }


def _loss_row(plan, dtype, near, logits, loss, unit) -> dict[str, Any]:
    """A single number's rounding is a matter of luck, so its bound comes from the logits: a loss moves by at most twice
    the largest change of a logit, and its own sums round a few times."""
    errors = _errors(plan, {wing: near[wing]["loss"] for wing in plan.wings}, loss)
    sums = 8 * min(unit, UNIT_ROUNDOFF["float32"])  # reductions are float32 at least
    bounds = {wing: 2 * float(np.abs(near[wing]["logits"] - logits).max()) / abs(loss) + sums for wing in plan.wings}
    bounds["pair"] = sum(bounds.values())
    passed = all(errors[name] <= bounds[name] for name in bounds)
    return {
        "dtype": dtype,
        "what": "loss",
        "errors": errors,
        "bounds": bounds,
        "worst": None,
        "count": 1,
        "passed": passed,
    }


def _optimizer(plan: Plan, workers: Workers, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """A few AdamW steps in float64: the parameters afterwards must still be equal. Dead parameters are left out, for
    AdamW divides their rounding noise by itself."""
    train = plan.train.with_(steps=STEPS, schedule="constant")
    rows, length = plan.check[0].shape
    batches = [tuple(array[:rows, :length] for array in batch) for batch in plan.batches[:STEPS]]
    after = {}
    for wing, worker in workers.items():
        path = folder / f"stepped-{wing}.safetensors"
        worker.ask("build", "check", recipe, plan.execution(wing, "float64"))
        worker.ask("start_training", "check", train)
        for batch in batches:
            worker.ask("train_step", "check", *batch)
        worker.ask("save_weights", "check", str(path))
        worker.ask("free", "check")
        after[wing] = read_arrays(str(path))
    first, second = plan.wings
    live = [name for name, p in params.table(plan.config).items() if not p.dead]
    gaps = {name: _relative(after[first][name], after[second][name]) for name in live}
    worst = max(gaps, key=gaps.get)
    return _exact_row(f"parameters after {len(batches)} AdamW steps", {"pair": gaps[worst]}, len(live), worst)
