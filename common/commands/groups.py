"""Options that belong together and that several commands take: a record of each group, and a decorator that makes a
command's options of its records' fields."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from common.commands import options, settings
from common.config import Execution, TrainConfig
from common.errors import UserError

_DEFAULT = TrainConfig()
TOLD = {"eval_windows", "eval_batches", "baseline", "sample_every", "prompt"}  # what runs say of themselves
PLACE = {"settings_file", "out", "vocab", "resume", "auto_resume", "until"}  # where it all lies; how far one call goes
MACHINE = {"threads", "layout"}  # what was free on it, and how processes were started
TRAINED = ("last-layer", "last-block", "last-two-blocks", "all", "lora")


def as_it_was(context: typer.Context, folder: Path) -> dict[str, Any]:
    """{parameter: value} of what a run that goes on is given again where the call says nothing: all that may be
    another, but for what is of one call or of one machine. A folder without settings has none."""
    stored = folder / settings.FILE
    found = settings.read(context, stored, free() - PLACE - MACHINE) if stored.is_file() else {}
    if found.get("backend") == "numpy":
        found.setdefault("dtype", "float64")  # it has no other
    return found


def _resumed(context: typer.Context, folder: Path | None) -> Path | None:
    """Make what a run had the defaults of this call, whose file goes before it."""
    if folder is not None:
        context.default_map = {**as_it_was(context, folder), **(context.default_map or {})}
    return folder


@dataclass
class Run:
    """Where a run lies, and what it tells and keeps: free to be another when it goes on."""

    settings_file: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            is_eager=True,
            callback=settings.of_file,
            help="TOML file whose keys are these options; what the command line says goes before it.",
        ),
    ] = None
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoint and log.")] = Path("out/train")
    resume: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=_resumed,
            help="Folder of a run to go on with, made by any backend: as it was, where nothing else is said.",
        ),
    ] = None
    auto_resume: Annotated[
        bool,
        typer.Option(help="Go on with this run if --out holds it; torchrun's restarts do so anyway."),
    ] = False
    backend: options.Backend = "torch"
    until: Annotated[int | None, typer.Option(help="Stop early, before this step; resume goes on.")] = None
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on held-out data.")] = 50
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200
    keep: Annotated[int, typer.Option(help="Checkpoints to keep: the newest ones.")] = 1
    keep_best: Annotated[bool, typer.Option(help="Keep the one with the lowest held-out loss.")] = False
    tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard.")] = False


@dataclass
class Model:
    """The model that a run starts from."""

    preset: Annotated[str, typer.Option(help="Model to start anew: nano, gpt2-124m, book-124m, …")] = "nano"
    config: Annotated[Path | None, typer.Option(help="Model to start anew: a JSON file, as for estimate.")] = None
    weights: Annotated[Path | None, typer.Option(help="Start from these weights (or this run) instead.")] = None
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the weights cannot tell.")] = None
    dropout: Annotated[float | None, typer.Option(help="One rate for all three places.")] = None
    tokenizer: options.TokenizerName = None
    vocab: options.Vocab = None


@dataclass
class Plan:
    """The fields of TrainConfig, and epochs in place of steps."""

    steps: Annotated[int, typer.Option(help="Steps of the whole schedule.")] = _DEFAULT.steps
    epochs: Annotated[int | None, typer.Option(help="Times that all data are seen, in place of steps.")] = None
    batch_size: Annotated[int, typer.Option(help="Windows (or rows) per micro-batch.")] = _DEFAULT.batch_size
    accumulate: Annotated[int, typer.Option(help="Micro-batches per step.")] = _DEFAULT.accumulate
    optimizer: Annotated[str, typer.Option(help="adamw, or muon for the matrices inside layers.")] = _DEFAULT.optimizer
    momentum: Annotated[float, typer.Option(help="Muon's decay of the mean gradient.")] = _DEFAULT.momentum
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = _DEFAULT.learning_rate
    schedule: Annotated[str, typer.Option(help="cosine, linear, constant or constant_with_warmup.")] = _DEFAULT.schedule
    warmup_steps: Annotated[
        int | None, typer.Option(help=f"Linear warm-up (default: {_DEFAULT.warmup_steps}; constant has none).")
    ] = None
    initial_rate: Annotated[float, typer.Option(help="Rate at which the warm-up begins.")] = _DEFAULT.initial_rate
    final_rate: Annotated[float | None, typer.Option(help="Rate at the end (default: a tenth of the peak).")] = None
    beta1: Annotated[float, typer.Option(help="AdamW's decay of the mean gradient.")] = _DEFAULT.beta1
    beta2: Annotated[float, typer.Option(help="AdamW's decay of the mean squared gradient.")] = _DEFAULT.beta2
    adam_eps: Annotated[float, typer.Option(help="AdamW's epsilon.")] = _DEFAULT.adam_eps
    weight_decay: Annotated[float, typer.Option(help="Decoupled decay.")] = _DEFAULT.weight_decay
    decay: Annotated[str, typer.Option(help="What decays: matrices, or all (as in the book).")] = _DEFAULT.decay
    clip_norm: Annotated[float, typer.Option(help="Limit of the gradient norm; 0 is none.")] = _DEFAULT.clip_norm
    clip_from: Annotated[int, typer.Option(help="First step whose gradients are clipped.")] = _DEFAULT.clip_from
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.")] = _DEFAULT.seed

    @property
    def warm_up(self) -> int:
        """Steps of warm-up, also if nothing is said about them."""
        if self.warmup_steps is None:
            return 0 if self.schedule == "constant" else _DEFAULT.warmup_steps
        return self.warmup_steps

    def train_config(self, **more: Any) -> TrainConfig:
        """The settings of the run, if epochs do not say how many steps they are."""
        if self.schedule == "constant" and self.warm_up:
            raise UserError(
                f"--schedule constant has no warm-up; leave out --warmup-steps {self.warm_up}, or choose"
                " --schedule constant_with_warmup."
            )
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "epochs"}
        own["warmup_steps"] = self.warm_up
        own["final_rate"] = self.learning_rate / 10 if self.final_rate is None else self.final_rate
        return TrainConfig(**{**own, "clip_norm": self.clip_norm or None, **more})


@dataclass
class Learning:
    """Which parameters learn, and the adapter if it is one that does."""

    train: Annotated[str, typer.Option(help="What learns: " + ", ".join(TRAINED) + ".")] = "all"
    rank: Annotated[int, typer.Option(help="lora: rank of the adapters.")] = 8
    alpha: Annotated[float, typer.Option(help="lora: alpha; adapters are scaled by alpha / rank.")] = 8.0
    lora_dropout: Annotated[float, typer.Option(help="lora: dropout before the adapters.")] = 0.0
    targets: Annotated[
        list[str] | None,
        typer.Option(help="lora: linear maps, as in '*.q_proj' (may be given again; default: all, as in the book)."),
    ] = None
    rslora: Annotated[bool, typer.Option(help="lora: scale by alpha / sqrt(rank).")] = False
    dora: Annotated[bool, typer.Option(help="lora: DoRA, whose rows have lengths that learn.")] = False


@dataclass
class Ways:
    """Where and how it is computed."""

    device: options.Device = "cpu"
    dtype: options.Dtype = None
    mode: options.Mode = "default"
    more: options.Set = None
    attention: options.Attention = None
    compile: options.Compile = None
    layers: options.Layers = None
    threads: options.Threads = None

    def execution(self, backend: str) -> Execution:
        """See `options.execution`."""
        return options.execution(backend, **vars(self))


@dataclass
class How(Ways):
    """The same for training, which several devices may share; free to be another when a run goes on."""

    layout: options.Layout = None


def names(*groups: type) -> set[str]:
    """The names of the groups' options."""
    return {one.name for group in groups for one in fields(group)}


def free() -> set[str]:
    """The names of the options that may be others when a run goes on."""
    return names(Run, How) | TOLD | {"vocab"}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all fields of its records as options; a record's own default says theirs."""
    hints = get_type_hints(command, include_extras=True)
    flat, records = [], {}
    for one in inspect.signature(command).parameters.values():
        kind = hints[one.name]
        if is_dataclass(kind):
            own = get_type_hints(kind, include_extras=True)
            records[one.name] = kind
            for field in fields(kind):
                default = getattr(one.default, field.name)
                flat.append(one.replace(name=field.name, default=default, annotation=own[field.name]))
        else:
            flat.append(one.replace(annotation=kind))

    def called(**given: Any) -> None:
        for name, kind in records.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {one.name: one.annotation for one in flat} | {"return": None}
    called.__signature__ = inspect.Signature([one.replace(kind=one.KEYWORD_ONLY) for one in flat])
    return called
