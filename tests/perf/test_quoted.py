"""Numbers that pages quote of kept reports are those that the reports have, rounded as there.

`quoted.toml` has phrases with a field for every number, the report and cell that they are of, and for each field what
it is: ["seconds", contender], ["ratio", fast, slow], ["times", fast, slow] for a ratio and its interval, three fields,
or ["lead", fast, slow] for the same as one text, which is bold if the report calls one of them faster. A value of
another cell or report is a table: {cell, report, take}.
"""

import functools
import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "reports" / "perf"
QUOTES = tomllib.loads((Path(__file__).parent / "quoted.toml").read_text(encoding="utf-8"))["quote"]
MIB = 1 << 20
OF_ONE = {
    "seconds": lambda one: one["seconds"]["median"],
    "ms": lambda one: 1e3 * one["seconds"]["median"],
    "peak MiB": lambda one: one["memory"]["peak"] / MIB,
    "import MiB": lambda one: one["memory"]["import"] / MIB,
    "per second": lambda one: one["per_second"],
    "mfu %": lambda one: 100 * one["mfu_full"],
    "mbu %": lambda one: 100 * one["mbu"],
}


@functools.cache
def summary(report):
    return json.loads((PLACE / report / "summary.json").read_text(encoding="utf-8"))


def cell_of(report, name):
    """The cell of that name, or the only one whose name begins with it."""
    cells = [one for one in summary(report)["cells"] if one["cell"].startswith(name)]
    (cell,) = [one for one in cells if one["cell"] == name] or cells
    return cell


def times(cell, fast, slow):
    """(ratio, low, high) of how many times as fast one is as the other, and who is called faster."""
    for one in cell["pairs"]:
        ratio, low, high = one["ratio"], one["low"], one["high"]
        if (one["first"], one["second"]) == (slow, fast):
            return ratio, low, high, one["faster"]
        if (one["first"], one["second"]) == (fast, slow):
            return 1 / ratio, 1 / high, 1 / low, one["faster"]
    raise AssertionError(f"{cell['cell']} has no pair of {fast} and {slow}")


def values(quote):
    """The numbers of a phrase, in order."""
    for entry in quote["values"]:
        own = entry if isinstance(entry, dict) else {"take": entry}
        report, name = own.get("report", quote["report"]), own.get("cell", quote.get("cell"))
        what, *names = own["take"]
        if what == "peak":  # of the machine: ["peak", "gemm", "float32", "torch"]
            found = summary(report)["peaks"]
            for step in names:
                found = found[step]
            yield found
        elif what == "lead":
            ratio, low, high, faster = times(cell_of(report, name), *names)
            mark = "**" if faster else ""
            yield f"{mark}{ratio:.2f} ×{mark} ({low:.2f} to {high:.2f})"
        elif what in ("times", "ratio"):
            yield from times(cell_of(report, name), *names)[: 3 if what == "times" else 1]
        else:
            (one,) = (one for one in cell_of(report, name)["contenders"] if one["name"] == names[0])
            yield OF_ONE[what](one)


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote["text"][:60])
def test_a_quoted_number_is_the_reports(quote):
    page = " ".join((ROOT / quote.get("page", "reports/perf/README.md")).read_text(encoding="utf-8").split())
    told = quote["text"].format(*values(quote))
    assert told in page, told
