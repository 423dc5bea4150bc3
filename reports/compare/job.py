"""The main job from beginning to end; everything it finds is one plain dictionary, which is also the JSON."""

import contextlib
import math
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.harness.worker import Worker, environment
from common import params
from common.config import model_to_dict
from reports.compare import agreement, generation, speed, training
from reports.compare.plan import Plan
from reports.progress import Progress

SCHEMA = 1


def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Check, train, continue the prompt, count and measure. Workers and temporary files are gone when it returns."""
    begun, stamp, load = time.perf_counter(), datetime.now(UTC), machine.load_average()
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "command": plan.settings.command(),
        "started": stamp.isoformat(timespec="seconds"),
        "settings": plan.settings.to_dict(),
        "model": _model(plan),
        "data": plan.about,
        "machine": {
            **machine.describe(environment(plan.threads, plan.settings.device)),
            "threads": plan.threads,
            "load_before": load,
        },
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parallax-compare-")))
        workers = _start(plan, stack, progress, found)
        with progress.phase("Compiling"):
            first = speed.first_calls(plan, workers)
        with progress.phase("Agreement with the oracle") as at:
            found["agreement"] = agreement.check(plan, workers, folder, at)
        with progress.phase(f"Training, {plan.train.steps} steps in both wings") as at:
            found["training"] = training.train(plan, workers, folder, at)
        with progress.phase("Continuing the prompt"):
            found["generation"] = generation.generate(plan, workers, folder)
        with progress.phase("Counting FLOPs"):
            found["flops"] = speed.count_flops(plan, workers)
        found["passed"] = _passed(found)
        found["first_calls"] = first
        _measure(plan, workers, progress, found)
    with progress.phase("Peak memory, a process for each"):
        found["memory"] = speed.peaks(plan)
    found["machine"]["load_after"] = machine.load_average()
    found["skipped"] = plan.skipped
    found["seconds"] = time.perf_counter() - begun
    return plain(found)


def _model(plan: Plan) -> dict[str, Any]:
    source = plan.settings.weights or ("a config of the caller's" if plan.settings.model else plan.settings.preset)
    return {
        "source": source,
        "weights": "given" if plan.settings.weights else f"initialised from seed {plan.settings.seed}",
        "config": model_to_dict(plan.config),
        "parameters": params.count(plan.config),
        "large": plan.large,
    }


def _start(plan: Plan, stack: contextlib.ExitStack, progress: Progress, found: dict[str, Any]) -> dict[str, Worker]:
    """One worker for each wing, started one after the other so that the seconds of importing are their own."""
    workers: dict[str, Worker] = {}
    with progress.phase("Starting both wings"):
        found["wings"] = {}
        for wing in plan.wings:
            memory = plan.execution(wing).allocator
            worker = Worker(wing, threads=plan.threads, device=plan.settings.device, memory=memory)
            workers[wing] = stack.enter_context(worker)
            found["wings"][wing] = {**worker.ask("start"), "execution": plan.execution(wing).to_dict()}
    return workers


def _passed(found: Mapping[str, Any]) -> dict[str, bool]:
    """The gate: without all of these no timing is published."""
    gates = {name: found[name]["passed"] for name in ("agreement", "generation", "flops")}
    gates["training"] = found["training"]["finite"]
    return {**gates, "all": all(gates.values())}


def _measure(plan: Plan, workers: Mapping[str, Worker], progress: Progress, found: dict[str, Any]) -> None:
    if not found["passed"]["all"]:
        plan.skip("speed and compile time", "the wings do not agree, and a faster wrong answer is no result")
        found["speed"] = found["compile"] = None
        return
    with progress.phase("Speed, in turns") as at:
        found["speed"] = speed.duel(plan, workers, at)
    found["compile"] = speed.compile_seconds(found["first_calls"], found["speed"])


def plain(value: Any) -> Any:
    """The same as data that JSON can hold: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
