"""The certificate as a person reads it in a terminal, made from its JSON alone; 80 columns."""

from typing import Any

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reports.parity import wording as say
from reports.parity.wording import Found

SHOWN = 20  # failures that are listed; the rest is counted


def show(found: Found) -> None:
    """The table on standard output."""
    Console().print(build(found))


def build(found: Found) -> Group:
    """Headline, claims, failures, and what became of the planted bugs."""
    parts: list[Any] = [_head(found), _claims(found)]
    if say.failures(found):
        parts.append(_failures(found))
    parts += [Text(f"Rule {name!r} is too loose: {_slack(found, name)}", style="red") for name in say.loose(found)]
    if say.killed(found):
        parts.append(Text(say.killed(found)))
    return Group(Text(), *(Padding(part, (0, 0, 0, 1)) for part in parts))


def _head(found: Found) -> Text:
    head = found["head"]
    line = Text(say.headline(found), style="bold green" if found["passed"] else "bold red")
    who = [f"{own['title']} ({own['mode']})" for own in head["backends"].values()]
    line.append(
        f"\n{say.listed(who)} against the oracle on {head['device']}, {say.count(say.comparisons(found))} comparisons.",
        style="dim",
    )
    line.append(f"\n{say.tried(found)}", style="dim")
    return line


def _claims(found: Found) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column("Claim", no_wrap=True)
    table.add_column("errors", justify="right", no_wrap=True)
    table.add_column("worst", justify="right", no_wrap=True)
    table.add_column("where", overflow="fold", min_width=16)
    table.add_column("of bound", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for claim in found["claims"]:
        worst = claim["worst"]
        if worst is None:
            cells = ["0", "", "", ""]
        else:
            where = "" if float(worst["error"]) == 0 else say.place(worst, worst["who"])
            cells = [say.count(claim["comparisons"]), say.amount(worst["error"], worst["tier"]), where]
            cells.append(say.percent(worst["used"]))
        style = {True: "green", False: "bold red", None: "dim"}[claim["passed"]]
        table.add_row(f"{claim['name']} {claim['title']}", *cells, Text(say.verdict(claim["passed"]), style=style))
    return table


def _failures(found: Found) -> Group:
    rows = say.failures(found)
    lines = [Text(f"What fails ({len(rows)}):", style="bold red")]
    for row in rows[:SHOWN]:
        who, error, bound = say.error_of(row)
        line = Text(f"{row['claim']} {say.place(row)}", style="bold")
        line.append(f"  {who} {error}, allowed {bound}", style="not bold")
        if row["note"]:
            line.append(f"\n   {row['note']}", style="not bold dim")
        lines.append(line)
    if len(rows) > SHOWN:
        lines.append(Text(f"… and {len(rows) - SHOWN} more, all in the certificate.", style="dim"))
    return Group(*lines, Text())


def _slack(found: Found, name: str) -> str:
    return f"its errors use {say.percent(found['rules'][name]['largest_share'])} of the bound at most."
