"""What lies in a file or folder of weights: every tensor, the totals, and which model and naming scheme they fit."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.config import ModelConfig, model_to_dict
from common.errors import UserError
from common.weights import checkpoint, gpt2_names, safetensors_io
from common.weights.damage import read_json
from common.weights.formats import KINDS, detect
from common.weights.infer import config_of, nearest_preset
from common.weights.stored import Stored

SHOWN_DIFFERENCES = 10
NEAR = 3  # fields in which a config may differ from a preset that is still worth naming


@dataclass(frozen=True)
class TensorRow:
    """One tensor as it lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Match:
    """A known name and what keeps it from fitting exactly; nothing, if it does."""

    name: str
    differences: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exact": self.exact}

    def sentence(self) -> str:
        if self.exact:
            return f"{self.name}, exactly"
        more = len(self.differences) - SHOWN_DIFFERENCES
        rest = f"; and {more} more" if more > 0 else ""
        return f"{self.name}, except: {'; '.join(self.differences[:SHOWN_DIFFERENCES])}{rest}"


@dataclass(frozen=True)
class Inspection:
    """A look at weights; nothing but headers and names has been read. `config` is stated or inferred, if it can be."""

    path: str
    kind: str
    tensors: tuple[TensorRow, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    scheme: Match | None = None
    preset: Match | None = None
    config: ModelConfig | None = None
    notes: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements of all tensors, buffers included."""
        return sum(math.prod(row.shape) for row in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.tensors)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(name, dtype, shape, bytes) of every tensor, as text for a table."""
        return [(r.name, r.dtype, " x ".join(map(str, r.shape)) or "scalar", f"{r.bytes:,}") for r in self.tensors]

    def summary(self) -> list[tuple[str, str]]:
        """What is to be said besides the tensors: (what, text)."""
        lines = [("path", self.path), ("kind", KINDS[self.kind].title)]
        lines += [("names", self.scheme.sentence() if self.scheme else "no known scheme")]
        lines += [("preset", self.preset.sentence() if self.preset else "none is near")]
        lines += [(f"metadata {key}", value) for key, value in self.metadata.items()]
        lines += [("note", note) for note in self.notes]
        totals = {"tensors": len(self.tensors), "elements": self.elements, "bytes": self.bytes}
        return lines + [(what, f"{total:,}") for what, total in totals.items()]

    def to_text(self) -> str:
        """The whole inspection as plain text, columns aligned."""
        rows = [("name", "dtype", "shape", "bytes"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        body = [
            f"{name:<{widths[0]}}  {dtype:<{widths[1]}}  {shape:<{widths[2]}}  {size:>{widths[3]}}"
            for name, dtype, shape, size in rows
        ]
        width = max(len(what) for what, _ in self.summary())
        return "\n".join([*(f"{what:<{width}}  {text}" for what, text in self.summary()), "", *body]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain data for JSON."""
        return {
            "path": self.path,
            "kind": self.kind,
            "scheme": self.scheme and self.scheme.to_dict(),
            "preset": self.preset and self.preset.to_dict(),
            "config": None if self.config is None else model_to_dict(self.config),
            "metadata": self.metadata,
            "notes": list(self.notes),
            "elements": self.elements,
            "bytes": self.bytes,
            "tensors": [asdict(row) for row in self.tensors],
        }


def inspect(path: Path | str) -> Inspection:
    """Look at weights of any kind; those of foreign models are listed too. UserError where the file is damaged."""
    path = Path(path)
    kind = detect(path)
    tensors = KINDS[kind].tensors(path)
    rows = tuple(TensorRow(name, t.dtype.name, t.shape, t.nbytes) for name, t in tensors.items())
    config, shapes, notes = _configs(path, kind, tensors)
    scheme = gpt2_names.recognise(tensors)
    unknown = () if config else ("num_heads",)
    return Inspection(
        path=str(path),
        kind=kind,
        tensors=rows,
        metadata=_metadata(path, kind),
        scheme=None if scheme is None else Match(scheme.name, _differences(scheme, shapes, tensors)),
        preset=None if shapes is None else _preset(shapes, unknown),
        config=config,
        notes=(*notes, *_training(path, kind)),
    )


def _configs(
    path: Path, kind: str, tensors: Mapping[str, Stored]
) -> tuple[ModelConfig | None, ModelConfig | None, list[str]]:
    """The config (stated or inferred), one that has at least its shapes, and notes on what could not be told."""
    read = KINDS[kind].config
    try:
        config = config_of(tensors, path)[1] if read is None else read(path)
        return config, config, []
    except UserError as error:  # the tensors are still worth a look
        note = str(error)
    try:
        return None, config_of(tensors, path, heads=1)[1], [note]  # one head fits every width
    except UserError:
        return None, None, [note]


def _differences(
    scheme: gpt2_names.Scheme, config: ModelConfig | None, tensors: Mapping[str, Stored]
) -> tuple[str, ...]:
    if config is None:
        return ("the sizes of the model cannot be told",)
    if config.num_layers > len(tensors):
        return (f"{len(tensors)} tensors are too few for {config.num_layers} layers",)
    kept = gpt2_names.without_buffers(scheme, tensors)
    try:
        return tuple(gpt2_names.faults(gpt2_names.expected(scheme, config, kept), kept))
    except UserError as error:
        return (str(error).rstrip("."),)


def _preset(config: ModelConfig, unknown: tuple[str, ...]) -> Match | None:
    name, differences = nearest_preset(config, unknown)
    if len(differences) > NEAR:
        return None
    return Match(name, tuple(f"{key} {has} instead of {wants}" for key, (has, wants) in differences.items()))


def _metadata(path: Path, kind: str) -> dict[str, str]:
    file = path / safetensors_io.SINGLE if path.is_dir() else path
    return safetensors_io.metadata(file) if kind != "pth" and file.is_file() else {}


def _training(path: Path, kind: str) -> list[str]:
    if kind != "parallax":
        return []
    notes = []
    if (path / checkpoint.OPTIMIZER).is_file():
        moments = safetensors_io.open_file(path / checkpoint.OPTIMIZER)
        notes.append(f"{len(moments)} tensors of optimizer state, {sum(t.nbytes for t in moments.values()):,} bytes")
    if (path / checkpoint.TRAINING).is_file():
        notes.append(f"training record with {', '.join(read_json(path / checkpoint.TRAINING, 'training record'))}")
    return notes
