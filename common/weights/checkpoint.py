"""Parallax's own checkpoint: a folder with the config, the canonical weights and, if wanted, the training state."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import params
from common.config import ModelConfig, TrainConfig, dumps, model_from_dict, model_to_dict
from common.errors import UserError
from common.files import replacing_folder
from common.weights import gpt2_names, safetensors_io
from common.weights.damage import damaged, read_json
from common.weights.folders import require_replaceable
from common.weights.stored import Stored, StoredWeights, stored

FORMAT, VERSION = "parallax", 1
CONFIG, OPTIMIZER, TRAINING = "config.json", "optimizer.safetensors", "training.json"
FROZEN = "frozen"  # a folder above checkpoints with what none of them changes


@dataclass(frozen=True)
class Checkpoint:
    """A model at rest. `slots` are those of its optimizer (`params.slots`); `training` is the caller's own record
    (step, TrainConfig, state of the data)."""

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    slots: Mapping[str, np.ndarray] | None = None
    training: dict[str, Any] | None = None


def _check_slots(
    config: ModelConfig, tensors: Mapping[str, Stored], where: object, training: Mapping[str, Any] | None
) -> None:
    train = (training or {}).get("train")
    known = {name: train[name] for name in ("optimizer", "trained") if name in train} if isinstance(train, dict) else {}
    want = params.slots(config, TrainConfig(**known))
    faults = [f"{name} is missing" for name in want if name not in tensors]
    faults += [f"{name} is not part of it" for name in tensors if name not in want]
    faults += [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in want.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if faults:
        raise UserError(f"{where} does not fit the model: {'; '.join(faults)}.")


def save_checkpoint(
    folder: Path | str,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    slots: Mapping[str, np.ndarray] | None = None,
    training: Mapping[str, Any] | None = None,
    frozen: str | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Write a checkpoint folder; an older one there is replaced only when the new one is complete.

    With `frozen`, what `freeze` gave, the folder holds only what the run trains (`params.trained`). Files that belong
    `beside` weights, as a vocabulary does, are copied with them.
    """
    folder = require_replaceable(folder, anew=[file.name for file in beside])
    tensors = gpt2_names.from_canonical(gpt2_names.CANONICAL, config, weights)
    if frozen is not None:
        chosen = params.trained(config, TrainConfig.from_dict(training["train"]))
        tensors = {name: one for name, one in tensors.items() if chosen[name]}
    moments = None if slots is None else stored(slots)
    if moments is not None:
        _check_slots(config, moments, "The optimizer state to be written", training)
    try:
        record = None if training is None else dumps(dict(training))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The training record for {folder} cannot be written as JSON: {error}.") from error
    with replacing_folder(folder) as temporary:
        head = {"format": FORMAT, "version": VERSION, "model": model_to_dict(config)}
        head |= {} if frozen is None else {FROZEN: frozen}
        (temporary / CONFIG).write_text(dumps(head), encoding="utf-8")
        safetensors_io.write_folder(temporary, tensors)
        if moments is not None:
            safetensors_io.write_file(temporary / OPTIMIZER, moments)
        if record is not None:
            (temporary / TRAINING).write_text(record, encoding="utf-8")
        for file in beside:
            shutil.copyfile(file, temporary / file.name)


def freeze(above: Path, config: ModelConfig, weights: Mapping[str, np.ndarray], train: TrainConfig) -> str | None:
    """Keep what a run does not train in a folder above its checkpoints, once, and say what identifies it; None if it
    trains everything. What an earlier run left there is replaced if it is not the same."""
    chosen = params.trained(config, train)
    still = [name for name in gpt2_names.from_canonical(gpt2_names.CANONICAL, config, weights) if not chosen[name]]
    if not still:
        return None
    sha256 = hashlib.sha256()
    for name in still:
        sha256.update(f"{name} {weights[name].shape} {weights[name].dtype}\0".encode())
        sha256.update(np.ascontiguousarray(weights[name]).tobytes())
    identity = sha256.hexdigest()
    folder = above / FROZEN
    if not folder.is_dir() or _identity(folder) != identity:
        with replacing_folder(folder) as temporary:
            (temporary / CONFIG).write_text(dumps({"format": f"{FORMAT}-{FROZEN}", FROZEN: identity}), encoding="utf-8")
            safetensors_io.write_folder(temporary, stored({name: weights[name] for name in still}))
    return identity


def frozen_of(above: Path) -> str | None:
    """What identifies the weights that `freeze` has kept there, if any."""
    return _identity(above / FROZEN) if (above / FROZEN).is_dir() else None


def _identity(folder: Path) -> Any:
    return read_json(folder / CONFIG, "config of frozen weights").get(FROZEN)


def _frozen_of(folder: Path, identity: Any) -> Mapping[str, Stored]:
    """The tensors that a checkpoint shares with others of its run, from the folder above it."""
    places = [above / FROZEN for above in folder.absolute().parents[:2]]
    found = next((place for place in places if (place / CONFIG).is_file()), None)
    if found is None:
        raise UserError(
            f"{folder} holds only what its run trains; the folder {FROZEN!r} beside it, with the rest, is missing."
        )
    if _identity(found) != identity:
        raise UserError(f"{found} holds other weights than those that {folder} goes with.")
    return safetensors_io.open_folder(found)


def open_tensors(folder: Path | str) -> dict[str, Stored]:
    """The tensors of a checkpoint folder, and what it shares with others of its run."""
    _, frozen = _read_head(folder)
    shared = {} if frozen is None else _frozen_of(Path(folder), frozen)
    return {**shared, **safetensors_io.open_folder(folder)}


def read_config(folder: Path | str) -> ModelConfig:
    """The model config of a checkpoint folder."""
    return _read_head(folder)[0]


def _read_head(folder: Path | str) -> tuple[ModelConfig, Any]:
    """(config, what identifies the weights that it lacks, or None)."""
    path = Path(folder) / CONFIG
    head = read_json(path, "checkpoint config")
    if head.get("format") != FORMAT:
        raise damaged(path, "Parallax config", f'"format" is {json.dumps(head.get("format"))}, expected "{FORMAT}"')
    if head.get("version") != VERSION:
        raise UserError(f"{path} has version {head.get('version')!r}; this Parallax reads version {VERSION}.")
    if not isinstance(head.get("model"), dict):
        raise damaged(path, "Parallax config", '"model" is missing')
    try:
        return model_from_dict(head["model"]), head.get(FROZEN)
    except (UserError, TypeError) as error:
        raise damaged(path, "Parallax config", error) from error


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """A checkpoint whose weights and optimizer state are read when asked for; UserError if it is foreign or damaged."""
    folder = Path(folder)
    config, tensors = read_config(folder), open_tensors(folder)
    weights = gpt2_names.to_canonical(gpt2_names.CANONICAL, config, tensors, folder)
    slots = None
    training = read_json(folder / TRAINING, "training record") if (folder / TRAINING).exists() else None
    if (folder / OPTIMIZER).exists():
        moments = safetensors_io.open_file(folder / OPTIMIZER)
        _check_slots(config, moments, folder / OPTIMIZER, training)
        slots = StoredWeights(moments)
    return Checkpoint(config, weights, slots, training)
