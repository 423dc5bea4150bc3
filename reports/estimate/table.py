"""The estimates as tables: for a terminal of 80 columns, as Markdown, and as CSV with every number in full."""

import csv as comma
import io
from collections.abc import Callable, Iterable
from dataclasses import astuple, fields
from typing import Any

from common.accounting.estimate import Estimate, saving
from common.accounting.memory import ITEM_BYTES
from common.accounting.parts import decoding
from common.config import PRECISIONS
from reports.estimate.job import Result

NONE = "—"  # no closed form
UNITS = ("", "k", "M", "G", "T", "P", "E")
WIDE = 80
HEADS = (
    "Model", "Context", "Batch", "Parameters", "Active", "Forward FLOPs", "Training FLOPs", "FLOPs of a token",
    "Weights", "Training state", "Kept activations", "Cache", "Smaller cache",
)  # fmt: skip


def scaled(value: int | None, unit: str) -> str:
    """A number with four digits and a power of a thousand: "17.18 GB"; those below a thousand in full."""
    if value is None:
        return NONE
    power = min(len(UNITS) - 1, (len(str(value)) - 1) // 3)
    return f"{value / 1000**power:.4g} {UNITS[power]}{unit}".rstrip()


def size(value: int | None) -> str:
    """Bytes: 1 GB is 10^9 of them."""
    return scaled(value, "B")


def smaller(found: Result, row: Estimate) -> str:
    """How many times smaller than the base model's its cache is, and what that saves: "4.00 × (75.00 %)"."""
    base = found.reference(row)
    if row.name == base.name or not base.cache or not row.cache:
        return ""
    times, share = saving(base.cache, row.cache)
    return f"{times:.2f} × ({100 * share:.2f} %)"


def text(found: Result) -> str:
    """The models, then their costs size by size, then what the numbers mean."""
    from rich.console import Console, Group
    from rich.text import Text

    parts: list[Any] = [_models(found), *_sizes(found), *(Text(note) for note in notes(found))]
    out = io.StringIO()
    Console(file=out, width=WIDE, color_system=None, force_terminal=False).print(Group(*parts))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _models(found: Result) -> Any:
    """What depends on neither context nor batch, where no learned positions grow."""
    from rich.text import Text

    first = found.rows[: len(found.models)]
    sparse = any(row.active != row.parameters for row in first)
    title = f"{found.base} in {found.dtype}, attention kernel {found.attention}"
    table = _table(title, "", "parameters", *(["active"] if sparse else []), "weights", "training state")
    for row in first:
        counts = [row.parameters, *([row.active] if sparse else [])]
        table.add_row(Text(row.name), *(f"{count:,}" for count in counts), size(row.weights), size(row.state))
    return table


def _sizes(found: Result) -> Iterable[Any]:
    """A table for each size, or one for all sizes of a single model."""
    from rich.text import Text

    groups: dict[str, list[tuple[str, Estimate]]] = {}
    several = len(found.models) > 1
    for row in found.rows:
        size_of = f"{row.context:,} tokens × {row.batch:,}"
        title, label = (size_of, row.name) if several else (found.base, size_of)
        groups.setdefault(title, []).append((label, row))
    for title, rows in groups.items():
        heads = ("forward", "training", "one token", "kept", "cache", *(["smaller"] if several else []))
        table = _table(title, "", *heads)
        for label, row in rows:
            flops = [scaled(value, "") for value in (row.forward, row.training, row.decode)]
            less = [smaller(found, row).partition(" (")[0]] if several else []
            table.add_row(Text(label), *flops, size(row.kept), size(row.cache), *less)
        yield table


def notes(found: Result) -> list[str]:
    """What the numbers mean, and what is not as the models say."""
    base = found.base
    told = [
        "forward, training, one token (more in every row, on a full cache): FLOPs of matrix products with all scores,"
        " as the kernels compute them; the CSV has those of visible pairs alone, too.",
        "kept: bytes of activations that PyTorch's eager training keeps for the backward pass. 1 GB is 10^9 bytes.",
    ]
    if len(found.models) > 1:
        told.append(f"smaller: how many times less than the cache of {base}.")
    if unknown := [name for name in found.models if any(r.kept is None for r in found.rows if r.name == name)]:
        told.append(f"{NONE}: what {', '.join(unknown)} keeps has no closed form.")
    forms: dict[str, list[str]] = {}
    for name, config in found.models.items():
        for form in decoding(config).values():
            forms.setdefault(form, []).append(name)
    told += [f"one token of {', '.join(names)}: {form}, as in the mode of that name." for form, names in forms.items()]
    told += [_states(row, found.dtype) for row in found.rows[: len(found.models)] if row.states]
    longest, longer = max(row.context for row in found.rows), {}
    for name, config in found.models.items():
        if longest > config.context_length:
            more = ", and as many more learned positions" if config.positions == "learned" else ""
            longer.setdefault(f"the context of {config.context_length:,} is longer here{more}.", []).append(name)
    return told + [f"{', '.join(names)}: {what}" for what, names in longer.items()]


def _states(row: Estimate, dtype: str) -> str:
    """States are wider than keys and values, which published estimates leave out: so what those say can be found."""
    kinds, states = PRECISIONS[dtype], row.states // row.batch
    told = f"cache of {row.name}: of every row {size(states)} are states in {kinds.reduce}, at any context"
    if kinds.compute == kinds.reduce:
        return f"{told}."
    narrow = states * ITEM_BYTES[kinds.compute] // ITEM_BYTES[kinds.reduce]
    return f"{told} (as published estimates count, in {kinds.compute}, {size(narrow)})."


def markdown(found: Result) -> str:
    """One table of all models and sizes."""
    lines = [f"# {_cell(found.base)} in {found.dtype}, attention kernel {found.attention}", "", _line(HEADS)]
    lines.append("| --- |" + " ---: |" * (len(HEADS) - 1))
    for row in found.rows:
        counts = [f"{value:,}" for value in (row.context, row.batch, row.parameters, row.active)]
        flops = [scaled(value, "") for value in (row.forward, row.training, row.decode)]
        bytes_ = [size(value) for value in (row.weights, row.state, row.kept, row.cache)]
        lines.append(_line([row.name, *counts, *flops, *bytes_, smaller(found, row)]))
    return "\n".join([*lines, "", *(f"- {_cell(note)}" for note in notes(found)), ""])


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(map(_cell, texts))} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def csv(found: Result) -> str:
    """A line for every estimate, under the names of its fields; what has no closed form is empty."""
    out = io.StringIO()
    writer = comma.writer(out, lineterminator="\n")
    writer.writerow([*(field.name for field in fields(Estimate)), "dtype", "attention"])
    writer.writerows([*astuple(row), found.dtype, found.attention] for row in found.rows)
    return out.getvalue()


FORMATS: dict[str, Callable[[Result], str]] = {"text": text, "csv": csv, "markdown": markdown}
FILES = {"table.txt": text, "table.csv": csv, "table.md": markdown}
