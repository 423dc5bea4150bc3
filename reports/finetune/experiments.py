"""The book's experiments on classification, one after the other: a run in a process and folder of its own for each.

What an experiment is stands in `experiments.toml`. A run that is finished is not run again, and one that was
interrupted goes on.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from common import layout as layouts
from common import params
from common import run as runs
from common.commands.running import RESULTS
from common.config import TrainConfig, dumps, model_to_dict
from common.errors import UserError
from common.files import output_folder, write_text
from common.stopping import stoppable
from common.tokenizers import FROM_FILES, holds
from common.weights.checkpoint import load_checkpoint

TABLE, ASKED, LOG = "experiments.toml", "asked.toml", "train.log"
PARTS = ("train", "validation", "test")

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Experiment:
    """A row of `experiments.toml`: what it changes, and what was published of it, in percent and minutes."""

    number: int
    name: str
    options: Mapping[str, Any]
    published: Mapping[str, float]
    size: str = "small"
    random: bool = False
    same: int | None = None
    note: str = ""

    @property
    def words(self) -> str:
        """What it changes, in words."""
        own = {"weights": "random" if self.random else self.size} if self.random or self.size != "small" else {}
        told = [f"{name} {_word(value)}" for name, value in {**own, **self.options}.items()]
        return ", ".join(told) or "as by default"


@dataclass(frozen=True)
class Settings:
    """What was asked for: weights by size (None: not at hand), and settings that all runs share."""

    out: Path
    weights: Mapping[str, Path | None]
    shared: Mapping[str, Any]
    only: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an experiment: accuracies by part, seconds of its steps, parameters; or why it was left out."""

    experiment: Experiment
    left_out: str = ""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    texts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    learn: int = 0
    parameters: int = 0
    length: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain data; `baselines` and `texts` are those of all experiments and stand elsewhere."""
        own = {name: value for name, value in asdict(self).items() if name not in ("experiment", "baselines", "texts")}
        return {**asdict(self.experiment), "settings": self.experiment.words, **own}


def table() -> list[Experiment]:
    """The experiments in their order."""
    import tomllib

    text = resources.files("reports.finetune").joinpath(TABLE).read_text(encoding="utf-8")
    return [Experiment(**row) for row in tomllib.loads(text)["experiment"]]


def chosen(only: str | None) -> list[Experiment]:
    """Those whose numbers are named, in the order of the table; all without any."""
    every = table()
    if only is None:
        return every
    numbers = [one.strip() for one in only.split(",")]
    known = {str(one.number) for one in every}
    wrong = [one for one in numbers if one not in known]
    if wrong:
        raise UserError(f"--only names experiment {wrong[0]!r}; there are 1 to {len(every)}, as in 1,5,11.")
    return [one for one in every if str(one.number) in numbers]


def run(asked: Settings, tell: Tell, keep: Callable[[list[Outcome]], object]) -> list[Outcome]:
    """Run what is to be run; `keep` is given what there is after every experiment."""
    todo, out = chosen(asked.only), output_folder(asked.out)
    found: list[Outcome] = []
    for place, one in enumerate(todo, 1):
        told = f"{place} of {len(todo)}, experiment {one.number} ({one.name})"
        there = {other.experiment.number: other for other in found}
        why = left_out(one, asked)
        if why:
            found.append(Outcome(one, left_out=why))
            tell(f"{told}: left out, it {found[-1].left_out}")
        elif one.same in there:
            found.append(replace(there[one.same], experiment=one))
        else:
            folder = _trained(one, asked, out, lambda words, told=told: tell(f"{told}: {words}"))
            found.append(outcome(one, folder))
            accuracy = found[-1].accuracy
            tell(f"{told}: " + ", ".join(f"{part} {accuracy[part]:.2%}" for part in PARTS))
        keep(found)
    return found


def left_out(one: Experiment, asked: Settings) -> str:
    """Why it cannot be run as is asked for; nothing if it can."""
    if asked.weights[one.size] is None:
        return f"needs --weights-{one.size}"
    rows, own = _layout(asked).rows, one.options.get("batch-size", 0)
    return f"has batches of {own}, which data x shard = {rows} cannot deal out" if own % rows else ""


def command(asked: Settings) -> list[str]:
    """What starts a run: a layout of PyTorch has a process for each device, which torchrun starts."""
    count = _layout(asked).devices
    engine = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    several = count > 1 and asked.shared.get("backend", "torch") == "torch"
    return [sys.executable, *(engine if several else ()), "-m", "common.cli", "finetune", "classify"]


def _layout(asked: Settings) -> layouts.Layout:
    return layouts.Layout.parse(asked.shared.get("layout", ""))


def _trained(one: Experiment, asked: Settings, out: Path, tell: Tell) -> Path:
    """The folder of its finished run, which is run, or taken up, if need be."""
    folder, said = out / f"experiment-{one.number:02d}", _settings(one, asked, out)
    file = folder / ASKED
    if file.is_file() and file.read_text(encoding="utf-8") != said:
        raise UserError(f"{folder} holds experiment {one.number} with other settings; choose another --out.")
    if (folder / RESULTS).is_file():
        tell("finished before")
        return folder
    tell("goes on" if (folder / runs.CHECKPOINT).is_dir() else "begins")
    output_folder(folder)
    write_text(file, said)
    own = ["--settings", str(file), "--out", str(folder), "--auto-resume"]
    _call([*command(asked), *own], folder / LOG, one)
    return folder


def _call(words: list[str], log: Path, one: Experiment) -> None:
    """Run to the end; where a person watches, its bar is seen. Who stops this stops it, after a step."""
    with stoppable(), log.open("a") as file:
        before = file.tell()
        shown = None if sys.stderr.isatty() else file
        process = subprocess.Popen(words, stdout=file, stderr=shown, start_new_session=True)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code:
        told = log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
        told = [line for line in told if line.startswith("parallax: ")] or told  # torchrun adds its own words
        raise UserError(f"Experiment {one.number} failed: {''.join(told[-1:]).removeprefix('parallax: ')}")


def _settings(one: Experiment, asked: Settings, out: Path) -> str:
    """The settings of its run, as a file of them."""
    weights = asked.weights[one.size]
    found, record = runs.weights_of(weights)
    shared = dict(asked.shared)
    if "tokenizer" not in shared and record.get("tokenizer"):
        shared["tokenizer"] = record["tokenizer"]
    if one.random:
        config = out / f"{one.size}.json"
        write_text(config, dumps(model_to_dict(found.config)))
        shared["config"] = str(config)
        name = shared.get("tokenizer")
        if name in FROM_FILES and "vocab" not in shared and holds(weights, name):
            shared["vocab"] = weights
    else:
        shared["weights"] = weights
    own = {**shared, **one.options}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in own.items()}
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in sorted(plain.items()))


def outcome(one: Experiment, folder: Path) -> Outcome:
    """What a finished run says."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        accuracy = dict(results["accuracy"])
        model, texts = accuracy.pop("model"), {part: sum(results["texts"][part].values()) for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / RESULTS} is damaged; remove the folder, and call again.") from error
    there = load_checkpoint(folder / runs.CHECKPOINT)
    parameters = params.table(there.config)
    chosen = params.trained(there.config, TrainConfig.from_dict(there.training["train"]))
    return Outcome(
        one,
        accuracy=model,
        baselines=accuracy,
        texts=texts,
        seconds=sum(line["seconds"] for line in runs.read_log(folder / runs.LOG)),
        steps=there.training["step"],
        learn=sum(parameter.size for name, parameter in parameters.items() if chosen[name]),
        parameters=sum(parameter.size for parameter in parameters.values()),
        length=there.training["length"],
    )


def baselines(found: Iterable[Outcome]) -> Mapping[str, Mapping[str, float]]:
    """What a run said of simpler classifiers; they are the same for all."""
    return next((one.baselines for one in found if one.baselines), {})


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
