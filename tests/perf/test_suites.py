"""From the real suites to the report: what cells and contenders write gives every plot its rows."""

import os
from pathlib import Path
from types import SimpleNamespace

import made
import pytest

from benchmarks import job
from benchmarks.harness import contenders, contest, record, timing
from benchmarks.harness.cells import Cell
from benchmarks.harness.contenders import Contender
from benchmarks.harness.summary import summarise
from benchmarks.suites import SUITES, Scope
from benchmarks.suites.scope import wing
from common import backend, params
from common.config import GPTConfig
from reports.perf import series

CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)


def every(quick):
    scope = Scope(quick=quick)
    return [cell for suite in SUITES.values() for cell in suite(scope)]


@pytest.fixture(scope="module", params=[True, pytest.param(False, marks=pytest.mark.full)], ids=["quick", "whole"])
def found(request):
    return summarise(
        made.lines(chosen=every(request.param), noisy=(), blocks=timing.ENOUGH)
    )  # more than compile cells have


@pytest.mark.full
def test_every_plot_has_rows(found):
    rows = series.series(found)
    assert set(rows) == set(series.SERIES)
    suites = {cell["cell"]: cell["suite"] for cell in found["cells"]}
    drawn = {name: {suites[row["cell"]] for row in own} for name, own in rows.items()}
    assert drawn["roofline"] >= {"forward", "prefill", "train", "decode", "loss"}
    assert drawn["ratio_forest"] >= {"forward", "prefill", "train", "decode", "ablation", "cases", "compile"}
    assert {row["axis"] for row in rows["scaling"]} == {"context", "batch"}
    parts = {(suites[row["cell"]], row["what"]) for row in rows["memory"] if row["name"] == series.CLOSED}
    assert parts >= {("train", part) for part in series.PARTS if part != "cache"} | {("decode", "cache")}
    assert "PyTorch compiled" in {row["second"] for row in rows["breakeven"]}


def test_every_cell_on_an_axis_is_drawn(found):
    rows = series.series(found)
    on_axis = {cell["cell"] for cell in found["cells"] if cell["axis"]}
    assert on_axis == {row["cell"] for name in ("scaling", "variants", "depth") for row in rows[name]}
    groups = {row["group"].split(", ")[1] for row in rows["depth"]}
    assert groups == {cell["group"] for cell in found["cells"] if cell["suite"] == "compile"}


def test_nobody_is_refused(found):
    assert [one["refused"] for cell in found["cells"] for one in cell["contenders"] if one["refused"]] == []


def test_bfloat16_meets_float32(found):
    """Decoding, with a ratio between them in each wing."""
    (cell,) = (
        cell for cell in found["cells"] if cell["suite"] == "decode" and cell["cell"].endswith("/both precisions")
    )
    own = {one["name"]: one for one in cell["contenders"]}
    for one in cell["contenders"]:
        assert one["bytes_per_second"] == one["bytes"] / one["seconds"]["median"]
    pairs = {(pair["first"], pair["second"]) for pair in cell["pairs"]}
    for name in ("torch", "jax"):
        narrow = next(one for one in own if one.startswith(f"{name} fast") and one.endswith(" bfloat16"))
        assert (f"{name} fast", narrow) in pairs
        assert own[narrow]["bytes"] < 0.6 * own[f"{name} fast"]["bytes"]
    assert {one["dtype"] for one in cell["contenders"]} == {"float32", "bfloat16"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The record of a contest that really took place."""
    here = tmp_path_factory.mktemp("real")
    one = Contender("honest", "honest", "planted_contenders:honest_backend", "torch")
    cell = Cell("forward", "forward", "tiny", CONFIG, 3, 8, "float32", (one,), memory=True)
    kept = record.Record(here)
    with pytest.MonkeyPatch.context() as patch:
        planted = str(Path(__file__).parents[1] / "bench")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [planted, os.environ.get("PYTHONPATH")])))
        contest.run([cell], contest.Rules(1, seconds=0.2, least=1, quick=True), kept, lambda what, share: None)
    return kept.lines


@pytest.mark.parametrize("kind", ["cell", "contender", "phase", "gate", "block", "memory"])
def test_made_lines_have_no_keys_but_those_of_real_ones(real, kind):
    due = [set(line) for line in real if line["kind"] == kind]
    assert due
    assert all(set(line) <= due[0] for line in made.lines() if line["kind"] == kind)


def test_a_made_run_begins_as_a_real_one(tmp_path):
    work = SimpleNamespace(asked=job.Settings(), device={"kind": "cpu"}, rules=contest.Rules(1), cells=())
    due, told = job.describe(work), made.run(("forward",), False)
    assert set(told) <= {"kind", *due}
    assert set(told["machine"]) <= set(due["machine"])


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_made_settings_are_those_that_a_model_tells(name):
    own = backend.load(name)
    cell, one = Cell("forward", "forward", "tiny", CONFIG, 3, 8, "float32", ()), wing(name)
    model = own.build(CONFIG, params.initialise(CONFIG, 0), one.execution("float32", "cpu", None))
    due = contenders.settings(own, model)
    told = {**made.settings(cell, one), "threads": due["threads"]}
    assert told == {key: due[key] for key in told}
