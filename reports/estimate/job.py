"""From what was asked for to the estimates, and to the files of a folder."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common import files, variants
from common.accounting.estimate import Estimate, grid
from common.commands import variations
from common.config import Execution, ModelConfig
from common.errors import UserError, unknown
from common.variants.multi_head import KERNELS

LONGEST, MOST = 2**30, 2**20  # of contexts and of batches
SIZES = 64  # of each


@dataclass(frozen=True)
class Settings:
    """The command's options."""

    model: str | None = None
    file: Path | None = None
    changes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    dtype: str = "float32"
    attention: str = "plain"
    form: str = "text"


@dataclass(frozen=True)
class Result:
    """The models by name, the first of which the others are held against, and their estimates in order."""

    models: dict[str, ModelConfig]
    rows: list[Estimate]
    dtype: str
    attention: str

    @property
    def base(self) -> str:
        return next(iter(self.models))

    def reference(self, row: Estimate) -> Estimate:
        """The base model's estimate of the same size."""
        sizes = row.context, row.batch
        return next(one for one in self.rows if one.name == self.base and (one.context, one.batch) == sizes)


def produce(asked: Settings) -> Result:
    """Read models and sizes, and estimate all of them."""
    from reports.estimate import table

    if asked.form not in table.FORMATS:
        raise unknown("format", asked.form, table.FORMATS)
    _check_execution(asked)
    name, config = variations.chosen(asked.model, asked.file)
    config = variations.changed(config, asked.changes)
    models = {name: config}
    for text in asked.variants:
        own, variant = variations.varied(config, text)
        if own in models:
            raise UserError(f"Two models are named {own!r}; name a variant as in --variant 'NAME: …'.")
        models[own] = variant
    contexts = sizes("--context", asked.contexts, LONGEST) or [config.context_length]
    batches = sizes("--batch", asked.batches, MOST) or [1]
    return Result(models, grid(models, contexts, batches, asked.dtype, asked.attention), asked.dtype, asked.attention)


def _check_execution(asked: Settings) -> None:
    if any(asked.attention in table for table in variants.PATTERNS.values()):
        raise UserError(
            f"--attention names a kernel ({', '.join(KERNELS)}), but {asked.attention!r} is a kind of layer; write"
            f" --variant {asked.attention}."
        )
    Execution(dtype=asked.dtype, attention=asked.attention)


def sizes(option: str, texts: Iterable[str], most: int) -> list[int]:
    """Whole numbers in order, each once, from texts such as "1024", "8,16" and "1024:131072:2"."""
    found = {size for text in texts for part in text.split(",") for size in _range(option, part.strip(), most)}
    if len(found) > SIZES:
        raise UserError(f"{option} names {len(found)} sizes; allowed are up to {SIZES}.")
    return sorted(found)


def _range(option: str, text: str, most: int) -> list[int]:
    """One size, or from FIRST to LAST those that are each FACTOR (2 where it is not said) times the one before."""
    numbers = [int(part) for part in text.split(":")] if re.fullmatch(r"\d{1,12}(:\d{1,12}){0,2}", text, re.A) else []
    numbers = numbers * 2 if len(numbers) == 1 else numbers
    first, last, factor = [*numbers, 2][:3] if numbers else (0, 0, 0)
    if not (1 <= first <= last <= most and factor >= 2):
        raise UserError(
            f"{option} {text} is no size; write a whole number from 1 to {most:,}, or FIRST:LAST or FIRST:LAST:FACTOR,"
            " as in 1024:131072:2."
        )
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return found


def write(folder: Path, found: Result) -> list[Path]:
    """The tables and the plots as files; nothing there changes before all of them are made."""
    from reports.estimate import plots, table

    made = {name: text(found).encode("utf-8") for name, text in table.FILES.items()}
    for name, drawn in plots.drawn(found).items():
        made |= {f"{name}.{kind}": data for kind, data in drawn.items()}
    folder = files.output_folder(folder)
    for name, data in made.items():
        with files.replacing(folder / name) as temporary:
            temporary.write_bytes(data)
    return [folder / name for name in made]
