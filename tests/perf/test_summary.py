"""What the summary makes of a record: peaks, shares of them, and what is refused for them."""

import csv
import io

import made
import pytest

from benchmarks.harness import summary
from benchmarks.harness.cells import Cell
from benchmarks.suites.scope import wing
from common.config import preset
from reports.perf import page, table

NARROW = Cell(
    "forward", "forward", made.MODEL, preset(made.MODEL), 4, 256, "bfloat16", (wing("torch", "fast+wide"), wing("jax"))
)
SHEET = {"name": "a device", "float32": 2.5e11, "tf32": 5e11, "bfloat16": 9e11, "bandwidth": 4e10}


def summarised(chosen, **how):
    found = summary.summarise(made.lines(chosen=chosen, **how))
    return found, [{one["name"]: one for one in cell["contenders"]} for cell in found["cells"]]


def test_wide_products_are_held_against_the_peak_of_what_they_multiply_in():
    """A processor without instructions for 16 bits is slow at them; who widens first is not."""
    slow = {**made.PEAKS, "gemm": {**made.PEAKS["gemm"], "bfloat16": {"torch": 2e10, "jax": 3e10}}}
    found, (own,) = summarised([NARROW], peaks=slow)
    wide, narrow = own["torch fast+wide"], own["jax"]
    assert (wide["multiplies"], narrow["multiplies"]) == ("float32", "bfloat16")
    assert wide["refused"] is None
    assert wide["mfu_full"] == wide["flops_per_second"] / found["peaks"]["gemm"]["float32"]["value"]
    assert "measured peak (mfu_full)" in narrow["refused"]


@pytest.mark.parametrize(("settings", "kind"), [
    ({"compute": "float32", "fp32_precision": "ieee"}, "float32"),
    ({"compute": "float32", "fp32_precision": "tf32"}, "tf32"),
    ({"compute": "float32", "matmul_precision": "highest"}, "float32"),
    ({"compute": "bfloat16", "products": "plain"}, "bfloat16"),
    ({"compute": "bfloat16", "products": "wide", "fp32_precision": "ieee"}, "float32"),
    ({}, None),
])  # fmt: skip
def test_the_format_that_is_multiplied_in(settings, kind):
    assert summary.multiplies(settings) == kind


def test_shares_of_the_data_sheet_lie_between_nothing_and_all_of_it():
    found, every = summarised(None, sheet=SHEET)
    shares = [one[key] for own in every for one in own.values() for key in ("mfu_sheet", "mbu_sheet") if one["seconds"]]
    assert all(0 < share <= 1 for share in shares if share is not None)
    assert any(share is not None for share in shares)
    one = every[0]["torch"]
    assert one["mfu_sheet"] == one["flops_per_second"] / SHEET["float32"]
    assert one["mbu_sheet"] == one["bytes_per_second"] / SHEET["bandwidth"]
    assert not any("data sheet" in row["reason"] for row in found["skipped"])


@pytest.mark.parametrize(("key", "share"), [("float32", "mfu_sheet"), ("bandwidth", "mbu_sheet")])
def test_more_than_the_data_sheet_says_is_not_published(key, share):
    """Neither a contender's rate nor a peak that was measured here."""
    found, every = summarised(None, sheet={**SHEET, key: 1e9}, peaks={})
    refused = [one["refused"] for own in every for one in own.values() if (one[share] or 0) > 1]
    assert refused
    assert all("the data sheet's peak" in reason for reason in refused)
    found, _ = summarised([NARROW], sheet={**SHEET, key: 1e9})
    what = "gemm, float32" if key == "float32" else "read, float32"
    told = {row["what"]: row["reason"] for row in found["skipped"]}
    assert f"peak of {what}, torch" in told
    assert "of the data sheet's 1e+09" in told[f"peak of {what}, torch"]
    peaks = found["peaks"]
    assert peaks["gemm"].get("float32") is None if key == "float32" else peaks["read"] is None


def decoding(**options):
    chosen = (wing("torch"), wing("torch", "fast"), wing("jax", "fast"))
    return Cell("decode", "decode", made.MODEL, preset(made.MODEL), 1, 16, "float32", chosen, 4, **options)


def test_what_pytorch_compiles_is_its_first_call_less_tracing_and_a_steady_one():
    _, (forward, cached, plain) = summarised([next(made.cells()), decoding(), decoding(cached=False, part="no cache")])
    for one in (forward["torch compiled"], cached["torch fast"]):
        assert one["phases"]["trace"] > 0
        both = one["phases"]["first"] - one["seconds"]["median"]
        assert one["phases"]["compile"] == both - one["phases"]["trace"] > 20
        assert one["phases"]["compile_how"] == summary.REST
    for one in (forward["torch"], forward["transformers"], cached["torch"], plain["torch fast"]):
        assert (one["phases"]["compile"], one["phases"]["compile_how"]) == (None, None)
    assert (forward["jax"]["phases"]["compile"], forward["jax"]["phases"]["compile_how"]) == (9.0, summary.TOLD)


def test_where_pytorch_does_not_tell_what_it_traced_it_is_part_of_compiling():
    """As in records of older versions of the harness."""
    lines = made.lines(chosen=[next(made.cells())])
    told = [{**line, "trace": None} if line["kind"] == "phase" else line for line in lines]
    (cell,) = summary.summarise(told)["cells"]
    (one,) = (one for one in cell["contenders"] if one["name"] == "torch compiled")
    assert one["phases"]["compile"] == one["phases"]["first"] - one["seconds"]["median"]
    assert one["phases"]["compile_how"] == summary.DERIVED


def test_a_cell_that_times_compiling_is_such_a_difference_already():
    found, every = summarised(None, suites=("compile",))
    for own in every:
        one = own["torch compiled"]
        assert one["phases"]["compile"] == one["seconds"]["median"] - one["phases"]["trace"]
        assert one["phases"]["compile_how"] == summary.REST
    assert found["break_even"] == []  # nobody compiles a program again and again


def test_derived_seconds_of_compiling_are_told_as_such():
    found = summary.summarise(made.lines(suites=("forward",)))
    text = table.markdown(found)
    derived = [line for line in text.splitlines() if f"({summary.REST})" in line]
    assert [line.split(" | ")[1] for line in derived] == ["PyTorch compiled"] * 2
    assert f" s</data> ({summary.REST})</td>" in page.render(found, {})
    how = {row["name"]: row["phase_compile_how"] for row in csv.DictReader(io.StringIO(table.csv(found)))}
    assert (how["torch compiled"], how["jax"], how["torch"]) == (summary.REST, summary.TOLD, "")


def test_only_compiling_has_to_be_earned_back():
    """First calls of who compiles nothing differ, too."""
    chosen = (wing("torch"), wing("torch", "fast"), wing("torch", "compiled"), wing("jax"), wing("jax", "scan"))
    cell = Cell("forward", "forward", made.MODEL, preset(made.MODEL), 4, 256, "float32", chosen)
    found, (own,) = summarised([cell])
    entries = {(row["first"], row["second"]): row for row in found["break_even"]}
    within = {("torch", "torch compiled"), ("torch fast", "torch compiled"), ("jax scan", "jax")}
    assert set(entries) == within | {("torch", "jax")}  # of two wings as they are, but of no other pair of them
    for (first, second), row in entries.items():
        phases = [own[name]["phases"] for name in (second, first)]
        spent = [(phase["compile"] or 0) + (phase["trace"] or 0) for phase in phases]
        assert row["extra_compile"] == spent[0] - spent[1]
