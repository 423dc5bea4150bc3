"""A training run behind the door: data, steps, evaluation, log, checkpoints; the same code drives either wing.

A run lives in a folder: `checkpoint/` (a Parallax checkpoint with optimizer and data state), older ones in
`checkpoints/step-…/` and the best in `best/` if they are kept, and `log.jsonl` (a line a step, once it is done). Any
backend can take up what any other has left.
"""

import contextlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common import backend as door
from common.config import WITHOUT_CACHE, ModelConfig, SamplingConfig, TrainConfig
from common.data import gutenberg, tokens
from common.data.corpora import NAMED, Corpus, corpus, split
from common.data.windows import Batches, Windows
from common.errors import UserError
from common.files import alone, append, output_folder, replacing_folder, settled, write_text
from common.weights import formats
from common.weights.checkpoint import FROZEN, freeze, frozen_of, load_checkpoint, save_checkpoint

CHECKPOINT, OLDER, BEST, LOG, LOCK = "checkpoint", "checkpoints", "best", "log.jsonl", ".lock"
HALF = re.compile(rf"\.({CHECKPOINT}|{BEST}|{FROZEN}|{re.escape(LOG)}|step-\d+)\.\w{{8}}")  # see common/files.py
# by the kind of a run, as its record has it
COMMANDS = {"pretrain": "train"} | {kind: f"finetune {kind}" for kind in ("classify", "instruct", "prefer")}
HELD_OUT = 0.1  # the share, where nothing is said
EVALUATED = 8  # windows of held-out text per evaluation, and at once
PROMPT = 16  # tokens of held-out text that a sample goes on from


@dataclass
class Data:
    """A tokenized corpus or token file, cut into training windows (batched) and held-out windows."""

    text: Corpus | tokens.TokenFile
    batches: Batches
    held_out: Windows


def prepare_data(
    source: str,
    tokenizer,
    length: int,
    train: TrainConfig,
    state: dict | None = None,
    share: float = HELD_OUT,
    stride: int | None = None,
) -> Data:
    """Read, tokenize, split and window a corpus, or map a token file; `state` takes up the order of an earlier run, and
    such a `share` at the end is held out. What is trained on may overlap, by a `stride` shorter than the length."""
    if tokens.holds(source):
        text = tokens.read(source)
        text.check(tokenizer)
        kept, held_out = split(text.ids, share)
    else:
        shards = None if source in NAMED else gutenberg.prepared(Path(source).expanduser())
        if shards is not None:  # as plain text what parts books would be 13 characters
            make = f"parallax corpus tokens {shards} --tokenizer {tokenizer.name}"
            raise UserError(f"{source} holds prepared books; make a token file of them ({make}), and train on that.")
        text = corpus(source)
        kept, held_out = map(tokenizer.encode, split(text.text, share))
    windows = Windows(kept, length, stride)
    if state is None:
        batches = Batches(windows, train.batch_size, seed=train.seed, accumulate=train.accumulate)
    else:
        batches = Batches.resume(windows, state)
    return Data(text, batches, Windows(held_out, length))


def held_out_loss(model: door.Model, windows: Windows, count: int = EVALUATED) -> float:
    """Mean loss in nats over the first `count` held-out windows, of which EVALUATED are computed at once."""
    count, total = min(count, len(windows)), 0.0
    for start in range(0, count, EVALUATED):
        inputs, targets = windows.gather(np.arange(start, min(start + EVALUATED, count)))
        total += len(inputs) * model.loss(inputs, targets)
    return total / count


def perplexity(loss: float) -> float:
    """exp of a loss: the size of an equally uncertain uniform choice."""
    return float(np.exp(loss))


@dataclass
class Step:
    """One line of the log; `seconds` are those of the step itself, without evaluation, in which its `tokens` were seen.
    `found` is what an evaluation after it gave: "held_out", the loss on held-out data, and whatever else."""

    step: int
    loss: float
    grad_norm: float
    rate: float
    seconds: float
    tokens: int = 0
    found: Mapping[str, float] = field(default_factory=dict)

    @property
    def held_out(self) -> float | None:
        return self.found.get("held_out")

    def to_dict(self) -> dict[str, Any]:
        own = {"step": self.step, "loss": self.loss, "grad_norm": self.grad_norm, "rate": self.rate}
        return {**own, "seconds": self.seconds, **self.found}


def train(
    model: door.Model,
    batches: Batches,
    settings: TrainConfig,
    *,
    start: int,
    until: int,
    eval_every: int,
    evaluate: Callable[[door.Model], Mapping[str, float]],
    epoch: Callable[[door.Model], Mapping[str, float]] | None = None,
) -> Iterator[Step]:
    """Train from step `start` up to `until`; the model has been told with `start_training`. `evaluate` is asked every
    so many steps and after the last one, `epoch` when all data have been seen once more."""
    for index in range(start, until):
        inputs, targets = next(batches)
        begun = time.perf_counter()
        result = model.train_step(inputs, targets)
        seconds = time.perf_counter() - begun
        for what, number in (("loss", result.loss), ("gradient norm", result.grad_norm)):
            if not np.isfinite(number):
                windows = ", ".join(map(str, batches.latest.ravel().tolist()))
                told = f"The {what} of step {index} is {number} (windows {windows} of the data)"
                raise UserError(f"{told}; lower the learning rate, clip more, or look at this text.")
        due = (index + 1) % eval_every == 0 or index + 1 == until
        found = dict(evaluate(model)) if due else {}
        if epoch is not None and batches.position == 0:
            found |= epoch(model)
        yield Step(index, result.loss, result.grad_norm, settings.rate(index), seconds, inputs.size, found)


def sample(model: door.Model, tokenizer, data: Data, prompt: str | None, count: int, seed: int) -> str:
    """`count` tokens that go on from a prompt, or from the start of the held-out text, drawn with `seed`."""
    ids = tokenizer.encode(prompt) if prompt else data.held_out.gather(np.arange(1))[0][0, :PROMPT]
    ids = np.asarray(ids)[-model.config.context_length + 1 :]
    how = {"temperature": 0.8, "top_k": 40, "overflow": "crop", "tokens": tokenizer.vocab_size}
    drawn = SamplingConfig(count, seed=seed, cache=model.execution.attention not in WITHOUT_CACHE, **how)
    (row,) = model.generate([ids.tolist()], drawn)
    return tokenizer.decode(np.asarray(row))


def check_folder(path: Path) -> None:
    """Refuse a place that cannot become a run's folder, before any work is done; nothing is made yet."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give a folder for the results.")


class State(NamedTuple):
    """What a checkpoint keeps of a model. All processes that train it put it together, and one has and writes it."""

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    slots: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: door.Model) -> "State":
        spread = model.execution.layout
        return cls(model.config, *(model.state() if spread else (model.weights(), model.optimizer_slots())))


class RunFolder:
    """Where a run keeps its newest checkpoint, `keep` - 1 older ones, the best if wanted, and its log; what it does not
    train is kept once, beside them."""

    def __init__(
        self,
        path: Path,
        keep: int = 1,
        keep_best: bool = False,
        resumed: Path | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ):
        """`resumed` is the folder of the run that goes on here; `weights` are those at its start, for what stays as it
        is is kept as it was given, whatever the precision of a run."""
        self.path, self.keep, self.keep_best = output_folder(path), keep, keep_best
        self.checkpoint, self.older, self.best = self.path / CHECKPOINT, self.path / OLDER, self.path / BEST
        self.log_path, self.lines = self.path / LOG, 0  # so many are written for good
        self.followed = 0  # so many stand in the file, where all in it are of this run
        self.weights, self.frozen = weights, None  # what identifies the weights that stay, once that is known
        if resumed is not None:
            if (resumed / FROZEN).is_dir() and not (self.path / FROZEN).is_dir():
                _link(resumed / FROZEN, self.path / FROZEN)
            self.frozen = (frozen_of(self.path),)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against other processes; one that is killed holds nothing."""
        with alone(
            self.path / LOCK, f"Another process is training in {self.path}; wait for it, or choose another --out."
        ):
            yield

    def sweep(self) -> None:
        """Take away what a process that was killed while it wrote here has left; for who holds the folder alone. What
        was there before may lie in a folder with `.old.` in its name (where names cannot change places), and stays."""
        for one in (*self.path.glob(".*"), *self.older.glob(".*")):
            if HALF.fullmatch(one.name):
                shutil.rmtree(one) if one.is_dir() else one.unlink()

    def save(self, state: "State", record: dict[str, Any], log: list[dict], best: bool = False) -> None:
        """Write log and checkpoint, each all or nothing; the checkpoint before stays where that many are kept, and
        `best` says that this is the best one until now.

        The log is first, whole: lines behind the checkpoint are not read by who goes on (`resume`), but nobody could
        have lines before it again. Who is killed before the best is kept finds it by `best_of`.
        """
        if self.keep > 1 and self.checkpoint.is_dir():
            _link(self.checkpoint, self.older / f"step-{load_checkpoint(self.checkpoint).training['step']:08d}")
        if self.frozen is None:  # what is not trained is stored once
            weights = state.weights if self.weights is None else self.weights
            self.frozen = (freeze(self.path, state.config, weights, TrainConfig.from_dict(record["train"])),)
            self.weights = None
        self.write_log(log)
        save_checkpoint(self.checkpoint, *state, record, *self.frozen)
        if best and self.keep_best:
            self.keep_as_best(self.checkpoint)
        if self.keep > 1:
            for old in sorted(self.older.glob("step-*"))[: -(self.keep - 1)]:
                shutil.rmtree(old)

    def write_log(self, log: Sequence[dict]) -> None:
        """Write the log alone, which may be ahead of the checkpoint; lines that stand there already stay, for those who
        follow the file."""
        if not (log and self.followed == len(log) and settled(self.log_path)):
            write_text(self.log_path, "".join(map(_line, log)))
        self.lines = self.followed = len(log)

    def follow(self, log: Sequence[dict]) -> None:
        """Write the newest line of the log, for who follows it; all of them where the file may have others, as that of
        a run that goes on has behind its checkpoint. On a full disk no half of a line stays."""
        if self.followed and self.followed == len(log) - 1:
            self.followed = 0  # until this one is whole
            append(self.log_path, _line(log[-1]))
        else:
            write_text(self.log_path, "".join(map(_line, log)))
        self.followed = len(log)

    @contextlib.contextmanager
    def logged(self, log: Sequence[dict], show: Callable[[str], None]) -> Iterator[None]:
        """Whatever ends a run before its time, the lines that its `log` has got by then are written."""
        self.lines = len(log)
        try:
            yield
        except BaseException:
            if len(log) > self.lines:
                with contextlib.suppress(UserError):  # what ended the run is what is told
                    self.write_log(log)
                    show(f"The log of {len(log)} lines is written; see it with: parallax curves {self.path}")
            raise

    def keep_as_best(self, checkpoint: Path) -> None:
        """Keep a checkpoint, this run's or the one's that it goes on with, as the best."""
        if checkpoint != self.best:
            _link(checkpoint, self.best)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _link(source: Path, target: Path) -> None:
    """A second name for the files of a checkpoint, which are never written to; copies where there are no links."""
    target.parent.mkdir(exist_ok=True)
    with replacing_folder(target) as temporary:
        for file in source.iterdir():
            try:
                os.link(file, temporary / file.name)
            except OSError:
                shutil.copy2(file, temporary / file.name)


def best_of(folder: Path, log: Sequence[dict]) -> tuple[Path | None, float]:
    """The checkpoint with the lowest held-out loss that a run's folder still has, best/ or the newest one, and its loss
    by the log; (None, infinity) if neither was evaluated. What the log alone has is no checkpoint."""
    held_out = {line["step"] + 1: line["held_out"] for line in log if line.get("held_out") is not None}
    found, lowest = None, math.inf
    for checkpoint in (folder / BEST, folder / CHECKPOINT):
        if checkpoint.is_dir():
            loss = held_out.get((load_checkpoint(checkpoint).training or {}).get("step"), math.inf)
            found, lowest = (checkpoint, loss) if loss < lowest else (found, lowest)
    return found, lowest


@dataclass
class Start:
    """From where a run starts: a config, weights, and for a resumed run everything it had."""

    config: ModelConfig
    weights: Any
    slots: Any = None
    record: dict[str, Any] | None = None
    log: tuple[dict, ...] = ()

    @property
    def step(self) -> int:
        return self.record["step"] if self.record else 0


def resume(folder: Path, kind: str = "pretrain") -> Start:
    """What a run's folder holds; a run of another kind is refused."""
    inner = folder / CHECKPOINT
    if not inner.is_dir():
        raise UserError(f"{folder} holds no run to resume: there is no folder {CHECKPOINT!r} in it.")
    found = load_checkpoint(inner)
    if found.slots is None or found.training is None:
        raise UserError(f"{inner} holds weights but no training state; start from it with --weights instead.")
    other = found.training.get("kind", "pretrain")
    if other != kind and other in COMMANDS:
        raise UserError(f"{folder} holds a run of `parallax {COMMANDS[other]}`; go on with that command.")
    wrong = [key for key, type_ in RECORD.items() if not isinstance(found.training.get(key), type_)]
    if not isinstance(found.training.get("held_out", HELD_OUT), float):
        wrong.append("held_out")
    if wrong or found.training["step"] < 0:
        raise UserError(f"The training record in {inner} is damaged: see {', '.join(wrong) or 'step'}.")
    log = read_log(folder / LOG, found.training["step"]) if (folder / LOG).is_file() else ()
    return Start(found.config, found.weights, found.slots, found.training, log)


RECORD = {"step": int, "train": dict, "data": dict, "source": str, "tokenizer": str, "length": int}


def read_log(path: Path, until: float = math.inf) -> tuple[dict, ...]:
    """The lines of the steps before `until`; a damaged line is named. A last line that has no end is being written, or
    who wrote it was killed: it is none, if the steps that are asked for stand before it."""
    entries, after = [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            after = entry["step"] + 1
            if entry["step"] < until:
                entries.append(entry)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) > 1 and not line.endswith("\n") and (until == math.inf or after >= until):
                break
            raise damaged(path, number) from error
    return tuple(entries)


def damaged(path: Path, number: int) -> UserError:
    """What is told of a line of a log that cannot be read."""
    return UserError(f"Line {number} of {path} is damaged; mend it, or move the log away.")


def weights_of(path: Path, heads: int | None = None) -> tuple[formats.Loaded, dict[str, Any]]:
    """Weights of any kind, or those of a run's folder, with the run's record if there is one."""
    inner = path / CHECKPOINT
    path = inner if (inner / "config.json").is_file() else path
    found = formats.load(path, heads=heads)
    if found.kind == "parallax":
        return found, load_checkpoint(path).training or {}
    classes = formats.classes_of(path, found)
    return found, {} if classes is None else {"classes": classes}
