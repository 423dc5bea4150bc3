"""The summary as tables: for a terminal of 80 columns, as Markdown, and as CSV with every number in full."""

import csv as comma
import io
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from reports.perf import wording as say
from reports.perf.numbers import NONE, Found, Number, Sentence, plain, told
from reports.perf.view import Cell, Contender, Pair, cells, refusals

HEADS = (
    "Cell", "Contender", "Mode", "Precision", "Threads", "Attention", "Median", "Per second", "Ratio (99 %)", "Floor",
    "Verdict", "MFU", "MBU", "Peak memory", "Compile",
)  # fmt: skip
WIDE, NAMES = 75, 20  # characters of an indented line, and of a contender's name
OF_CELL = ("cell", "suite", "task", "model", "batch", "length", "unit", "work")
OF_CONTENDER = ("flops_full", "flops_causal", "name", "wing", "mode", "dtype", "bytes", "lower_bound")
CONDITIONS = ("precision", "threads", "attention")
VERSUS = ("reference", "ratio", "low", "high", "floor", "carry_over", "state", "verdict")
SPREAD = ("median", "p10", "p90", "min", "samples")
MEASURED = (
    "device_seconds", "per_second", "multiplies", "flops_per_second", "mfu_full", "mfu_causal", "mfu_sheet",
    "bytes_per_second", "mbu", "mbu_sheet",
)  # fmt: skip
PHASES = ("import", "build", "trace", "compile", "compile_how", "first")
MEMORY = ("import", "build", "peak", "planned", "device")


def show(found: Found) -> None:
    """The table on standard output."""
    Console().print(build(found))


def build(found: Found) -> Group:
    """Headline, then cell by cell its finding and its contenders; what was not done; the command."""
    parts: list[Any] = [_head(found)]
    for cell in cells(found):
        parts += [Text(), *_cell(found, cell)]
    parts += [Text()] + [Text(f"Not done: {row['what']} ({row['reason']})", style="dim") for row in found["skipped"]]
    parts.append(Text(f"Again: {found['command']}", style="dim"))
    return Group(Text(), *(Padding(part, (0, 0, 0, 1)) for part in parts))


def _head(found: Found) -> Text:
    line = Text(plain(found, say.headline(found)), style="bold")
    line.append(f"\n{plain(found, say.footer(found))}", style="not bold dim")
    for warning in say.warnings(found):
        line.append(f"\n{plain(found, warning)}", style="bold red")
    return line


def _cell(found: Found, cell: Cell) -> list[Any]:
    out: list[Any] = [Text(cell.title, style="bold"), Padding(Text(plain(found, say.finding(cell))), (0, 0, 0, 2))]
    wide = min(NAMES, max(len(one.title) for one in cell.contenders) if cell.contenders else 0)
    heads = f"{'':<{wide}} {'median':>8} {_unit(cell):>9}"
    heads += f"  × as fast as {cell.reference.title}" if cell.reference is not None else ""
    out.append(Padding(Text(heads, style="dim"), (0, 0, 0, 2)))
    for one in cell.contenders:
        if one.timed:
            name = one.title if len(one.title) <= wide else f"{one.title}\n{'':<{wide}}"
            left = f"{name:<{wide}} {told(found, _median(one)):>8} {told(found, _rate(one)):>9}"
            out.append(Padding(Text(f"{left}  {_short(found, cell, one)}"), (0, 0, 0, 2)))
        else:
            why = f"{one.title}: {plain(found, say.standing(cell, one))}"
            out.append(Padding(Text(why, style="red"), (0, 0, 0, 2)))
        costs = [f"{name} {plain(found, sentence)}" for name, sentence in say.costs(one)]
        known = [text for text in costs if not text.endswith(NONE)]
        out += [Padding(Text(line, style="dim"), (0, 0, 0, 4)) for line in _packed([*say.conditions(one.one), *known])]
    return out


def _packed(parts: list[str]) -> list[str]:
    """The parts in as few lines as they fit into, none of them broken."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 <= WIDE:
            lines[-1] += f"; {part}"
        else:
            lines[-1] += ";"
            lines.append(part)
    return lines


def _unit(cell: Cell) -> str:
    return f"{cell.cell['unit']}/s"


def _median(one: Contender) -> Number:
    return Number(f"{one.at}/seconds/median", "seconds")


def _rate(one: Contender) -> Number:
    return Number(f"{one.at}/per_second", "count")


def _short(found: Found, cell: Cell, one: Contender) -> str:
    """The ratio with its interval and floor in a few characters, or the verdict where there is no ratio."""
    pair = cell.versus(one)
    if pair is None or not pair.usable:
        return plain(found, say.standing(cell, one))
    return plain(found, (*_ratio(pair), ", ", *say.floor(pair)))


def _ratio(pair: Pair) -> Sentence:
    return (say.ratio(pair), " × (", *say.interval(pair), ")")


def markdown(found: Found) -> str:
    """table.md: a table for each suite, what was refused and skipped, and how to measure it again."""
    lines = [f"# {plain(found, say.headline(found))}", "", f"{plain(found, say.footer(found))}.", ""]
    for warning in say.warnings(found):
        lines += [f"**{plain(found, warning)}**", ""]
    lines += ["Ratio: seconds of the cell's reference over seconds of the row; above 1 the row is faster.", ""]
    for suite in dict.fromkeys(cell.cell["suite"] for cell in cells(found)):
        lines += [f"## {suite}", "", _line(HEADS), "|" + " --- |" * len(HEADS)]
        for cell in cells(found):
            if cell.cell["suite"] == suite:
                lines += [_line(_row(found, cell, one)) for one in cell.contenders]
        lines.append("")
    refused = [f"- {cell.title}, {one.title}: {one.one['refused']}" for cell, one in refusals(found)]
    refused += [f"- {row['what']}: {row['reason']}" for row in found["skipped"]]
    lines += ["## Not measured", "", *refused, ""] if refused else []
    return "\n".join([*lines, "## Again", "", "```", found["command"], "```", ""])


def _line(texts: Any) -> str:
    return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in texts) + " |"


def _row(found: Found, cell: Cell, one: Contender) -> list[str]:
    pair = cell.versus(one) if one.timed else None
    usable = pair is not None and pair.usable
    rate = f"{told(found, _rate(one))} {_unit(cell)}" if one.timed else NONE
    costs = dict(say.costs(one))
    return [
        cell.title, one.title, one.one["mode"], say.precision(one.one), say.threads(one.one), say.attention(one.one),
        told(found, _median(one)) if one.timed else NONE, rate,
        plain(found, (say.ratio(pair), " (", *say.interval(pair), ")")) if usable else "",
        told(found, Number(f"{pair.at}/floor", "percent")) if pair is not None else "",
        plain(found, say.standing(cell, one)),
        *(plain(found, costs.get(name, ("",))) for name in ("MFU", "MBU", "peak memory", "compile")),
    ]  # fmt: skip


def csv(found: Found) -> str:
    """table.csv: a row for each contender of each cell, numbers as they are in the summary."""
    out = io.StringIO()
    writer = comma.writer(out, lineterminator="\n")
    prefixed = [*(f"seconds_{key}" for key in SPREAD), *MEASURED, *(f"phase_{key}" for key in PHASES)]
    prefixed += [f"memory_{key}" for key in MEMORY]
    writer.writerow([*OF_CELL, *OF_CONTENDER, *CONDITIONS, *prefixed, *VERSUS])
    for cell in cells(found):
        for one in cell.contenders:
            line, timed = one.one, one.timed
            row = [cell.cell[key] for key in OF_CELL] + [line[key] for key in OF_CONTENDER]
            row += [say.precision(line), say.threads(line), say.attention(line)]
            row += [line["seconds"][key] if timed else None for key in SPREAD]
            row += [line[key] if timed else None for key in MEASURED]
            row += [(line["phases"] or {}).get(key) for key in PHASES]
            row += [(line["memory"] or {}).get(key) for key in MEMORY]
            writer.writerow([*row, *_versus(found, cell, one)])
    return out.getvalue()


def _versus(found: Found, cell: Cell, one: Contender) -> list[Any]:
    pair = cell.versus(one) if one.timed else None
    ratio = pair.values if pair is not None and pair.usable else (None, None, None)
    base = cell.reference.name if cell.reference is not None else None
    floor, carry = (pair.pair[key] if pair is not None else None for key in ("floor", "carry_over"))
    return [base, *ratio, floor, carry, pair.state if pair is not None else None, plain(found, say.standing(cell, one))]
