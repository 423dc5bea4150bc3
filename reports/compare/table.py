"""The result as a person reads it in a terminal, made from the JSON alone."""

from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reports.compare import wording as say
from reports.compare.wording import Found

SHORT = {
    "gradients that are zero in theory": "zero gradients",
    "parameters after 5 AdamW steps": "after 5 AdamW steps",
}


def build(found: Found) -> Group:
    """Headline and findings, then agreement, speed, memory and compile time."""
    parts: list[Any] = [_head(found), _findings(found), _agreement(found)]
    if found["speed"] is not None:
        parts.append(_speed(found))
    parts.append(_costs(found))
    parts += [Text(f"Not done: {row['what']} ({row['reason']})", style="dim") for row in found["skipped"]]
    return Group(Text(), *(Padding(part, (0, 0, 0, 1)) for part in parts))


def _head(found: Found) -> Text:
    good = found["passed"]["all"]
    model, machine = found["model"], found["machine"]
    line = Text(say.headline(found), style="bold green" if good else "bold red")
    line.append(
        f"\n{model['source']}, {say.count(model['parameters'])} parameters, {found['training']['dtype']},"
        f" {machine['cpu']}, {machine['threads']} threads, {say.seconds(found['seconds'])}",
        style="dim",
    )
    return line


def _findings(found: Found) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for subject, sentence, good in say.findings(found):
        table.add_row(subject, Text(sentence, style="" if good else "red"))
    return table


def _new(title: str, *columns: str) -> Table:
    """A table that fits into 80 columns: numbers never break."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _agreement(found: Found) -> Table:
    wings = found["settings"]["wings"]
    names = [say.title(found, wing) for wing in wings]
    table = _new("Relative error to the oracle, and to each other", "", *names, "each other", "of bound", "")
    for row in say.condensed(found):
        errors = [say.sci(row["errors"][name]) if name in row["errors"] else "" for name in (*wings, "pair")]
        mark = Text("ok", style="green") if row["passed"] else Text("FAILED", style="bold red")
        table.add_row(
            f"{row['dtype']} {SHORT.get(row['what'], row['what'])}", *errors, say.percent(say.used(row)), mark
        )
    return table


def _speed(found: Found) -> Table:
    wings = found["settings"]["wings"]
    names = [say.title(found, wing) for wing in wings]
    table = _new("Tokens per second, measured in turns", "", *names, "faster (99 % interval)", "noise floor")
    for task, row in found["speed"].items():
        rates = [say.count(row["seconds"][wing]["tokens_per_second"]) for wing in wings]
        ratio = _ratio(found, row) if row["faster"] else say.verdict(found, row)
        table.add_row(say.TASKS[task], *rates, ratio, say.floor(row))
    return table


def _ratio(found: Found, row: Found) -> str:
    """The faster wing with its factor and interval, in three digits."""
    values = [row["ratio"], row["low"], row["high"]]
    if row["ratio"] < 1:
        values = [1 / value for value in (row["ratio"], row["high"], row["low"])]
    factor, low, high = (f"{value:.3g}" for value in values)
    return f"{say.title(found, row['faster'])} {factor} × ({low}–{high})"


def _costs(found: Found) -> Table:
    wings = found["settings"]["wings"]
    table = _new("Costs", "", *(say.title(found, wing) for wing in wings))
    memory = found["memory"]
    rows = {
        "peak memory, training": [say.size(memory["train"][w]["steady"]["bytes"]) for w in wings],
        "peak memory, decoding": [say.size(memory["decode"][w]["steady"]["bytes"]) for w in wings],
        "of which after import": [say.size(memory["train"][w]["import_only"]) for w in wings],
        "import": [say.seconds(found["wings"][w]["import_seconds"]) for w in wings],
    }
    for task, own in (found["compile"] or {}).items():
        rows[f"compile, {say.TASKS[task].lower()}"] = [say.seconds(own[w]) for w in wings]
    for task in ("forward", "train"):
        counted = found["flops"][task]["counted"]
        rows[f"FLOPs, {say.TASKS[task].lower()}"] = [say.count(counted[w]) for w in wings]
    for name, values in rows.items():
        table.add_row(name, *values)
    return table
