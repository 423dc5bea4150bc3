"""What runs inside a worker: one backend, its models by handle, and the clock right beside them.

Started by `worker.Worker` as `python -m benchmarks.harness.service NAME THREADS`; calls come in on the standard input
and answers go out on the standard output, both pickled (from and for the parent process alone).
"""

import gc
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.harness import compilation, contenders, events, following, gate, memory, peaks, timing, waiting
from benchmarks.harness.cells import DECODING
from benchmarks.harness.recipe import Recipe, write_arrays
from common import backend as door
from common.accounting import counters, tasks
from common.config import Execution, ModelConfig, SamplingConfig, TrainConfig
from common.errors import UserError

PLANS = {  # tasks -> the door's names for them
    **{name: name for name in tasks.PLANNED},
    **dict.fromkeys(DECODING, "decode"),
    "component": "gradients",
}
PATIENCE = 3  # samples that may look unfinished in a row
LATE, SETTLED = 0.05, 2e-3  # share of a sample, and seconds, that may be left to do after it; they count in any case


class Service:
    """The calls that a worker answers. Models and timed functions are kept under names that the caller chooses."""

    def __init__(self, name: str):
        self.name, self.models, self.timed, self.watch = name, {}, {}, None
        self.peak_watch = memory.Peak()

    def start(self) -> dict[str, Any]:
        """Import the framework: {title, versions, threads, import_seconds, bytes before and after}."""
        before, begun = memory.resident_bytes(), time.perf_counter()
        self.backend = contenders.load(self.name)
        seconds = time.perf_counter() - begun
        self.watch = compilation.Watch()
        return {
            "title": self.backend.title,
            "versions": self.backend.versions(),
            "threads": self.backend.threads(),
            "import_seconds": seconds,
            "bytes_before_import": before,
            "bytes_after_import": memory.resident_bytes(),
        }

    def build(self, handle: str, recipe: Recipe, execution: Execution) -> float:
        """Make a model; seconds it took."""
        weights, begun = recipe.weights(), time.perf_counter()
        self.models[handle] = self.backend.build(recipe.config, weights, execution)
        waiting.rest(execution.device)
        return time.perf_counter() - begun

    def free(self, *handles: str) -> None:
        """Drop models and what was prepared of them."""
        for handle in handles:
            self.models.pop(handle, None)
            for task in [task for task in self.timed if task[0] == handle]:
                del self.timed[task]
        gc.collect()

    def forward(self, handle: str, ids: np.ndarray) -> np.ndarray:
        return self.models[handle].forward(ids).logits

    def loss(self, handle: str, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        """The mean loss over equally large batches."""
        return float(np.mean([self.models[handle].loss(*batch) for batch in batches]))

    def gradients(self, handle: str, ids: np.ndarray, targets: np.ndarray, path: str) -> float:
        """Write the gradients to a file; the loss."""
        found = self.models[handle].gradients(ids, targets)
        write_arrays(path, found.grads)
        return found.value

    def start_training(self, handle: str, train: TrainConfig) -> None:
        self.models[handle].start_training(train)

    def train_step(self, handle: str, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
        """(loss, gradient norm, seconds) of one step."""
        begun = time.perf_counter()
        result = self.models[handle].train_step(inputs, targets)
        return result.loss, result.grad_norm, time.perf_counter() - begun

    def save_weights(self, handle: str, path: str) -> None:
        write_arrays(path, self.models[handle].weights())

    def generate(self, handle: str, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[list[int]]:
        return self.models[handle].generate(prompts, sampling)

    def matmul_flops(
        self, handle: str, what: str, batch: int, length: int, path: str = "", slots: int | None = None
    ) -> int:
        return int(self.models[handle].matmul_flops(what, batch, length, path, slots))

    def counted(self, config: ModelConfig, batch: int, length: int, device: str) -> list[dict[str, Any]]:
        """FLOPs of a forward pass and a training step by the closed form and by everyone's own count, plain kernels."""
        return [{**asdict(row), "equal": row.equal} for row in counters.rows(config, batch, length, device=device)]

    def prepare(
        self,
        handle: str,
        task: str,
        inputs: Any,
        targets: Any = None,
        sampling: SamplingConfig | None = None,
        path: str = "",
    ) -> None:
        """Get a task ready for the clock, on a batch; "decode" continues prompts, for all that can `generate`."""
        model = self.models[handle]
        if task == "decode":
            prompts = [list(row) for row in np.atleast_2d(np.asarray(inputs))]
            self.timed[handle, task] = lambda: {"tokens": model.generate(prompts, sampling)}
        elif hasattr(model, "prepare"):
            more = {"continue": {"sampling": sampling}, "component": {"path": path}}.get(task, {})
            self.timed[handle, task] = model.prepare(task, inputs, targets, **more)
        else:
            self.timed[handle, task] = judging(model, task, inputs, targets)

    def first(self, handle: str, task: str) -> float:
        """Seconds of a task's first call, which is when compilers work."""
        return self.begin(handle, task, 1)[0]["first"]

    def begin(self, handle: str, task: str, calls: int) -> tuple[dict[str, float | None], dict[str, Any]]:
        """The first calls of a task: ({trace, compile, first} in seconds, of the first alone; what they return).

        Tensors are returned as digests ("loss", of the second call "loss 2"), tokens as they are.
        """
        with self.watch as watch:
            begun = time.perf_counter()
            outputs = self.timed[handle, task]()
            waiting.rest(self.models[handle].execution.device, outputs)
            first = time.perf_counter() - begun
        shown = {}
        for number in range(1, calls + 1):
            outputs = self.timed[handle, task]() if number > 1 else outputs
            shown |= self._shown(outputs, task, "" if number == 1 else f" {number}")
        return {"trace": watch.trace, "compile": watch.compile, "first": first}, shown

    def again(self, handle: str, task: str) -> dict[str, Any]:
        """What one more call returns, as `begin` tells it: after a contest, the outputs must still be right."""
        return self._shown(self.timed[handle, task](), task)

    def prefilled(self, handle: str, ids: np.ndarray) -> dict[str, Any]:
        """The digest of the logits after prompts, by which a decoder shows how precisely it computes."""
        model = self.models[handle]
        known = hasattr(model, "prepare")
        logits = model.prepare("prefill", ids)()["logits"] if known else model.forward(ids).logits[:, -1]
        return {"prompt's logits": gate.digest(contenders.numpy(logits))}

    def chosen(self, handle: str, ids: np.ndarray) -> following.Choices:
        """The keys that layers choose for the queries of prompts."""
        return following.packed(self.models[handle].forward(ids, taps=(following.TAP,)).taps)

    def followed(self, handle: str, ids: np.ndarray, choices: following.Choices) -> tuple[dict[str, Any], float]:
        """Of the oracle: `prefilled` with these choices in the place of its own, and the worst regret of one."""
        model, listener = self.models[handle], following.Following(choices)
        logits = model.net(ids, door.positions_of(ids, None, 0, model.config), taps=listener)[0][:, -1]
        return {"prompt's logits": gate.digest(logits)}, listener.found["regret"]

    def _shown(self, outputs: dict[str, Any] | None, task: str, more: str = "") -> dict[str, Any]:
        waiting.done(outputs)
        tokens = task in DECODING
        return {
            f"{name}{more}": contenders.numpy(value).tolist() if tokens else gate.digest(contenders.numpy(value))
            for name, value in (outputs or {}).items()
        }

    def regret(self, handle: str, ids: np.ndarray, tokens: Sequence[Sequence[int]]) -> float:
        """How far below the largest logit the chosen tokens [B, N] lie at worst, over the RMS of the logits there."""
        rows = np.concatenate([ids, np.array(tokens, np.int32)], 1)
        logits = self.models[handle].forward(rows[:, :-1]).logits[:, ids.shape[1] - 1 :]
        chosen = np.take_along_axis(logits, rows[:, ids.shape[1] :, None], -1)[..., 0]
        return float(((logits.max(-1) - chosen) / np.sqrt(np.square(logits).mean(-1))).max())

    def resident(self) -> int:
        """Bytes of this process in memory now."""
        gc.collect()
        return memory.resident_bytes()

    def planned(self, handle: str, task: str, batch: int, length: int, path: str = "") -> tuple[int | None, str]:
        """Bytes that the framework says a task needs, and by which means; None where it has none. Of decoding, those of
        a step on a cache of `length` slots; of a component, at its path, those of its gradients."""
        model, what = self.models[handle], PLANS.get(task)
        if what is None or not hasattr(model, "planned_bytes"):
            return None, ""
        found = model.planned_bytes(what, batch, length, *([path] if path else []))
        return (None, "") if found is None else (found["planned"], model.PLAN)

    def settings(self, handle: str, *shape: Any) -> dict[str, Any]:
        """How a model really computes in calls of a cell's `shape`, read back from it where it can be."""
        return contenders.settings(self.backend, self.models[handle], *shape)

    def peaks(self, device: str, quick: bool) -> list[dict[str, Any]]:
        """The machine's peaks as this framework reaches them."""
        return peaks.measure(self.name, device, quick)

    def warm(self, handle: str, task: str, seconds: float, least: int, most: int) -> float:
        """Call until `seconds` have passed, `least` to `most` times after a first call, or once after it if that takes
        long; the median seconds of a call, without the first."""
        self._seconds(handle, task, 1)
        spent = [self._seconds(handle, task, 1)]
        while spent[0] < timing.LONG_CALL and (len(spent) < least or (sum(spent) < seconds and len(spent) < most)):
            spent.append(self._seconds(handle, task, 1))
        gc.collect()
        gc.freeze()
        return float(np.median(spent[-10:]))

    def sample(self, handle: str, task: str, calls: int, burn_in: int, gap: float) -> events.Sample:
        """Seconds per call over `calls` calls, after a pause and `burn_in` calls of its own that are not timed.

        Nothing may compile in here: both frameworks raise if it does.
        """
        device = self.models[handle].execution.device
        for _ in range(PATIENCE):  # a busy machine may keep an honest one from being seen as done, but not every time
            spent, late, device_ms = self._timed(self.timed[handle, task], calls, burn_in, gap, device)
            if late <= LATE * spent + SETTLED:
                return events.Sample((spent + late) / calls, None if device_ms is None else device_ms / calls)
        raise UserError(
            f"{task} said it was done after {spent:.3g} s and went on for {late:.3g} s: work that is not waited for"
            " is not timed."
        )

    def _seconds(self, handle: str, task: str, calls: int) -> float:
        return _seconds(self.timed[handle, task], calls, self.models[handle].execution.device)

    def _timed(
        self, run: Callable[[], Any], calls: int, burn_in: int, gap: float, device: str
    ) -> tuple[float, float, float | None]:
        """(seconds of the calls, seconds that a device went on after them, milliseconds by the device's events)."""
        time.sleep(gap)
        gc.disable()  # a collection in the middle of a sample would be timed as work
        try:
            with compilation.forbidden(), self.watch as watch:
                _seconds(run, burn_in, device)
                before = threading.enumerate()
                with events.Span(device) as span:
                    begun = time.perf_counter()
                    for _ in range(calls):
                        outputs = run()
                    spent = time.perf_counter() - begun
                waiting.done(outputs)
                late, told = waiting.join(before) + waiting.rest(device, outputs), span.milliseconds()
        finally:
            gc.enable()
        if watch.compile is not None:  # compiled what had been traced before
            raise UserError(compilation.COMPILED)
        return spent, late, told

    def peak(self, handle: str, task: str, calls: int) -> dict[str, Any]:
        """Highest memory while a task runs `calls` times; see `memory.Peak`."""
        gc.collect()
        with memory.Peak() as peak:
            self._seconds(handle, task, calls)
        return peak.found

    def watch_memory(self) -> None:
        """From here on until `watched_memory` the highest memory is kept in mind."""
        gc.collect()
        self.peak_watch = memory.Peak()
        self.peak_watch.__enter__()

    def watched_memory(self) -> dict[str, Any]:
        """Highest memory since `watch_memory`; see `memory.Peak`."""
        self.peak_watch.__exit__()
        return self.peak_watch.found


def judging(model: Any, task: str, inputs: np.ndarray, targets: np.ndarray | None) -> Callable[[], dict[str, Any]]:
    """A task of a model that is never timed, the oracle, by what it offers to everybody."""
    tasks = {
        "forward": lambda: {"logits": model.forward(inputs).logits},
        "prefill": lambda: {"logits": model.forward(inputs).logits[:, -1]},
        "loss": lambda: {"loss": np.float64(model.loss(inputs, targets))},
    }
    if task not in tasks:
        raise UserError(f"The oracle cannot judge {task!r}; it knows {', '.join(tasks)}.")
    return tasks[task]


def _seconds(run: Callable[[], Any], calls: int, device: str) -> float:
    """Seconds of calls, until what they give is there."""
    begun = time.perf_counter()
    for _ in range(calls):
        waiting.rest(device, run())
    return time.perf_counter() - begun


def _out_of_memory(error: Exception) -> bool:
    words = str(error)
    signs = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory", "Out of memory")
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)


def answer(service: Service, method: str, args: tuple, options: dict) -> tuple[str, Any]:
    """The outcome of one call: ("ok", value), ("user", sentence), ("memory", words) or ("fault", traceback)."""
    try:
        return "ok", getattr(service, method)(*args, **options)
    except UserError as error:
        return "user", str(error)
    except Exception as error:  # everything crosses to the parent, which raises it there
        if _out_of_memory(error):
            return "memory", (str(error).splitlines() or [type(error).__name__])[0][:200]
        return "fault", traceback.format_exc()


def _read(requests, inbox: queue.SimpleQueue) -> None:
    """Pass calls on; when the parent is gone, so are we, whatever is being computed."""
    while True:
        try:
            inbox.put(pickle.load(requests))
        except EOFError:
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, inbox), daemon=True).start()
    service = Service(name)
    while True:
        method, args, options = inbox.get()
        pickle.dump(answer(service, method, args, options), replies, protocol=5)
        replies.flush()


if __name__ == "__main__":
    main()
