"""Options that several commands share, and what they mean."""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from common import allocator, gpu
from common import layout as layouts
from common.config import ATTENTION_KERNELS, MODES, PRESETS, STRATEGIES, Execution
from common.config import mode as mode_of
from common.errors import UserError, unknown

if TYPE_CHECKING:
    from common.data.tokens import TokenFile
    from common.weights.formats import Loaded

T = TypeVar("T")
BY_SIZE = {256: "bytes", PRESETS["gpt2-124m"].vocab_size: "gpt2"}  # tokenizers of models that say nothing else
OTHER_FORMS = ("bpe", "hf")  # tokenizers that also read the files of GPT-2's vocabulary

Backend = Annotated[str, typer.Option(help="Implementation: torch, jax, or numpy (the float64 oracle, small models).")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float64 or bfloat16.")]
Attention = Annotated[str | None, typer.Option(help="One of " + ", ".join(ATTENTION_KERNELS) + ": see README.")]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile or not (default: PyTorch runs eagerly, JAX compiles)."),
]
Layers = Annotated[
    str | None,
    typer.Option(help="loop, scan (JAX: one block is compiled for all layers) or checkpointed (less is kept)."),
]
Mode = Annotated[str, typer.Option(help="default, fast (what pays on a CPU), eager, …; several as in fast+eager.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One more field of Execution, as in loss=chunked (may be given again)."),
]
Layout = Annotated[
    str | None,
    typer.Option(help="Devices to train on, as in data=2 or shard=4,tensor=2: see README (default: one)."),
]
Threads = Annotated[int | None, typer.Option(help="Threads for computing (default: all cores).")]
TokenizerName = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="bytes, gpt2, bpe, book, book-greedy, words or hf (default: that of the weights' run, or that fits).",
    ),
]
Vocab = Annotated[Path | None, typer.Option(help="Folder of the tokenizer's vocabulary, where it needs one.")]
Adapter = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="Of several adapters this one, without the others (may be given again)."),
]
NoAdapters = Annotated[bool, typer.Option("--no-adapters", help="Leave adapters out: the base computes alone.")]


def execution(
    backend: str,
    device: str,
    dtype: str | None,
    attention: str | None = None,
    compile: bool | None = None,
    threads: int | None = None,
    layers: str | None = None,
    mode: str = "default",
    more: list[str] | None = None,
    layout: str | None = None,
) -> Execution:
    """The execution that was asked for: a mode, and what is said beside it. Sets thread counts in the environment,
    where frameworks read them at import.
    """
    said = {"attention": attention, "compile": compile, "threads": threads, "layers": layers, "layout": layout}
    said |= _fields(more or ())
    fields = mode_of(mode, backend) | {name: value for name, value in said.items() if value is not None}
    chosen = Execution.from_dict(
        {
            "dtype": dtype or ("float64" if backend == "numpy" else "float32"),
            "device": layouts.device_of(device, backend),
            **fields,
        }
    )
    layouts.check_processes(chosen.spread)
    os.environ.update(gpu.environment(os.environ, device))
    os.environ.update(layouts.environment(os.environ, backend, device, chosen.spread))
    allocator.restart_if_asked(chosen)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["NPROC"] = str(threads)
    return chosen


def plain(backend: str, was: Mapping[str, Any], told: str) -> dict[str, str]:
    """What a command line says to do without each way of running that is no plain one, of those that a run had and of
    which an error tells: by its name, or by that of a field that it sets."""
    usual = {"device": "cpu", "mode": "default"}
    said = {
        "device": "--device cpu",
        "mode": "--mode default",
        "more": "--set loss=plain",
        "attention": "--attention plain",
        "compile": "--no-compile" if was.get("compile") else "--compile",
        "layers": "--layers loop",
        **({"dtype": "--dtype float64"} if backend == "numpy" else {}),
    }
    mine = {name: words for name, words in said.items() if name in was and was[name] != usual.get(name)}
    return {name: words for name, words in mine.items() if _is_told(name, was[name], backend, told)}


def _is_told(name: str, value: Any, backend: str, told: str) -> bool:
    """Whether an error tells of an option, by a word of its value."""
    if name == "compile":
        return "compile" in told
    values = [text.partition("=")[2] for text in value] if name == "more" else [value]
    if name == "mode" and all(part in MODES for part in value.split("+")):
        values += [one for one in mode_of(value, backend).values() if isinstance(one, str) and one != "plain"]
    return any(re.search(rf"(?<!\w){re.escape(str(one))}(?!\w)", told) for one in values)


def _fields(texts: Iterable[str]) -> dict[str, str]:
    """{"loss": "chunked"} from "loss=chunked"; only strategies can be set so, the rest has options of its own."""
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text} gives no value; write NAME=VALUE, as in loss=chunked.")
        if name in vars(Execution()) and name not in STRATEGIES:
            raise UserError(f"--set {text}: {name} has an option of its own; write --{name} {value}.")
        if name not in STRATEGIES:
            raise unknown("field in --set", name, STRATEGIES)
        fields[name] = value
    return fields


def with_adapters(found: "Loaded", where: Path, chosen: list[str] | None, none: bool) -> "Loaded":
    """Weights with the adapters that were asked for, of those that they have: all, these (`chosen`), or none."""
    from common import adapters

    if chosen and none:
        raise UserError(f"--adapter {chosen[0]} and --no-adapters contradict each other; give one of them.")
    if not chosen and not none:
        return found
    have = [one.name for one in found.config.adapters]
    if not have:
        raise UserError(f"{where} has no adapters; leave out {'--no-adapters' if none else '--adapter'}.")
    for name in chosen or ():
        if name not in have:
            raise unknown("adapter", name, have)
    gone = tuple(name for name in have if name not in (chosen or ()))
    config, weights = adapters.without(found.config, found.weights, gone)
    return replace(found, config=config, weights=weights)


def tokenizer_of(record: Mapping[str, Any], where: Path) -> str | None:
    """The name of the tokenizer that a run was trained with, by its record; None where there is none."""
    name = record.get("tokenizer")
    if name is not None and not isinstance(name, str):
        raise UserError(f"The training record of {where} is damaged: see tokenizer.")
    return name


def kind_in(places: Iterable[Path], vocab_size: int) -> str | None:
    """The tokenizer whose vocabulary lies in the first of these folders that holds one, for a model of that size; None
    where there is none. For GPT-2's size it is none that reads GPT-2's own vocabulary too, which a folder may hold in
    several forms."""
    from common.tokenizers import kept

    left = OTHER_FORMS if BY_SIZE.get(vocab_size) == "gpt2" else ()
    return next((kind for place in places for kind in kept(place) if kind not in left), None)


def tokenizer_for(name: str | None, vocab: Path | None, vocab_size: int, near: Path | None = None):
    """The tokenizer by name, or whose vocabulary lies in the folder that is given or that of the weights, or has the
    model's size; it must fit into the model."""
    from common.tokenizers import holds, tokenizer

    if name is None:
        name = kind_in([one for one in (vocab, near) if one is not None], vocab_size)
        if name is None and vocab_size in BY_SIZE:
            name = BY_SIZE[vocab_size]
        elif name is None:
            raise UserError(f"No tokenizer has {vocab_size} tokens as this model does; name one with --tokenizer.")
    if vocab is None and near is not None and holds(near, name):
        vocab = near
    found = tokenizer(name, vocab)
    if found.vocab_size > vocab_size:
        raise UserError(
            f"Tokenizer {name!r} has {found.vocab_size} tokens, the model only {vocab_size}; choose one that fits."
        )
    return found


def check_tokens(found: "TokenFile", record: Mapping[str, Any], weights: Path) -> None:
    """Raise UserError if a token file is of another vocabulary than the weights: the one that lies beside them, or
    that of the run that made them, by its name."""
    from common.tokenizers import holds, tokenizer

    name, made = tokenizer_of(record, weights), found.head["tokenizer"]["name"]
    if name not in (None, made):
        told = f"The tokens in {found.name} are of tokenizer {made!r}, the weights in {weights} of {name!r}"
        raise UserError(f"{told}; make the token file anew, or name one with --tokenizer.")
    places = [weights] if name is None else [weights, weights.parent]  # a run's folder, or its checkpoint in it
    for place in [one for one in places if holds(one, made)][:1]:
        found.check(tokenizer(made, place))


def progress(steps: Iterable[T], total: int, label: Callable[[T], str] | None) -> Iterator[T]:
    """Pass steps on; where a person watches, a bar on stderr says how far it is, how long it takes, and `label`; there
    is none without a label."""
    if label is None:
        yield from steps
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    watched = {"disable": not console.is_terminal, "redirect_stdout": False}
    with Progress(*columns, console=console, transient=True, **watched) as bar:
        task = bar.add_task("starting", total=total)
        for step in steps:
            bar.update(task, advance=1, description=label(step))
            yield step


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function of (done, of how many, or None) that moves a bar on stderr where a person watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=None)
        yield lambda done, of: shown.update(task, completed=done, total=of)


class Patience:
    """Ctrl-C as a wish: `asked` turns True, and the work ends where nothing is half done. A second one ends it now, as
    the first one does where there is no patience: of several processes none would know when the others end."""

    def __init__(self, there: bool = True):
        self.there = there

    def __enter__(self) -> "Patience":
        self.asked = False
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        if self.asked or not self.there:
            raise KeyboardInterrupt
        self.asked = True
        show("Stopping after this step; press Ctrl-C again to stop at once and lose it.")


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Callable[[int, dict], None]]:
    """A function of (step, line of the log) that writes its numbers, and samples, where TensorBoard reads them."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboardX; install parallax[tensorboard], or say --no-tensorboard."
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, line: dict) -> None:
        for name, value in line.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, step)
        if "sample" in line:
            writer.add_text("sample", line["sample"], step)
        writer.flush()

    with contextlib.closing(writer):
        yield write


def show(*parts: object) -> None:
    """A line for people: on stderr, so that what a command produces can be piped."""
    import sys

    print(*parts, file=sys.stderr, flush=True)
