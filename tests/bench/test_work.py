"""What a cell's call has to do, in closed form: by hand for a small model, and against the accounts it is made of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.cells import Cell, work
from benchmarks.suites.parts import random_numbers
from benchmarks.suites.scope import Scope, wing
from common import params
from common.accounting import flops
from common.config import GPTConfig
from common.variants import Latent
from reports import perf

CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20)
BATCH, LENGTH = 3, 8
POSITIONS = CONFIG.context_length * CONFIG.embed_dim
VECTORS = sum(p.size for p in params.table(CONFIG).values() if len(p.shape) == 1)


def told(task, dtype="float32", length=LENGTH, **options):
    return work(Cell(task, task, "tiny", CONFIG, BATCH, length, dtype, (), **options))


def read(dtype="float32"):
    """Everything once, but of positions one row each: the tied head reads the whole token table."""
    numbers = params.count(CONFIG) - POSITIONS + LENGTH * CONFIG.embed_dim
    return 4 * numbers if dtype == "float32" else 2 * (numbers - VECTORS) + 4 * VECTORS


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("bfloat16", 2)])
def test_least_bytes_by_hand(dtype, item):
    kept, logits = 4 * params.count(CONFIG), item * BATCH * CONFIG.vocab_size
    cache = item * 2 * 2 * BATCH * LENGTH * 12
    due = {
        "forward": read(dtype) + LENGTH * logits,
        "prefill": read(dtype) + cache + logits,
        "gradients": 2 * read(dtype) + kept,
        "train": 2 * read(dtype) + 8 * kept,
        "optimizer": 7 * kept,
    }
    assert {task: told(task, dtype)["bytes"] for task in due} == due


@pytest.mark.parametrize(("task", "counted"), [
    ("forward", "forward"), ("prefill", "prefill"), ("gradients", "train"), ("train", "train"),
])  # fmt: skip
def test_passes_count_tokens_and_both_kinds_of_flops(task, counted):
    found = told(task)
    assert (found["unit"], found["work"]) == ("tokens", BATCH * LENGTH)
    assert found["flops_full"] == flops.flops_full(CONFIG, counted, BATCH, LENGTH)
    assert found["flops_causal"] == flops.flops_causal(CONFIG, counted, BATCH, LENGTH)


def test_forms_that_not_all_have_are_counted_for_those_who_have_them():
    """Absorbed, a step makes no keys and values of all latents anew; a cell of one of them says its own."""
    config = CONFIG.with_(attention=(Latent(rank=4),))
    chosen = tuple(wing("torch", how) for how in ("default", "absorbed"))
    cell = Cell("ablation", "continue", "tiny", config, 1, LENGTH, "float32", chosen, 4)
    line, seen = cell.line(), LENGTH + 3
    assert set(line["own"]) == {"torch absorbed"}
    forms = {"default": {}, "absorbed": {"latent": "absorbed"}}
    due = {
        how: sum(
            sum(flops.decode_step(config, 1, seen, visible=LENGTH + step, forms=own).values()) for step in range(1, 4)
        )
        for how, own in forms.items()
    }
    assert (line["flops_full"], line["own"]["torch absorbed"]["flops_full"]) == (due["default"], due["absorbed"])
    assert due["absorbed"] < due["default"]
    assert all(set(Cell.line(alone)["own"]) == set() for alone in (replace(cell, contenders=(one,)) for one in chosen))


def test_decoding_is_a_prefill_and_steps():
    one = told("decode", new=1)
    assert (one["unit"], one["work"]) == ("tokens", BATCH)
    assert one["flops_full"] == told("prefill")["flops_full"]
    assert one["bytes"] == told("prefill")["bytes"] - 4 * BATCH * CONFIG.vocab_size
    slot, row = 4 * 2 * 2 * BATCH * 12, 4 * (LENGTH - BATCH) * CONFIG.embed_dim  # of a slot; a step looks up its rows
    three = told("decode", new=3)
    assert three["bytes"] == one["bytes"] + 2 * (read() - row) + slot * (LENGTH + 1 + LENGTH + 2 + 2)
    whole = flops.flops_full(CONFIG, "prefill", BATCH, LENGTH, slots=LENGTH + 2)
    assert three["flops_full"] == whole + 2 * flops.flops_full(CONFIG, "decode", BATCH, LENGTH + 2)
    assert one["flops_causal"] < three["flops_causal"] < three["flops_full"]


def test_decoding_from_one_token_is_one_causal_pass():
    found = told("decode", length=1, new=9)
    assert found["flops_causal"] == flops.flops_causal(CONFIG, "forward", BATCH, 9)


def test_without_a_cache_every_token_is_a_pass():
    found, lengths = told("decode", new=3, cached=False), (LENGTH, LENGTH + 1, LENGTH + 2)
    assert found["flops_full"] == sum(flops.flops_full(CONFIG, "prefill", BATCH, length) for length in lengths)
    assert found["bytes"] == 3 * read()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_numbers_are_made_on_the_way(dtype):
    """What is dropped or drawn from is read once as float32, and what it becomes is written."""
    assert told("dropout", dtype) == {**told("start-up"), "bytes": 2 * 4 * BATCH * LENGTH * 12}
    assert told("sample", dtype) == {**told("start-up"), "bytes": 4 * BATCH * (31 + 1)}


def test_random_numbers_move_no_more_than_kept_runs_could_read():
    """At the times that were measured, those bytes are a share of the measured bandwidth."""
    suite = {cell.task: cell for cell in random_numbers(Scope())}
    shares = []
    for path in Path(perf.__file__).parent.glob("*/summary.json"):
        kept = json.loads(path.read_text(encoding="utf-8"))
        for cell in (cell for cell in kept["cells"] if cell["cell"] in {own.name for own in suite.values()}):
            seconds = [one["seconds"]["median"] for one in cell["contenders"] if one["seconds"] is not None]
            moved, most = work(suite[cell["task"]])["bytes"], kept["peaks"]["read"]["value"]
            shares += [moved / spent / most for spent in seconds]
    assert shares
    assert all(0 < share <= 1 for share in shares)


def test_beginnings_have_no_work():
    assert told("start-up") == {"unit": "calls", "work": 1, "flops_full": None, "flops_causal": None, "bytes": None}
