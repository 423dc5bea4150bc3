"""What every command that trains does around its steps: a run's folder, what may change when it goes on, checkpoints,
log, progress, patience."""

import contextlib
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from common import backend as door
from common import gpu, meter, params
from common import layout as layouts
from common import run as runs
from common.commands import groups, options, settings
from common.config import TrainConfig, preset
from common.data.windows import Batches
from common.errors import UserError
from common.files import write_text

RESULTS = "results.json"
SAMPLE = 64  # tokens of a sample

Numbers = dict[str, float]


@dataclass
class Task:
    """What one kind of training has of its own.

    `record` is what a run that goes on must know, beside its settings of training; `words` are the data in words.
    `evaluate` gives numbers for the log, "held_out" among them, the loss that says which checkpoint is best; `told`
    says them; with `before` it is asked before the first step, too. `epoch` gives those of a whole pass over the data,
    `prepare` makes what must be there before the first step, `finish` finds out what there is to know when all steps
    are done. `mfu` says whether the closed form of a training step is what a step does.
    """

    kind: str
    batches: Batches
    length: int
    record: dict[str, Any]
    words: str
    evaluate: Callable[[door.Model], Numbers]
    told: Callable[[Mapping[str, Any]], str]
    epoch: Callable[[door.Model], Numbers] | None = None
    before: bool = False
    sample: Callable[[door.Model], str] | None = None
    sample_every: int = 0
    prepare: Callable[[door.Model, Path], None] | None = None
    finish: Callable[[door.Model], dict[str, Any]] | None = None
    files: Callable[[Path], None] | None = None
    mfu: bool = False


@dataclass
class Running:
    """One call of a command that trains: its run's folder `out`, and `start`, from where it goes on (None: anew)."""

    context: typer.Context
    kind: str
    run: groups.Run
    how: groups.How
    positive: Mapping[str, int] = field(default_factory=dict)  # more options that are whole numbers > 0

    def __post_init__(self):
        run = self.run
        self.command = f"parallax {runs.COMMANDS[self.kind]}"
        with self._as_it_was():
            self.execution = self.how.execution(run.backend)
        self.leads = layouts.leads()
        self.show = options.show if self.leads else _silent
        counts = {"--eval-every": run.eval_every, **self.positive, "--save-every": run.save_every, "--keep": run.keep}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} is {value}; allowed is a whole number > 0.")
        self.out, self.start, self.automatic = run.out, None, False
        self.origin: dict[str, Any] = {}  # the record of the run that the weights at the start are from
        self.found: str | None = None  # the tokenizer whose vocabulary a new run is given without its name
        self.again = layouts.restarted()
        self.lenient = run.auto_resume or self.again  # a run that is done is no mistake

    def said(self, name: str) -> bool:
        """Whether the call says it, on the command line or in its file."""
        return self.context.get_parameter_source(name).name != "DEFAULT"

    def typed(self, name: str) -> bool:
        """Whether the command line says it."""
        return self.context.get_parameter_source(name).name == "COMMANDLINE"

    def one_of_both(self, plan: groups.Plan) -> None:
        """Take epochs or steps, each of which stands in place of the other: the command line goes before the file."""
        both = ("epochs", "steps")
        said = [name for name in both if self.typed(name)] or [name for name in both if self.said(name)]
        if len(said) == 2:
            raise UserError(f"--epochs {plan.epochs} stands in place of --steps; give one of them.")
        if "steps" not in said and plan.epochs is not None and plan.epochs < 1:
            raise UserError(f"--epochs {plan.epochs} stands in place of --steps, and is a whole number > 0.")
        if said == ["steps"]:
            plan.epochs = None

    def take_up(self, plan: groups.Plan, named: bool) -> None:
        """Find the run that this call goes on with, if any; `named` says that its model is no preset."""
        run, resume = self.run, self.run.resume
        there = (run.out / runs.CHECKPOINT).exists()
        self.automatic = resume is None and self.lenient and there
        if self.automatic:
            if not (run.out / settings.FILE).is_file():
                raise UserError(f"{run.out} holds a run without {settings.FILE}; go on with --resume {run.out}.")
            resume, self.start = run.out, runs.resume(run.out, self.kind)
            free = groups.free() | ({"epochs", "steps"} if plan.epochs is not None else {"epochs"})
            own = {"warmup_steps": plan.warm_up, **({"preset": None} if named else {})}
            other = settings.changed(self.context, run.out / settings.FILE, free, **own)
            if other:
                raise UserError(f"{run.out} holds a run with other settings: {'; '.join(other)}.")
        elif resume is not None:
            self.start = runs.resume(resume, self.kind)
            self._only_how(resume)
            other = there and self.said("out") and run.out.resolve() != resume.resolve()
            if other and self.again:
                resume, self.start = run.out, runs.resume(run.out, self.kind)
            elif other and self.typed("out"):
                raise UserError(f"{run.out} already holds a run; choose another --out.")
            elif not self.said("out") or other:  # the file may be that of the run from which this one was taken up
                self.out = resume
        self.resumed = resume

    def _only_how(self, folder: Path) -> None:
        """A resumed run takes what it trains from its checkpoint; only how and where it runs may be chosen."""
        stored = folder / settings.FILE
        fixed = settings.others(self.context, stored, groups.free(), "COMMANDLINE")
        if fixed:
            raise UserError(f"A resumed run keeps its settings; leave out {', '.join(fixed)}, or start a new run.")
        other = settings.others(self.context, stored, groups.free(), settings.FROM_FILE)
        if other and not stored.is_file():
            told = f"{folder} has no {settings.FILE} that the file could be held against"
            raise UserError(f"A resumed run keeps its settings, and {told}; leave out --settings.")
        if other:
            raise UserError(f"A resumed run keeps its settings, and the file has others: {'; '.join(other)}.")

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Where a run cannot go on as it was, on this machine or in another framework, say what it was told then, and
        what goes before that."""
        try:
            yield
        except UserError as error:
            was = {} if self.run.resume is None else groups.as_it_was(self.context, self.run.resume)
            plain = options.plain(self.run.backend, was, str(error))
            had = [name for name in plain if was[name] == getattr(self.how, name) and not self.typed(name)]
            if not had:
                raise
            told = settings.otherwise(self.context, {}, set(had))
            other = "".join(f" {plain[name]}" for name in had)
            text = str(error).removesuffix(".")
            raise UserError(f"{text}; the run was begun with{told}: say another way, as in{other}.") from error

    def _going_on(self) -> str:
        """The command that goes on with this run as it is now: it says what would not be found again by itself."""
        was, now = groups.as_it_was(self.context, self.out), self.execution
        meant = {name: getattr(now, name) for name in ("dtype", "attention", "layers", "compile")}
        fields = [text.partition("=")[0] for text in was.get("more", ())]
        meant["more"] = [f"{name}={getattr(now, name)}" for name in fields]
        other = settings.otherwise(self.context, was, groups.free() - groups.PLACE, meant)
        return f"{self.command} --resume {shlex.quote(str(self.out))}{other}"

    def model(
        self,
        asked: groups.Model,
        seed: int,
        tokenizer: str | None = None,
        vocab: Path | None = None,
        variant: str | None = None,
    ) -> runs.Start:
        """The model that a new run starts from: initial weights of a config, or weights that there are."""
        from common.commands import variations
        from common.tokenizers import FROM_FILES
        from common.tokenizers import tokenizer as of_name

        named = [one for one in ("preset", "config", "weights") if self.said(one)]
        if len(named) > 1:
            raise UserError(f"--{named[0]} and --{named[1]} each name a model; give one of them.")
        if asked.weights is None:
            config = preset(asked.preset) if asked.config is None else variations.read(asked.config)
            if asked.heads is not None:
                config = config.with_(num_heads=asked.heads)
            if variant is not None:
                _, config = variations.varied(config, variant)
            if tokenizer is None and vocab is not None:
                self.found = options.kind_in([vocab], config.vocab_size)
            sized = tokenizer or (self.found if asked.config is None else None)  # the file of a config says its size
            if sized in FROM_FILES:
                config = config.with_(vocab_size=of_name(sized, vocab).vocab_size)
            start = runs.Start(config, params.initialise(config, seed))
        elif variant is not None:
            raise UserError("--variant is for a new model, and --weights has one; leave one of them out.")
        else:
            found, self.origin = runs.weights_of(asked.weights, asked.heads)
            start = runs.Start(found.config, found.weights)
        if asked.dropout is not None:
            rates = dict.fromkeys(("dropout_embed", "dropout_attn", "dropout_shortcut"), asked.dropout)
            start.config = start.config.with_(**rates)
        return start

    def tokenizer(self, asked: groups.Model) -> str | None:
        """The tokenizer of a new run, once its model is there: by its name, that of the vocabulary that is given, or
        that of the run that the weights are from, which is told."""
        if asked.tokenizer is not None or asked.weights is None:
            return asked.tokenizer or self.found
        name = options.tokenizer_of(self.origin, asked.weights)
        if name is not None:
            self.show(f"{asked.weights} was trained with the tokenizer {name}, and so is this (--tokenizer names one).")
        return name

    def backend(self) -> door.Backend:
        """The implementation, if the folder is free for the run."""
        found = door.load(self.run.backend)
        self._nobody_else()
        return found

    def _nobody_else(self) -> None:
        """A new run finds no other one in its folder."""
        if self.resumed is None and (self.out / runs.CHECKPOINT).exists():
            raise UserError(f"{self.out} already holds a run; go on with --resume {self.out}, or choose another --out.")

    def counted(self, plan: TrainConfig, epochs: int | None, batches: Batches) -> TrainConfig:
        """The plan with as many steps as the epochs have, if they were told."""
        if epochs is None:
            return plan
        whole = epochs * batches.steps_per_epoch
        if self.automatic and whole != plan.steps:
            raise UserError(f"{self.out} holds a run of {plan.steps} steps, and {epochs} epochs are {whole}.")
        return plan.with_(steps=whole) if self.resumed is None else plan

    def go(self, task: Task, start: runs.Start, plan: TrainConfig, backend: door.Backend, own: dict[str, Any]) -> None:
        """Train; `own` are settings that were resolved, for the file of settings."""
        run, out, show, execution = self.run, self.out, self.show, self.execution
        until = plan.steps if run.until is None else min(run.until, plan.steps)
        unfinished = task.finish is not None and start.step == plan.steps and not (out / RESULTS).is_file()
        if start.step >= until and not self.lenient and not unfinished:
            raise UserError(f"The run is at step {start.step} and was to stop at {until}: there is nothing left to do.")

        runs.check_folder(out)
        board = options.tensorboard(out) if run.tensorboard and self.leads else contextlib.nullcontext()
        with self._as_it_was():
            model = backend.build(start.config, start.weights, execution)
            model.start_training(plan, start.slots, start.step)
        log, folder = list(start.log), None
        if self.leads:
            folder = runs.RunFolder(out, run.keep, run.keep_best, self.resumed, start.weights)
        kept, best = None, math.inf
        if run.keep_best and self.resumed is not None:
            kept, best = runs.best_of(self.resumed, log)
        name = gpu.name(execution.device) if execution.device != "cpu" else None
        speed = (
            meter.of_run(start.config, plan, task.length, execution, name)
            if task.mfu
            else meter.Meter(plan.batch_size * plan.accumulate * task.length, 0, None)
        )

        def save(step: int, best: bool = False) -> None:
            record = {
                "kind": task.kind,
                "step": step,
                "backend": run.backend,
                "execution": execution.to_dict(),
                "train": plan.to_dict(),
                **task.record,
                "data": task.batches.state(),
            }
            state = runs.State.of(model)  # all processes put it together
            if folder is not None:
                folder.save(state, record, log, best)

        done = start.step
        show(
            f"{params.count(start.config):,} parameters, {backend.title} on {_where(execution)}, {execution.dtype};"
            f" {task.words}; steps {start.step} to {until}"
        )
        alone = folder.alone() if folder is not None else contextlib.nullcontext()
        logged = folder.logged(log, show) if folder is not None else contextlib.nullcontext()
        with alone, logged, board as shown:
            self._nobody_else()  # since this process began
            if folder is not None:
                folder.sweep()
            if task.files is not None and self.leads:
                task.files(out)
            if kept is not None and folder is not None:
                folder.keep_as_best(kept)
            if self.resumed is None and self.leads:
                write_text(out / settings.FILE, settings.text(self.context, until=None, **own))
            elif self.leads and (self.resumed / settings.FILE).is_file() and not (out / settings.FILE).exists():
                write_text(out / settings.FILE, settings.moved(self.resumed / settings.FILE, out))
            if task.prepare is not None:
                task.prepare(model, out)
            if task.before:
                before = task.evaluate(model) if start.record is None else start.record.get("before")
                task.record["before"] = before
                if start.record is None:
                    show(f"at the start  {task.told(before)}")
            steps_of = runs.train(
                model,
                task.batches,
                plan,
                start=start.step,
                until=until,
                eval_every=run.eval_every,
                evaluate=task.evaluate,
                epoch=task.epoch,
            )
            label = (lambda step: f"loss {step.loss:.4f}{speed}") if self.leads else None
            with options.Patience(layouts.processes()[1] == 1) as patience:
                for step in options.progress(steps_of, until - start.step, label):
                    done = step.step + 1
                    speed.add(step.seconds, step.tokens)
                    line = {**step.to_dict(), "backend": run.backend, "tokens_per_second": speed.tokens_per_second}
                    if task.sample_every and done % task.sample_every == 0:
                        line["sample"] = task.sample(model)
                        show(f"step {done:>6}  {line['sample']!r}")
                    log.append({name: value for name, value in line.items() if value is not None})
                    if folder is not None:
                        folder.follow(log)
                    if shown is not None:
                        shown(done, log[-1])
                    better = step.held_out is not None and step.held_out < best
                    if step.held_out is not None:
                        best = min(best, step.held_out)
                    if step.found:
                        show(f"step {done:>6}  loss {step.loss:.4f}  {task.told(step.found)}{speed}")
                    if patience.asked and done < until:
                        save(done, better)
                        show(f"Stopped after {done} steps; go on with: {self._going_on()}")
                        raise KeyboardInterrupt
                    if done < until and (done % run.save_every == 0 or (better and run.keep_best)):
                        save(done, better)
                if done > start.step:
                    save(done, better)
            if task.finish is not None and done == plan.steps:
                results = {"kind": task.kind, "steps": done, "before": task.record.get("before"), **task.finish(model)}
                if self.leads:
                    write_text(out / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
                    show(f"What it found out at its end is in {out / RESULTS}.")
        if execution.layout:
            model.close()
        if not self.leads:
            return
        print(f"Step {done} of {plan.steps}: checkpoint and log are in {out}; see them with: parallax curves {out}")
        if done < plan.steps:
            print(f"Go on with: {self._going_on()} (any backend)")


def _silent(*parts: object) -> None:
    """For processes that do not lead: one tells for all."""


def _where(execution) -> str:
    """The devices of a run, in words."""
    return f"{execution.device} ({execution.layout})" if execution.layout else execution.device
