"""What fine-tuning runs found out, from their folders into one JSON file."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import params
from common import run as runs
from common.commands import settings
from common.commands.running import RESULTS
from common.config import TrainConfig
from common.errors import UserError
from common.files import read_toml
from common.weights.checkpoint import load_checkpoint
from reports.curves import plots

TIMES, ANSWERS, FILE = "time.json", "responses.json", "runs.json"
WHERE = ("out", "auto-resume", "keep", "keep-best", "tensorboard", "save-every", "threads", "eval-every", "backend")
HIDDEN = ("auto-resume", "keep", "keep-best", "tensorboard", "save-every", "until")  # of a command line
MODEL = ("num_layers", "embed_dim", "num_heads", "ff_dim", "context_length", "vocab_size")
SHOWN = 6  # answers that are kept


def collected(folders: Sequence[Path], about: str, prepared: Sequence[str] = ()) -> dict[str, Any]:
    """{"device", "about", "prepared": […], "runs": {name: …}, "pairs": […]} of runs by the names of their folders;
    `prepared` are the commands that made their data, if that is told."""
    found = {plots.label(folder, folders): one(folder) for folder in dict.fromkeys(folders)}
    logs = {plots.label(folder, folders): plots.read(folder) for folder in dict.fromkeys(folders)}
    told = {"prepared": list(prepared)} if prepared else {}
    return {"device": device(), "about": about, **told, "runs": found, "pairs": pairs(found, logs)}


def device() -> str:
    """This machine's processor, and how many threads it runs."""
    import os

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} threads"


def one(folder: Path) -> dict[str, Any]:
    """A run: its settings, its evaluations, its results, its size and its time."""
    log = plots.read(folder)
    there = load_checkpoint(folder / runs.CHECKPOINT)
    table, training = params.table(there.config), there.training or {}
    chosen = params.trained(there.config, TrainConfig.from_dict(training["train"]))
    asked = {name: _named(value) for name, value in read_toml(folder / settings.FILE).items()}
    made = {
        "kind": training.get("kind", "pretrain"),
        "backend": log[-1].get("backend"),
        "settings": asked,
        "command": command(training.get("kind", "pretrain"), asked),
        "steps": len(log),
        "of": training["train"]["steps"],
        "seconds": sum(line["seconds"] for line in log),
        "learn": sum(parameter.size for name, parameter in table.items() if chosen[name]),
        "parameters": sum(parameter.size for parameter in table.values()),
        "length": training["length"],
        "model": {name: getattr(there.config, name) for name in MODEL},
        "before": training.get("before"),
        "evaluations": [line for line in log if line.keys() & {"held_out", "epoch_held_out", "sample"}],
        "losses": [round(line["loss"], 6) for line in log],
    }
    for name, file in (("results", RESULTS), ("time", TIMES)):
        if (folder / file).is_file():
            made[name] = _read(folder / file)
    if (folder / ANSWERS).is_file():
        made["answers"] = _read(folder / ANSWERS)[:SHOWN]
    return made


def command(kind: str, asked: Mapping[str, Any]) -> str:
    """The command line of a run's settings, without what it takes for granted."""
    import typer
    from typer.main import get_command

    from common.commands.finetune import finetune
    from common.commands.train import train

    pretrain = typer.Typer()
    pretrain.command("train")(train)
    found = get_command(pretrain) if kind == "pretrain" else get_command(finetune).commands[kind]
    words = [f"parallax {runs.COMMANDS[kind]}"]
    for option in found.params:
        name = option.opts[0].lstrip("-")
        value = asked.get(name)
        if name in HIDDEN or name not in asked or value == option.default or str(value) == str(option.default):
            continue
        words += settings.words(option, value)
    return " ".join(words)


def _named(value: Any) -> Any:
    """A file by its name, where it lies at a place that only this machine has."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}).") from error


def pairs(found: Mapping[str, Mapping[str, Any]], logs: Mapping[str, plots.Log]) -> list[dict[str, Any]]:
    """Runs with the same settings in two implementations, and how far their losses, held-out losses and gradient norms
    are apart at most."""
    made, names = [], list(found)
    for place, a in enumerate(names):
        for b in names[place + 1 :]:
            same = _settings(found[a]) == _settings(found[b]) and found[a]["kind"] == found[b]["kind"]
            if same and found[a]["backend"] != found[b]["backend"]:
                both = list(zip(logs[a], logs[b], strict=False))
                apart = {
                    name: max((abs(x[name] - y[name]) for x, y in both if name in x and name in y), default=None)
                    for name in ("loss", "held_out", "grad_norm")
                }
                dtype = found[a]["settings"].get("dtype", "float32")
                made.append({"runs": [a, b], "steps": len(both), "dtype": dtype, "apart": apart})
    return made


def _settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run computes, without where it lies and what it tells."""
    return {name: value for name, value in run["settings"].items() if name not in (*WHERE, "until", "eval-batches")}
