"""Every form of weights behind three verbs: detect, load, convert."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config import ModelConfig
from common.errors import UserError, unknown
from common.weights import checkpoint, gpt2_names, huggingface, pth, safetensors_io, tensorflow
from common.weights.checkpoint import save_checkpoint
from common.weights.damage import read_json
from common.weights.infer import config_of, scheme_of
from common.weights.stored import Stored, StoredWeights

STATE_DICT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Loaded:
    """A model found on disk: its config, its canonical weights (read when asked for), the kind of place it was in."""

    config: ModelConfig
    weights: StoredWeights
    kind: str


@dataclass(frozen=True)
class Kind:
    """One form of weights on disk: what it is, how its raw tensors are opened, and which config it states, if any."""

    title: str
    tensors: Callable[[Path], dict[str, Stored]]
    config: Callable[[Path], ModelConfig] | None = None


KINDS: dict[str, Kind] = {
    "parallax": Kind("Parallax checkpoint", checkpoint.open_tensors, checkpoint.read_config),
    "hf": Kind("Hugging Face folder", safetensors_io.open_folder, huggingface.read_config),
    "openai": Kind("OpenAI TensorFlow checkpoint", tensorflow.open_openai, tensorflow.read_config),
    "safetensors": Kind("safetensors file", safetensors_io.open_file),
    "pth": Kind("PyTorch state dict", pth.open_pth),
}


def detect(path: Path | str) -> str:
    """The kind of weights at a path: "parallax", "hf", "openai", "safetensors" or "pth"."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is nothing at {path}; give a folder of weights, a .safetensors file or a .pth file.")
    if path.is_dir():
        return _detect_folder(path)
    if path.name.endswith(".index.json"):
        raise UserError(f"{path} is an index of shards; give the folder that holds it.")
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in STATE_DICT_SUFFIXES:
        return "pth"
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if start[:4] == b"PK\x03\x04":
        return "pth"
    if start[8:] == b"{":
        return "safetensors"
    raise UserError(f"{path} is neither a safetensors file nor a PyTorch state dict.")


def _detect_folder(path: Path) -> str:
    if (path / "config.json").is_file():
        values = read_json(path / "config.json", "config file")
        return "hf" if "format" not in values and "model_type" in values else "parallax"
    if (path / "hparams.json").is_file() or (path / "checkpoint").is_file():
        return "openai"
    raise UserError(f"{path} holds no config.json and no hparams.json, so it is no folder of weights.")


def load(path: Path | str, *, heads: int | None = None, tie: bool | None = None) -> Loaded:
    """The model at a path, of whatever kind; its tensors are checked against the model's table before any is read.

    Bare files have no config: it is inferred, with `heads` where the shapes match no preset, and with `tie` to take a
    head that equals the embedding as tied. Raises UserError for anything missing, damaged or misshapen.
    """
    path = Path(path)
    kind = detect(path)
    read_config = KINDS[kind].config
    if read_config is None:
        tensors = KINDS[kind].tensors(path)
        scheme, config = config_of(tensors, path, heads, tie)
    else:
        config = read_config(path)
        if heads not in (None, config.num_heads):
            raise UserError(f"{path} says it has {config.num_heads} heads, not {heads}; leave heads out.")
        if tie not in (None, config.tie_embeddings):
            config = config.with_(tie_embeddings=tie)
        tensors = KINDS[kind].tensors(path)
        scheme = scheme_of(tensors, path)
    return Loaded(config, gpt2_names.to_canonical(scheme, config, tensors, path), kind)


def classes_of(path: Path | str, found: Loaded) -> list[str] | None:
    """What the classes of a classifier are called, where its folder says so: for each a name of its own."""
    record = (checkpoint.load_checkpoint(path).training or {}) if found.kind == "parallax" else {}
    names = huggingface.read_classes(path) if found.kind == "hf" else record.get("classes")
    sound = isinstance(names, list) and len(names) == found.config.num_labels == len(set(map(str, names)))
    return [str(name) for name in names] if sound else None


@dataclass(frozen=True)
class Target:
    """A form that can be written: its usual names, whether others may be asked for, and how it is written from
    (path, config, weights, scheme, max_shard_bytes, names of classes)."""

    names: str
    free: bool
    write: Callable[
        [Path, ModelConfig, Mapping[str, np.ndarray], gpt2_names.Scheme, int | None, list[str] | None], None
    ]


TARGETS: dict[str, Target] = {
    "hf": Target(
        "hf", False, lambda path, config, weights, _, *more: huggingface.write_hf(path, config, weights, *more)
    ),
    "parallax": Target("canonical", False, lambda path, config, weights, *_: save_checkpoint(path, config, weights)),
    "safetensors": Target(
        "hf",
        True,
        lambda path, config, weights, scheme, *_: safetensors_io.write_file(
            path, gpt2_names.from_canonical(scheme, config, weights)
        ),
    ),
    "pth": Target(
        "book",
        True,
        lambda path, config, weights, scheme, *_: pth.write_pth(
            path, gpt2_names.from_canonical(scheme, config, weights)
        ),
    ),
}


def _target_kind(target: Path, to: str | None) -> str:
    if to is None:
        by_suffix = {".safetensors": "safetensors"} | dict.fromkeys(STATE_DICT_SUFFIXES, "pth")
        return by_suffix.get(target.suffix, "hf")
    if to not in TARGETS:
        raise unknown("kind of target", to, TARGETS)
    return to


def convert(
    source: Path | str,
    target: Path | str,
    *,
    to: str | None = None,
    names: str | None = None,
    heads: int | None = None,
    tie: bool | None = None,
    max_shard_bytes: int | None = None,
) -> Path:
    """Write the model at `source` to `target` in another form and return the target.

    The form is `to` ("hf", "parallax", "safetensors", "pth") or follows from the suffix: `.pth` and `.safetensors` are
    files, all else is a Hugging Face folder. `names` is a naming scheme for files (state dicts use the book's). An
    existing target is replaced only when the new one is complete; a source is never overwritten.
    """
    source, target = Path(source), Path(target)
    kind = _target_kind(target, to)
    form = TARGETS[kind]
    if names is not None and names not in gpt2_names.SCHEMES:
        raise unknown("naming scheme", names, gpt2_names.SCHEMES)
    if names not in (None, form.names) and not form.free:
        raise UserError(f"A target of kind {kind!r} always uses the names {form.names!r}, not {names!r}.")
    if max_shard_bytes is not None and kind != "hf":
        raise UserError(f"A target of kind {kind!r} is a single file; only 'hf' can be sharded.")
    keep_apart(source, target)
    found = load(source, heads=heads, tie=tie)
    classes = classes_of(source, found)
    if form.free:
        _refuse_what_a_file_cannot_say(found.config, target)
    form.write(target, found.config, found.weights, gpt2_names.SCHEMES[names or form.names], max_shard_bytes, classes)
    return target


def _refuse_what_a_file_cannot_say(config: ModelConfig, target: Path) -> None:
    """A file of tensors has no config: what neither shapes nor GPT-2's own values tell would be lost."""
    usual = {"activation": "gelu_tanh", "norm_eps": 1e-5, "num_labels": None, **gpt2_names.PLAIN}
    lost = [f"{name} {getattr(config, name)!r}" for name, value in usual.items() if getattr(config, name) != value]
    if lost:
        raise UserError(f"{target} would lose {' and '.join(lost)}: a file of tensors has no config; give a folder.")


def keep_apart(source: Path, target: Path) -> None:
    """Refuse targets whose writing would destroy the source, or the state of a training run."""
    if (target / checkpoint.TRAINING).exists():
        raise UserError(f"{target} holds the state of a training run, which would be lost; give another target.")
    here, there = source.resolve(), target.resolve()
    if here == there or (target.exists() and source.exists() and target.samefile(source)):
        raise UserError(f"{target} is the source itself; give another target.")
    if there in here.parents:
        raise UserError(f"{target} holds the source {source}; give another target.")
    if target.exists() and here in there.parents:
        raise UserError(f"{target} is part of the source {source}; give another target.")
