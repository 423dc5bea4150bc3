"""Time and memory of the tasks: forward, one training step, decoding; first calls apart from the steady state."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.harness import timing
from benchmarks.harness.together import at_once
from benchmarks.harness.worker import Worker, end_all, owner
from common import params
from common.accounting import flops, memory
from common.config import Execution
from reports.compare.plan import Plan

TASKS = ("forward", "train", "decode")
MEMORY_TASKS = ("train", "decode")
STEADY_CALLS = 3


def prepare(plan: Plan, worker: Worker, handle: str, tasks: tuple[str, ...] = TASKS) -> None:
    """Get a model's tasks ready for the clock: on the first batch, on the prompt."""
    for task in tasks:
        if task == "decode":
            worker.ask("prepare", handle, task, plan.prompt, sampling=plan.timed_sampling)
        else:
            worker.ask("prepare", handle, task, *plan.batches[0])


def first_calls(plan: Plan, workers: Mapping[str, Worker]) -> dict[str, dict[str, float]]:
    """Seconds of building a model and of the first call of every task, by wing."""
    found: dict[str, dict[str, float]] = {}
    for wing, worker in workers.items():
        found[wing] = {"build": worker.ask("build", "first", plan.recipe, plan.execution(wing))}
        worker.ask("start_training", "first", plan.train)
        prepare(plan, worker, "first")
        for task in TASKS:
            found[wing][task] = worker.ask("first", "first", task)
        worker.ask("free", "first")
    return found


def duel(plan: Plan, workers: Mapping[str, Worker], progress: Callable[[float], None]) -> dict[str, Any]:
    """Every task timed in both wings against each other, on the trained models."""
    found = {}
    for worker in workers.values():
        prepare(plan, worker, "trained")
    for number, task in enumerate(TASKS):
        arms, calls, slowest = {}, {}, 0.0
        for wing, worker in workers.items():
            steady = worker.ask("warm", "trained", task, min(1.0, plan.seconds_per_task / 8), 3, 10)
            slowest = max(slowest, steady)
            calls[wing], burn_in = timing.turns(steady, plan.settings.quick or plan.settings.device != "cpu")
            arms[wing] = _turn(worker, task, calls[wing], burn_in)
        fight = timing.Contest(arms, plan.settings.seed + number, mirrored=slowest < timing.LONG_CALL)
        fight.run(plan.seconds_per_task, timing.ENOUGH, lambda share, n=number: progress((n + share) / len(TASKS)))
        found[task] = {
            "tokens": tokens(plan, task),
            "calls_per_sample": calls,
            **timing.compare(fight.blocks, *plan.wings),
            **_each(fight.blocks, plan.wings),
            "blocks": len(fight.blocks),
            "samples": [timing.rows(block) for block in fight.blocks],
        }
        _rates(plan, task, found[task])
    return found


def _each(blocks: Sequence[timing.Block], wings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Seconds, self ratios and carry-over by wing."""
    found = {wing: timing.of_one(blocks, wing) for wing in wings}
    return {part: {wing: own[part] for wing, own in found.items()} for part in ("seconds", "self_ratio", "carry_over")}


def _turn(worker: Worker, task: str, calls: int, burn_in: int) -> Callable[[int], float]:
    return lambda copy: worker.ask("sample", "trained", task, calls, burn_in, timing.GAP)


def tokens(plan: Plan, task: str) -> int:
    """Tokens that one call of a task handles."""
    return plan.timed_sampling.max_new_tokens if task == "decode" else plan.batches[0][0].size


def _rates(plan: Plan, task: str, row: dict[str, Any]) -> None:
    """Tokens per second, and FLOP/s by the closed form (full scores) where there is one, from the median."""
    work = work_flops(plan).get(task)
    for spread in row["seconds"].values():
        spread["tokens_per_second"] = row["tokens"] / spread["median"]
        spread["flops_per_second"] = work["full"] / spread["median"] if work else None


def work_flops(plan: Plan) -> dict[str, dict[str, int]]:
    """Closed-form FLOPs of one call, with full and with causal scores."""
    shape = plan.batches[0][0].shape
    return {
        task: {
            "full": flops.flops_full(plan.config, task, *shape),
            "causal": flops.flops_causal(plan.config, task, *shape),
        }
        for task in ("forward", "train")
    }


def count_flops(plan: Plan, workers: Mapping[str, Worker]) -> dict[str, Any]:
    """The closed form beside each framework's own counter; plain kernels, uncompiled, as counters need it."""
    found: dict[str, Any] = {task: {"closed": work} for task, work in work_flops(plan).items()}
    for wing, worker in workers.items():
        plain = Execution("float32", plan.settings.device, threads=plan.threads)
        worker.ask("build", "counted", plan.recipe, plain)
        for task, what in (("forward", "forward"), ("train", "gradients")):
            counted = worker.ask("matmul_flops", "counted", what, *plan.batches[0][0].shape)
            found[task].setdefault("counted", {})[wing] = counted
        worker.ask("free", "counted")
    shape = plan.batches[0][0].shape
    for task, row in found.items():  # a wing may multiply more than there is to do
        due = {wing: flops.flops_full(plan.config, task, *shape, wing=wing) for wing in row["counted"]}
        row["equal"] = row["counted"] == due
    found["passed"] = all(row["equal"] for row in found.values())
    return found


def compile_seconds(first: Mapping[str, Mapping[str, float]], speed: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """First call minus steady median, by task and wing; never below 0."""
    return {
        task: {wing: max(0.0, own[task] - speed[task]["seconds"][wing]["median"]) for wing, own in first.items()}
        for task in TASKS
    }


def peaks(plan: Plan) -> dict[str, Any]:
    """Peak memory of training and of decoding, each wing in a fresh process of its own for each task."""
    found: dict[str, Any] = {
        "closed": {
            "weights": memory.weights(plan.config, plan.execution(plan.wings[0]).precision.param),
            "training": memory.training(plan.config, plan.execution(plan.wings[0]).precision.param),
            "parameters": params.count(plan.config),
        }
    }
    cells = [(task, wing) for task in MEMORY_TASKS for wing in plan.wings]
    together = 1 if plan.large or plan.settings.device != "cpu" else 2  # of small models memory holds two
    work = {cell: [functools.partial(_peak, plan, *cell)] for cell in cells}
    mine = object()
    before = owner.set(mine)
    try:
        measured = at_once(work, together)
    except BaseException:
        end_all(mine)
        raise
    finally:
        owner.reset(before)
    for (task, wing), answers in measured.items():
        if isinstance(answers, Exception):
            raise answers
        found.setdefault(task, {})[wing] = answers[0]
    return found


def _peak(plan: Plan, task: str, wing: str) -> dict[str, Any]:
    with Worker(
        wing, threads=plan.threads, device=plan.settings.device, memory=plan.execution(wing).allocator
    ) as worker:
        started = worker.ask("start")
        worker.ask("build", "only", plan.recipe, plan.execution(wing))
        worker.ask("start_training", "only", plan.train) if task == "train" else None
        prepare(plan, worker, "only", (task,))
        first = worker.ask("peak", "only", task, 1)
        worker.ask("first", "only", task)
        steady = worker.ask("peak", "only", task, STEADY_CALLS)
    return {"import_only": started["bytes_after_import"], "first_call": first, "steady": steady}
