"""A report as a person reads it in a terminal of 80 columns: what agrees shares a line, the rest is told in full."""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.parity.diverge import parts
from common.parity.diverge.report import Report, Row

NAMES = 26  # columns of the name of a value within its layer
WIDTHS = {"shape": 11, "gap": 8, "growth": 7, "own A": 8, "own B": 8}
STYLES = {"ok": "green", "after": "yellow", "off": "red", "PARTS": "bold red"}  # the gravest last


def build(report: Report, everything: bool = False) -> Group:
    """Who is compared on what, the table, the verdict. `everything` lists every row by itself."""
    pieces: list[Any] = [_head(report)]
    for piece in (*_tables(report, everything), Group(*_verdict(report))):
        pieces += [Text(), piece]
    pieces += [Text(f"Note: {note}", style="dim") for note in report.notes]
    return Group(*pieces)


def number(value: float) -> str:
    """Two digits; infinite errors (another shape, NaN in other places) as inf."""
    if value == 0 or math.isinf(value) or math.isnan(value):
        return f"{value:g}"
    return f"{value:.1e}"


def _head(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for side, about in report.sides.items():
        execution = about["execution"]
        grid.add_row(side, f"{about['name']} ({about['title']}), {execution['dtype']} on {execution['device']}")
    model, subject = report.subject["model"], report.subject
    size = f"{model['num_layers']} layers, {model['num_heads']} heads, {model['embed_dim']} wide"
    grid.add_row("on", f"{subject['weights']}; {size}; {subject['parameters']:,} parameters; {subject['input']}")
    return grid


def _tables(report: Report, everything: bool) -> Iterator[Table]:
    """Values in order, then gradients from the loss backwards; weights only where they differ."""
    judged = any(row.own for row in report.rows)
    forward = ["shape", "gap", "growth", *(["own A", "own B"] if judged else [])]
    for stages, title, columns in (
        (("weights",), "weights that differ", ["shape", "gap"]),
        (("forward",), "", forward),
        (("loss", "gradient"), "gradients, from the loss backwards", ["shape", "gap"]),
    ):
        rows = [row for row in report.rows if row.stage in stages and (row.stage != "weights" or row.parts)]
        if rows:
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
            table.add_column(title, no_wrap=True, overflow="fold", min_width=NAMES)
            for name in columns:
                table.add_column(name, justify="right", no_wrap=True, min_width=WIDTHS[name])
            table.add_column("", no_wrap=True)
            _fill(table, report, rows, columns, everything)
            yield table


def _fill(table: Table, report: Report, rows: list[Row], columns: list[str], everything: bool) -> None:
    inside = None  # the layer whose values stand indented under its name
    for together in _stretches(report, rows, everything):
        row = max(together, key=lambda one: one.gap)
        mark = max(map(report.mark, together), key=list(STYLES).index)
        number_of = parts.layer(row.name) if len(together) == 1 and row.stage == "forward" else None
        if number_of is not None and number_of != inside:
            table.add_row(f"layers.{number_of}")
        inside = number_of
        own = {f"own {side}": max(one.own.get(side, 0.0) for one in together) for side in row.own}
        cells = {"gap": number(row.gap), **{name: number(value) for name, value in own.items()}}
        if len(together) == 1:
            cells |= {"shape": "×".join(map(str, row.shape)), "growth": _growth(row.growth)}
        name = f"  {parts.in_layer(row.name)}" if inside is not None else _name(together)
        table.add_row(name, *(cells.get(column, "") for column in columns), Text(mark, style=STYLES[mark]))


def _growth(value: float | None) -> str:
    return "" if value is None else f"×{value:.1f}" if value < 100 else f"×{value:.0e}".replace("e+", "e")


def _stretches(report: Report, rows: list[Row], everything: bool) -> Iterator[list[Row]]:
    """Rows that share a line: those of whole layers, before and after the first, whose layer is told in full."""
    first = report.first
    told = None if first is None or first.stage != "forward" else parts.layer(first.name)
    passed = first is not None and first not in rows and bool(rows) and first.stage != rows[0].stage

    def block(row: Row) -> tuple:
        nonlocal passed
        passed = passed or row is first
        number_of = parts.layer(row.name)
        alone = everything or row is first or row.stage in ("weights", "loss") or number_of is None
        if row.stage == "forward":
            alone = alone or number_of == told
        return (row.name,) if alone else ("", passed)

    for _, together in groupby(rows, block):
        yield list(together)


def _name(rows: list[Row]) -> str:
    row = rows[0]
    if len(rows) == 1:
        return row.name.removeprefix("model.")
    layers = [n for n in (parts.layer(one.name) for one in rows) if n is not None]
    low, high = min(layers), max(layers)
    where = f"layers.{low}" if low == high else f"layers.{low} to {high}"
    return f"{where} ({len(rows)} tensors)"


def _verdict(report: Report) -> Iterator[Any]:
    first, why = report.first, report.diagnosis
    if first is None:
        forward = [row for row in report.rows if row.stage == "forward"]
        worst = max(forward, key=lambda row: row.gap)
        both = " and the loss and all gradients" if any(row.stage == "loss" for row in report.rows) else ""
        yield Text(
            f"They agree: {len(forward)} values{both}, the worst {worst.name} with {number(worst.gap)}"
            f" (bound {number(worst.bound)}).",
            style="bold green",
        )
        if why is not None:
            yield Text(f"{why.judged}.", style="yellow")
        return
    what = {"weights": "the weights ", "gradient": "the gradient of "}.get(first.stage, "")
    yield Text(
        f"They part at {what}{first.name}: gap {number(first.gap)}, bound {number(first.bound)}.", style="bold red"
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    if first.at and first.values is not None:
        one, other = (f"{value:.9g}" for value in first.values)
        grid.add_row("worst at", f"{first.at}: A {one}, B {other}")
    elif first.note:
        grid.add_row("fault", first.note)
    if why is not None:
        rows = [("goes in", why.before), ("judge", why.judged), ("look at", why.where)]
        rows += [("hint", hint) for hint in why.hints] + [("also off", why.also)]
        for label, text in rows:
            if text:
                grid.add_row(label, Text(text))
    yield grid
