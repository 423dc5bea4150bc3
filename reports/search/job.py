"""A search over settings of `parallax train`: every trial is a run in a process and folder of its own, Optuna chooses.

The study lies in a file beside the runs, so a search that was stopped goes on with it; one process at a time holds it.
"""

import csv
import io
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import run as runs
from common.commands.settings import FILE
from common.cores import usable_cores
from common.errors import UserError, unknown
from common.files import alone, output_folder, read_toml, replacing, write_text
from common.stopping import stoppable
from reports.curves import plots
from reports.search.following import Following

STUDY, REPORT, BEST, LOG = "study.log", "trials.csv", "best.toml", "train.log"
TABLE = "search"  # of the file: what is tried
REASON = "reason"  # why a trial failed
ENDED = "ended with its search"
SHOWN, DRAWN = 10, 6  # trials of the table, and of the plot
WARM = 5  # trials that are never stopped early
POLL = 0.2  # seconds
BOOK = {  # Raschka, appendix D's bonus: 12,960 runs if all were tried
    "batch-size": [2, 4, 8, 16],
    "dropout": [0.0, 0.1, 0.2],
    "warmup-steps": [10, 20, 30],
    "weight-decay": [0.1, 0.01, 0.0],
    "learning-rate": [1e-4, 5e-4, 1e-3, 5e-3],
    "initial-rate": [5e-5, 1e-4],
    "final-rate": [5e-5, 1e-5, 1e-4],
    "epochs": [5, 10, 15, 20, 25],
}
SPACES = {  # 5 % of the story are 270 tokens: one window held out
    "book": {
        "data": "the-verdict", "preset": "book-124m", "tokenizer": "gpt2", "length": 256, "held-out": 0.05,
        "decay": "all", "eval-every": 5, TABLE: BOOK,
    }
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    space: str
    out: Path
    data: str | None
    trials: int
    processes: int
    seed: int
    prune: bool


Tell = Callable[[str], object]


def run(asked: Settings, tell: Tell) -> Any:
    """Try until there are so many trials; the study. Reports are written whatever ends it. A second search in one
    folder is refused: each would take the other's trials for those of a search that is no more."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("parallax search needs the package optuna; install parallax[search].") from error
    for name in ("trials", "processes"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name} is {getattr(asked, name)}; allowed is a whole number > 0.")
    fixed, space = spaces(asked)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    told = (
        f"Another process is searching in {asked.out}; wait for it, choose another --out, or give it more --processes."
    )
    with alone(output_folder(asked.out) / runs.LOCK, told):
        return _searched(optuna, asked, tell, fixed, space)


def _searched(optuna: Any, asked: Settings, tell: Tell, fixed: dict[str, Any], space: dict[str, Any]) -> Any:
    study = _study(optuna, asked, fixed, space)
    done = len([one for one in study.trials if one.state.is_finished()])
    threads = max(1, len(usable_cores()) // asked.processes)

    running: list[Trying] = []
    try:
        with stoppable():
            while done < asked.trials or running:
                while done < asked.trials and len(running) < asked.processes:
                    trial, done = study.ask(), done + 1
                    chosen = {name: suggested(trial, name, what) for name, what in space.items()}
                    words = ", ".join(f"{name} {_shown(value)}" for name, value in chosen.items())
                    tell(f"trial {trial.number}: {words}")
                    running.append(Trying(trial, {"threads": threads, **fixed, **chosen}, asked.out))
                time.sleep(POLL)
                for one in [one for one in running if one.looked_at()]:
                    running.remove(one)
                    tell(f"trial {one.trial.number}: {_told(study, one)}")
    finally:
        for one in running:
            one.stop()
            study.tell(one.trial, state=optuna.trial.TrialState.FAIL)
        _report(study, asked.out)
    return study


def _told(study: Any, one: "Trying") -> str:
    """Tell the study how a trial ended; the same in words. One that fails is that, and the search goes on."""
    from optuna.trial import TrialState

    if one.failed is not None:
        one.trial.set_user_attr(REASON, one.failed)
        study.tell(one.trial, state=TrialState.FAIL)
        return f"failed: {one.failed}"
    if one.loss is None:
        study.tell(one.trial, state=TrialState.PRUNED)
        return "stopped early"
    study.tell(one.trial, one.loss)
    return f"held-out loss {one.loss:.4f}"


class Trying:
    """A trial whose run goes on in a process of its own; `loss` is the lowest held-out loss, None if it was stopped;
    `failed` says why it failed, if it has."""

    def __init__(self, trial: Any, values: Mapping[str, Any], out: Path):
        self.trial, self.folder, self._told = trial, _folder(out, trial.number), 0
        self._log = Following(self.folder / runs.LOG, "held_out")
        self.loss: float | None = None
        self.failed: str | None = None
        shutil.rmtree(self.folder, ignore_errors=True)
        output_folder(self.folder)
        own = {"eval-every": 50, **values}
        file = self.folder / "asked.toml"
        write_text(file, "".join(f"{name} = {json.dumps(value)}\n" for name, value in own.items()))
        words = [sys.executable, "-m", "common.cli", "train", "--settings", str(file), "--out", str(self.folder)]
        with (self.folder / LOG).open("w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def looked_at(self) -> bool:
        """Tell the study what the run has reached; whether it is over, or has been stopped because others do better.

        A run that ends while it trains has failed. One that is refused before (its settings are there when it begins)
        would be refused again and again: that raises UserError.
        """
        code = self.process.poll()  # before the log is read: it is whole then
        lines = self._log.read()
        for line in lines[self._told :]:
            self._told += 1
            if not math.isfinite(line["held_out"]):
                self.failed = f"The held-out loss after step {line['step']} is {line['held_out']}."
                self.stop()
                return True
            self.trial.report(line["held_out"], line["step"] + 1)
            if code is None and self.trial.should_prune():
                self.stop()
                return True
        if code is None:
            return False
        if code:
            self.failed = self._last_words(code)
            if not (self.folder / FILE).is_file():
                raise UserError(f"Trial {self.trial.number} failed: {self.failed}")
            return True
        self.loss = min(line["held_out"] for line in lines)
        return True

    def _last_words(self, code: int) -> str:
        if code < 0:
            return f"Signal {-code} ended it."
        last = (self.folder / LOG).read_text(errors="replace").strip().splitlines()[-1:]
        return "".join(last).removeprefix("parallax: ")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def spaces(asked: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of all trials, what is tried) of a file, or of a space by name."""
    path = Path(asked.space)
    if asked.space in SPACES:
        found = SPACES[asked.space]
    elif path.is_file():
        found = read_toml(path)
    elif path.suffix:
        raise UserError(f"There is no file {path}; give a TOML file, or the name of a space: {', '.join(SPACES)}.")
    else:
        raise unknown("space", asked.space, SPACES)
    space = found.get(TABLE)
    if not isinstance(space, dict) or not space:
        raise UserError(f"{asked.space} has no table [{TABLE}] that says what is tried.")
    for name, what in space.items():
        _check(name, what)
    fixed, tried = (_named(one, asked.space) for one in (found, space))
    del fixed[TABLE]
    both = sorted(fixed.keys() & tried.keys())
    if both:
        raise UserError(f"{asked.space} sets {both[0]!r} for all trials and tries it in [{TABLE}]; leave one out.")
    fixed |= {} if asked.data is None else {"data": asked.data}
    return fixed, tried


def _named(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings by the names that they have on the command line; doubles are refused."""
    found = {}
    for key, value in settings.items():
        name = key.replace("_", "-")
        if name in found:
            raise UserError(f"{where} sets {name!r} twice, once with - and once with _; leave one out.")
        found[name] = value
    return found


def _check(name: str, what: Any) -> None:
    """A list of values, or a range."""
    if isinstance(what, list) and what and all(isinstance(one, (int, float, str)) for one in what):
        return
    ends = [what.get(end) for end in ("low", "high")] if isinstance(what, dict) else []
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    if not ends or not numbers or ends[0] >= ends[1] or set(what) - {"low", "high", "log"}:
        raise UserError(f"[{TABLE}] {name} is {what!r}; allowed is a list of values, or low, high and perhaps log.")
    if what.get("log") and ends[0] <= 0:
        raise UserError(f"[{TABLE}] {name} has low {ends[0]}; on a logarithmic scale it must be > 0.")


def suggested(trial: Any, name: str, what: Any) -> Any:
    """A value of one setting."""
    if isinstance(what, list):
        return trial.suggest_categorical(name, what)
    kind = trial.suggest_int if all(isinstance(what[end], int) for end in ("low", "high")) else trial.suggest_float
    return kind(name, what["low"], what["high"], log=bool(what.get("log")))


def _study(optuna: Any, asked: Settings, fixed: Mapping[str, Any], space: Mapping[str, Any]) -> Any:
    """The study in the folder, made or taken up again; one of another space is refused."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(output_folder(asked.out) / STUDY)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=WARM) if asked.prune else optuna.pruners.NopPruner()
    study = optuna.create_study(
        study_name="search", storage=storage, load_if_exists=True, pruner=pruner,
        sampler=optuna.samplers.TPESampler(seed=asked.seed + len(storage.get_all_studies()), multivariate=False),
    )  # fmt: skip
    said = json.dumps([fixed, space], sort_keys=True)
    if study.user_attrs.setdefault("said", said) != said:
        raise UserError(f"{asked.out} holds a search of another space; choose another --out.")
    study.set_user_attr("said", said)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        if not _held(_folder(asked.out, trial.number)):  # its process is no more
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _folder(out: Path, number: int) -> Path:
    return out / f"trial-{number:04d}"


def _held(folder: Path) -> bool:
    """Whether a process trains there."""
    if not folder.is_dir():
        return False
    try:
        with runs.RunFolder(folder).alone():
            return False
    except UserError:
        return True


def _report(study: Any, out: Path) -> None:
    """All trials as a table, the settings of the best, and the curves of the best ones."""
    names = list(dict.fromkeys(name for trial in study.trials for name in trial.params))
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["trial", "state", "held_out", *names, REASON])
    for trial in study.trials:
        state = trial.state.name.lower()
        chosen = (trial.params.get(name, "") for name in names)
        rows.writerow([trial.number, state, trial.value, *chosen, reason(trial)])
    write_text(out / REPORT, file.getvalue())
    best = ranked(study)
    if not best:
        return
    with suppress(FileNotFoundError):  # a run that somebody has removed since
        shutil.copy2(_folder(out, best[0].number) / FILE, out / BEST)
    folders = [_folder(out, trial.number) for trial in best[:DRAWN]]
    found = {folder.name: plots.read(folder) for folder in folders if (folder / runs.LOG).is_file()}
    for kind, data in plots.drawn(found).items() if found else ():
        with replacing(out / f"curves.{kind}") as temporary:
            temporary.write_bytes(data)


def ranked(study: Any) -> list[Any]:
    """Trials that came to their end, the best first."""
    return sorted((one for one in study.trials if one.state.name == "COMPLETE"), key=lambda one: one.value)


def reason(trial: Any) -> str:
    """Why a trial failed; "" of all others."""
    return trial.user_attrs.get(REASON, ENDED) if trial.state.name == "FAIL" else ""


def table(study: Any) -> str:
    """The best trials in words, and those that failed."""
    best = ranked(study)
    counts = {name: sum(one.state.name == name for one in study.trials) for name in ("COMPLETE", "PRUNED", "FAIL")}
    lines = [f"{counts['COMPLETE']} trials finished, {counts['PRUNED']} stopped early, {counts['FAIL']} failed."]
    lines += [f"{trial.value:.4f}  trial {trial.number:>4}  {_words(trial)}" for trial in best[:SHOWN]]
    for trial in [one for one in study.trials if one.state.name == "FAIL"][-SHOWN:]:
        lines.append(f"failed  trial {trial.number:>4}  {_words(trial)}  ({reason(trial)})")
    return "\n".join(lines) + "\n"


def _words(trial: Any) -> str:
    return "  ".join(f"{name} {_shown(value)}" for name, value in trial.params.items())


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
