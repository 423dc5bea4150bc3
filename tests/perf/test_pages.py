"""Tables, plots' rows and page against the summary they are made from."""

import csv
import html
import io
import json
import re

import made
import pytest
from rich.console import Console

from benchmarks.harness.summary import summarise
from reports.perf import page, plots, series, table
from reports.perf import wording as say
from reports.perf.numbers import FORMS, TALLY, look, plain
from reports.perf.view import cells

DATA = re.compile(r'<data value="([^"]*)" data-at="([^"]*)" data-form="(\w+)"(?: data-over="([^"]*)")?>([^<]*)</data>')
# numbers of the page's own text, and of a refusal
SAID = ("95 %", "99 %", "10th", "90th", "sha256", "fp32", "3.1e-02", "1.0e-05")


def rendered(found):
    return page.render(found, {})


def shown(found):
    screen = io.StringIO()
    Console(file=screen, width=80).print(table.build(found))
    assert all(len(line) <= 80 for line in screen.getvalue().splitlines())
    return " ".join(screen.getvalue().split())


def strings(value):
    """Every text in the summary."""
    if isinstance(value, dict):
        yield from (text for item in value.items() for part in item for text in strings(part))
    elif isinstance(value, list):
        yield from (text for item in value for text in strings(item))
    elif isinstance(value, str):
        yield value


def test_every_number_on_the_page_is_the_summarys(summary):
    text = rendered(summary)
    found = DATA.findall(text)
    assert len(found) > 500
    for value, at, form, over, told in found:
        addresses = at.split()
        assert all(look(summary, address) is not None for address in addresses), at
        due = len(addresses) if form == TALLY else look(summary, at) / (look(summary, over) if over else 1)
        assert float(value) == due, at
        assert html.unescape(told) == FORMS[form](due), at


def test_no_other_number_stands_on_the_page(summary):
    """What is left without the marked numbers is words; digits in them are the summary's own texts, or a count."""
    text = DATA.sub(" ", rendered(summary))
    text = re.sub(r"<style>.*?</style>|<pre>.*?</pre>", " ", text, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    known = [*strings(summary), *SAID, "2 threads", ", ".join(map(str, summary["load"]["start"]))]
    known += [", ".join(map(str, summary["load"]["end"])), summary["started"][:10], "2 cores, 2 usable"]
    known.append(summary["machine"]["commit"]["id"][:10])
    for piece in sorted(known, key=len, reverse=True):
        if re.search(r"\d", piece):
            text = text.replace(piece, " ")
    left = re.findall(r"\S*\d\S*", text)
    assert set(left) <= {"2"}, left  # the threads of the run, in the table of the machine


def test_the_page_stands_alone(summary):
    text = rendered(summary)
    for outside in (r'src="', r'href="(?!#)', r"@import", r"url\((?!#)", r"<script", r"https?://"):
        assert not re.search(outside, text), outside
    assert summary["command"] in text
    assert summary["raw_sha256"] in text


def test_every_row_says_how_it_ran(summary):
    one = summary["cells"][0]["contenders"][3]
    one["settings"] |= {"param": "float32", "compute": "bfloat16", "reduce": "float32", "threads": 1}
    one["settings"] |= {"attention": "fused", "kernel": "XLA"}
    due = "scan; bfloat16, float32 weights, float32 sums, matmul highest; 1 thread; attention fused: XLA"
    assert due in rendered(summary)
    assert due in shown(summary)
    row = next(r for r in csv.DictReader(io.StringIO(table.csv(summary))) if r["name"] == "jax scan")
    assert [row[key] for key in ("mode", "precision", "threads", "attention")] == [
        "scan", "bfloat16, float32 weights, float32 sums, matmul highest", "1", "fused: XLA",
    ]  # fmt: skip


def test_settings_that_are_not_known_are_not_made_up(summary):
    for one in summary["cells"][0]["contenders"]:
        one["settings"] = {"param": "float32", "compute": "float32", "reduce": "float32", "threads": None}
    assert "default; float32; — threads; attention —" in shown(summary)


def test_the_csv_has_every_contender_with_the_summarys_numbers(summary):
    rows = list(csv.DictReader(io.StringIO(table.csv(summary))))
    due = [(cell, one) for cell in summary["cells"] for one in cell["contenders"]]
    assert len(rows) == len(due)
    for row, (cell, one) in zip(rows, due, strict=True):
        assert (row["cell"], row["name"]) == (cell["cell"], one["name"])
        assert row["memory_peak"] == ("" if one["memory"] is None else str(one["memory"]["peak"]))
        if one["refused"]:
            assert (row["seconds_median"], row["ratio"], row["verdict"]) == ("", "", one["refused"])
            continue
        assert float(row["seconds_median"]) == one["seconds"]["median"]
        pair = next((p for p in cell["pairs"] if (p["first"], p["second"]) == ("torch", one["name"])), None)
        usable = pair is not None and pair["enough"] and not pair["noisy"]
        assert row["ratio"] == (repr(pair["ratio"]) if usable else "")


def test_markdown_names_what_was_not_measured(summary):
    text = table.markdown(summary)
    assert f"- Forward, gpt2-124m, 4 × 256, bfloat16, JAX scan: {made.WRONG}" in text
    assert "- GPU: this machine has none" in text
    assert f"```\n{summary['command']}\n```" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("| Forward")} == {16}


@pytest.mark.parametrize(("key", "value", "words"), [
    ("partial", "interrupted", "A partial run (interrupted): what is missing was not measured."),
    ("quick", True, "A quick run: few samples, good for a look, not for conclusions."),
])  # fmt: skip
def test_partial_and_quick_runs_are_marked(summary, key, value, words):
    assert words not in rendered(summary)
    summary[key] = value
    assert words in rendered(summary)
    assert words in shown(summary)
    assert f"**{words}**" in table.markdown(summary)


def test_a_run_without_an_end_and_without_cells(summary):
    summary |= {"cells": [], "break_even": [], "skipped": [], "finished": None, "partial": "interrupted"}
    summary["peaks"], summary["load"] = {"sheet": None}, {"start": None, "end": []}
    assert "Nothing was timed." in rendered(summary)
    assert "not finished" in rendered(summary)
    assert "Nothing was timed in two frameworks." in shown(summary)
    assert table.markdown(summary)
    assert len(table.csv(summary).splitlines()) == 1
    assert series.series(summary) == {}


def test_what_a_run_says_of_its_conditions_is_told(summary):
    """Older ones do not say all of it, and have no rows of it then."""
    before = rendered(summary)
    summary["machine"] |= {"affinity": [0, 1, 2, 6], "wheels": {"torch": "ab" * 32}}
    start = {"clock": "345 MHz", "memory_clock": "[N/A]", "temperature": "31", "held_back": "0x0000000000000001"}
    end = start | {"clock": "1980 MHz", "held_back": "0x0000000000000000"}
    summary["gpu_state"] = {"start": [start], "end": [end, start]}
    summary["seeds"] = {"weights and inputs": [0, 3], "turns": 7}
    rows = {
        "GPU at the start": "345 MHz, 31 °C, held back by idleness",
        "GPU at the end": "1980 MHz, 31 °C; 345 MHz, 31 °C, held back by idleness",
        "Affinity": "0 to 2, 6",
        "Files of packages": f"torch sha256 {'ab' * 8}",
        "Seeds": "weights and inputs 0, 3, turns 7",
    }
    after = rendered(summary)
    for name, value in rows.items():
        assert f'<tr><td>{name}</td><td class="left">{value}</td></tr>' in after
        assert f"<td>{name}</td>" not in before
    summary["gpu_state"]["end"] = None
    assert "GPU at the end" not in rendered(summary)


def test_a_data_sheet_is_told_beside_what_was_measured(summary):
    assert "data sheet" not in rendered(summary).lower().replace("<th>data sheet</th>", "")
    sheet = {"name": "NVIDIA H200", "float32": 6.7e11, "bandwidth": 4.8e10}
    text = rendered(summarise(made.lines(suites=("forward", "decode"), sheet=sheet)))
    assert "the data sheet is that of NVIDIA H200" in text
    for share in ("mfu_sheet", "mbu_sheet"):
        assert re.search(rf'/{share}" data-form="percent">[\d.]+ %</data> of data sheet', text)
    assert re.search(r'data-over="peaks/sheet/bandwidth">65 %</data> reached', text)


def test_memory_on_a_device_is_told_instead_of_the_process(summary):
    number = next(n for n, cell in enumerate(summary["cells"]) if cell["suite"] == "train")
    summary["cells"][number]["contenders"][0]["memory"]["device"] = 2**30
    cell = cells(summary)[number]
    row = table._row(summary, cell, cell.contenders[0])
    assert "1,024 MiB" in dict(zip(table.HEADS, row, strict=True))["Peak memory"]
    rows = [row for row in series.memory(summary) if row["what"] == "device"]
    assert [row["bytes"] for row in rows] == [2**30]


def test_plots_draw_only_what_may_be_shown(summary):
    every = series.series(summary)
    assert list(every) == [name for name in series.SERIES if name != "variants"]  # a suite that must be named
    drawn = {row["cell"] for row in every["ratio_forest"]}
    by_suite = {suite: {c["cell"] for c in summary["cells"] if c["suite"] == suite} for suite in made.SUITES}
    assert not drawn & (by_suite["train"] | by_suite["compile"])  # noisy; too few samples
    assert by_suite["forward"] | by_suite["decode"] == drawn
    for name, rows in every.items():
        refused = [r for r in rows if r["cell"] == "forward/gpt2-124m/4x256/bfloat16" and "JAX scan" in r.values()]
        assert not refused or name == "memory"


def test_what_carry_over_voids_is_named_in_tables_page_and_plot(summary):
    own = next(p for p in summary["cells"][0]["pairs"] if (p["first"], p["second"]) == ("torch", "jax"))
    own.update(carried=True, faster=None, carry_over=0.312)
    words = "void: carry-over of 31 %"
    for text in (rendered(summary), shown(summary), table.markdown(summary)):
        assert words in re.sub(r"<[^>]*>", "", text)
    (row,) = (row for row in csv.DictReader(io.StringIO(table.csv(summary))) if row["verdict"] == words)
    assert (row["ratio"], row["carry_over"], row["state"]) == ("", "0.312", "carried")
    rows = [row for row in series.forest(summary) if row["cell"] == summary["cells"][0]["cell"]]
    assert [row["ratio"] is None for row in rows] == [row["state"] == "carried" for row in rows]
    assert words in plots.inline("ratio_forest", rows)
    assert words in plots.inline("ratio_forest", [row for row in rows if row["ratio"] is None])


def test_rows_of_plots_are_the_summarys_numbers(summary):
    by_name = {(cell["cell"], one["title"]): (cell, one) for cell in summary["cells"] for one in cell["contenders"]}
    for row in series.roofline(summary):
        cell, one = by_name[row["cell"], row["name"]]
        assert row["flops_per_second"] == one["flops_per_second"]
        done = row["flops_per_second"] * one["seconds"]["median"]
        assert row["intensity"] * one["bytes"] == pytest.approx(done, rel=1e-12)  # both axes are of the same work
        assert row["peak_gemm"] == summary["peaks"]["gemm"][one["multiplies"]]["value"]
    for row in series.scaling(summary):
        cell, one = by_name[row["cell"], row["name"]]
        assert (row["per_second"], row["value"]) == (one["per_second"], cell["axis"]["value"])
        assert row["low"] <= row["per_second"] <= row["high"]
    for row in series.depth(summary):
        _, one = by_name[row["cell"], row["name"]]
        assert (row["seconds"], row["low"]) == (one["seconds"]["median"], one["seconds"]["p10"])
    entries = {
        (e["cell"], *(title_of(summary, e, end) for end in ("first", "second"))): e for e in summary["break_even"]
    }
    assert series.breakeven(summary)
    for row in series.breakeven(summary):
        entry = entries[row["cell"], row["first"], row["second"]]
        assert all(row[key] == entry[key] for key in ("calls", "extra_compile", "saved_per_call"))


def test_the_noise_floor_of_a_report_is_that_of_noisy_pairs_too(summary):
    pairs = [pair for cell in cells(summary) for pair in cell.pairs]
    noisy = max(pair.pair["floor"] for pair in pairs if pair.state == "noisy")
    assert noisy > max(pair.pair["floor"] for pair in pairs if pair.usable)
    assert plain(summary, say.footer(summary)).endswith(f" to {FORMS['percent'](noisy)}")


def test_kinds_of_layers_have_their_spread(summary):
    """As contexts and batches have it: nothing tells a disturbed point otherwise."""
    cell = next(cell for cell in summary["cells"] if cell["task"] == "decode")
    cell.update(suite="variants", axis={"name": "context", "value": 256}, ideal={"cache": 4096})
    rows = series.variants(summary)
    assert rows
    for row in rows:
        one = next(one for one in cell["contenders"] if one["per_second"] == row["per_second"])
        spread = one["seconds"]
        assert (row["low"], row["high"]) == (cell["work"] / spread["p90"], cell["work"] / spread["p10"])


def test_a_contender_with_less_work_is_drawn_and_listed_with_its_own():
    lines = list(made.lines())
    cell = next(line for line in lines if line["kind"] == "cell" and line["task"] == "train")
    name = next(line["name"] for line in lines if line["kind"] == "contender" and line["cell"] == cell["cell"])
    half = {what: cell[what] // 2 for what in ("flops_full", "flops_causal")}
    cell["own"] = {name: {"dtype": cell["dtype"], "bytes": cell["bytes"], **half}}
    found = summarise(lines)
    (mine,) = (one for one in found["cells"] if one["cell"] == cell["cell"])
    (title,) = (one["title"] for one in mine["contenders"] if one["name"] == name)
    points = {row["name"]: row["intensity"] for row in series.roofline(found) if row["cell"] == cell["cell"]}
    others = [value for drawn, value in points.items() if drawn != title]
    assert others == pytest.approx([cell["flops_full"] / cell["bytes"]] * len(others))
    assert points[title] == pytest.approx(half["flops_full"] / cell["bytes"])
    listed = [row for row in csv.DictReader(io.StringIO(table.csv(found))) if row["cell"] == cell["cell"]]
    assert {row["flops_full"] for row in listed if row["name"] == name} == {str(half["flops_full"])}
    assert {row["flops_full"] for row in listed if row["name"] != name} == {str(cell["flops_full"])}


def title_of(found, entry, end):
    """The title of an entry's contender."""
    cell = next(cell for cell in found["cells"] if cell["cell"] == entry["cell"])
    return next(one["title"] for one in cell["contenders"] if one["name"] == entry[end])


@pytest.mark.parametrize(("name", "forget"), [
    ("roofline", lambda found: found["peaks"].pop("gemm")),
    ("roofline", lambda found: [one.update(bytes=None) for cell in found["cells"] for one in cell["contenders"]]),
    ("breakeven", lambda found: [entry.update(calls=None) for entry in found["break_even"]]),
    ("memory", lambda found: [one.update(memory=None) for cell in found["cells"] for one in cell["contenders"]]),
    ("scaling", lambda found: [cell.update(axis=None) for cell in found["cells"]]),
    ("depth", lambda found: [one.update(seconds=None) for cell in found["cells"] for one in cell["contenders"]]),
    ("ratio_forest", lambda found: [pair.update(noisy=True) for cell in found["cells"] for pair in cell["pairs"]]),
])  # fmt: skip
def test_a_plot_without_data_is_left_out(summary, name, forget):
    forget(summary)
    assert name not in series.series(summary)
    assert f"{name}.csv" not in page.render(summary, dict.fromkeys(series.series(summary), "<svg></svg>"))
    assert shown(summary)


def test_hostile_text_stays_text(summary):
    summary["cells"][0]["title"] = "<script>alert(1)</script> | $x$"
    summary["cells"][0]["contenders"][0]["title"] = "a|b <b>"
    assert "<script>" not in rendered(summary)
    assert "a\\|b" in table.markdown(summary)


def test_everything_is_made_from_json_alone(summary):
    again = json.loads(json.dumps(summary))
    assert rendered(again) == rendered(summary)
    assert table.csv(again) == table.csv(summary)
    assert say.headline(again) == say.headline(summary)


def test_the_headline_counts_cells_that_the_pairs_bear_out(summary):
    """Its numbers carry the cells that they count; who wins is found here by another way, from the pairs alone."""
    heading = re.search(r"<h1>(.*?)</h1>", rendered(summary))[1]
    parts = dict(re.findall(r'([A-Za-z ]+) <data [^>]*data-at="([^"]*)"', heading))
    assert re.sub(r"<[^>]*>", "", heading) == plain(summary, say.headline(summary))
    due = {}
    for number, cell in enumerate(summary["cells"]):
        if cell["suite"] != "compile":  # two blocks: medians, no verdicts
            due.setdefault(outcome(cell), []).append(f"cells/{number}")
    assert {words.strip(): at.split() for words, at in parts.items() if words.strip() != "Of"} == due
    assert sum(map(len, due.values())) == len(parts["Of"].split()) < len(summary["cells"])


def outcome(cell):
    """What is said of a cell of the summary as it is made: all of its contenders are rivals."""
    wings = {one["name"]: one["wing"] for one in cell["contenders"] if one["refused"] is None}
    clear = [pair for pair in cell["pairs"] if pair["enough"] and not pair["noisy"] and not pair["carried"]]
    losers = {pair["first"] if pair["faster"] == pair["second"] else pair["second"] for pair in clear if pair["faster"]}
    best = set(wings) - losers
    if not clear:
        return "no answer in"
    if len({wings[name] for name in best}) == 1:
        return {"jax": "JAX", "torch": "PyTorch"}[wings[best.pop()]] + " is fastest in"
    between = [pair for pair in clear if {pair["first"], pair["second"]} <= best]
    settled = len(between) == len(best) * (len(best) - 1) / 2
    return "no difference between them in" if settled else "no answer in"
