"""The same prompt continued by both wings: each with its own trained weights, and both with one set of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.recipe import Recipe
from benchmarks.harness.worker import Worker
from common import backend, rng
from common.compare import UNIT_ROUNDOFF
from common.config import Execution, SamplingConfig
from reports.compare.plan import Plan
from reports.compare.training import weights_path


def generate(plan: Plan, workers: Mapping[str, Worker], folder: Path) -> dict[str, Any]:
    """Texts and where tokens first differ. With one set of weights every token must be equal, unless the oracle finds
    the two candidates closer together than rounding can tell: then it is a tie, and listed as one."""
    first = plan.wings[0]
    if plan.recipe.kind == "initial":
        recipe, label = Recipe("file", plan.config, path=str(weights_path(folder, first))), f"{first}, trained"
    else:
        recipe, label = plan.recipe, "given, untrained"
    own = {kind: _texts(plan, workers, "trained", sampling) for kind, sampling in plan.sampling.items()}
    for wing, worker in workers.items():
        worker.ask("build", "same", recipe, plan.execution(wing))
    same = {}
    for kind, sampling in plan.sampling.items():
        same[kind] = _texts(plan, workers, "same", sampling)
        at = same[kind]["first_difference"]
        same[kind]["passed"] = at is None
        if at is not None:
            same[kind]["tie"] = _tie(plan, workers, recipe, sampling, same[kind]["tokens"], at)
            same[kind]["passed"] = same[kind]["tie"]["certified"]
    for worker in workers.values():
        worker.ask("free", "same")
    return {
        "prompt": plan.tokenizer.decode(plan.prompt),
        "prompt_tokens": len(plan.prompt),
        "sampling": {kind: sampling.to_dict() for kind, sampling in plan.sampling.items()},
        "same_weights": label,
        "same": same,
        "own": own,
        "passed": all(found["passed"] for found in same.values()),
        "dtype": plan.settings.dtype,
    }


def _texts(plan: Plan, workers: Mapping[str, Worker], handle: str, sampling: SamplingConfig) -> dict[str, Any]:
    tokens = {wing: worker.ask("generate", handle, [plan.prompt], sampling)[0] for wing, worker in workers.items()}
    a, b = (tokens[wing] for wing in plan.wings)
    differing = [i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]]
    known = plan.tokenizer.vocab_size  # a model may know more ids than its tokenizer
    return {
        "tokens": tokens,
        "texts": {wing: plan.tokenizer.decode([t for t in own if t < known]) for wing, own in tokens.items()},
        "equal": differing[0] if differing else len(a),
        "count": len(a),
        "first_difference": differing[0] if differing else None,
    }


def _tie(plan, workers, recipe: Recipe, sampling: SamplingConfig, tokens, at: int) -> dict[str, Any]:
    """The oracle's margin between the two tokens chosen at step `at`, beside twice the wings' error in the logits."""
    prefix = np.array([plan.prompt + tokens[plan.wings[0]][:at]], np.int32)
    oracle = backend.load("numpy").build(recipe.config, recipe.weights(), Execution("float64"))
    true = oracle.forward(prefix).logits[0]
    error = max(float(np.abs(worker.ask("forward", "same", prefix)[0] - true).max()) for worker in workers.values())
    chosen = [tokens[wing][at] for wing in plan.wings]
    margin, allowed = _margin(true[-1], chosen, sampling, len(plan.prompt) + at, error)
    return {
        "step": at,
        "chosen": dict(zip(plan.wings, chosen, strict=True)),
        "margin": margin,
        "allowed": allowed,
        "certified": bool(margin <= allowed),
    }


def _margin(logits: np.ndarray, chosen: list[int], sampling: SamplingConfig, position: int, error: float):
    """(margin between the two chosen tokens in what is compared, the largest margin that rounding explains)."""
    if sampling.temperature == 0:
        return float(abs(logits[chosen[0]] - logits[chosen[1]])), 2 * error
    scaled, slack = logits / sampling.temperature, 2 * error / sampling.temperature
    kth = np.sort(scaled)[::-1][min(sampling.top_k or scaled.size, scaled.size) - 1]
    outside = [token for token in chosen if scaled[token] < kth]
    if outside:  # one wing let a token in that the oracle keeps out
        return float(max(kth - scaled[token] for token in outside)), slack
    key = rng.address(sampling.seed, rng.SAMPLING, position, 0)
    noisy = scaled + rng.gumbel(key, scaled.shape)
    slack += 16 * UNIT_ROUNDOFF["float32"] * float(np.abs(noisy[chosen]).max())  # the noise is float32 itself
    return float(abs(noisy[chosen[0]] - noisy[chosen[1]])), slack
