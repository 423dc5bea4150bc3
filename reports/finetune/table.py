"""The experiments as a table: for a terminal, as Markdown, as JSON."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_text
from reports.finetune.experiments import PARTS, Outcome, baselines

WIDE = 122
HEADS = ("", "experiment", "train", "validation", "test", "seconds", "that learn", "published")


def cells(one: Outcome) -> list[str]:
    """A row: here, and what was published: percent, and minutes on an A100."""
    before = one.experiment.published
    there = " / ".join(f"{before[part]:.2f}" for part in PARTS) + f", {before['minutes']:.2f} min"
    own = [f"{one.accuracy[part]:.2%}" for part in PARTS] if one.accuracy else ["—"] * len(PARTS)
    rest = [f"{one.seconds:.1f}", f"{one.learn:,}"] if one.accuracy else ["—", "—"]
    return [str(one.experiment.number), one.experiment.name, *own, *rest, there]


def text(found: Sequence[Outcome]) -> str:
    """For a terminal; what was left out says why below."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for place, head in enumerate(HEADS):
        shown.add_column(head, justify="left" if place == 1 else "right", no_wrap=True)
    for one in found:
        *own, there = cells(one)
        shown.add_row(*own, there.partition(",")[0])
    for name, accuracy in baselines(found).items():
        shown.add_row("", name, *(f"{accuracy[part]:.2%}" for part in PARTS), "", "", "")
    out = io.StringIO()
    console = Console(file=out, width=WIDE, color_system=None, force_terminal=False)
    left_out = (f"{one.experiment.number}: left out, it {one.left_out}" for one in found if one.left_out)
    console.print(shown, *left_out, sep="\n")
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def markdown(found: Sequence[Outcome]) -> str:
    """The same with settings and notes."""
    heads = ("#", "experiment", "settings", *HEADS[2:], "note")
    lines = [_line(heads), _line(["---"] * len(heads))]
    for one in found:
        number, name, *rest = cells(one)
        notes = [f"Left out: {one.left_out}."] if one.left_out else []
        notes += [one.experiment.note] if one.experiment.note else []
        lines.append(_line([number, name, f"`{one.experiment.words}`", *rest, " ".join(notes)]))
    for name, accuracy in baselines(found).items():
        lines.append(_line(["", name, "", *(f"{accuracy[part]:.2%}" for part in PARTS), *[""] * 4]))
    return "".join(lines)


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |\n"


def write(folder: Path, found: Sequence[Outcome], shared: Mapping[str, Any]) -> None:
    """`experiments.json` and `experiments.md`, all or nothing each; `shared` are the settings of all experiments."""
    texts = next((one.texts for one in found if one.texts), {})
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in shared.items()}
    whole = {
        "shared": plain,
        "texts": texts,
        "baselines": baselines(found),
        "experiments": [one.to_dict() for one in found],
    }
    write_text(folder / "experiments.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    told = ", ".join(f"{name} {value}" for name, value in plain.items())
    head = f"![test accuracies, here and published](experiments.png)\n\nSettings that all share: {told}.\n\n"
    write_text(folder / "experiments.md", head + markdown(found))
