"""What is said about a cell: verdicts, floors, refusals, and what may not be said."""

import pytest

from reports.perf import numbers, series
from reports.perf import wording as say
from reports.perf.numbers import Number, factor, marked, percent, plain, seconds
from reports.perf.view import Cell, break_evens

FIRST = 0  # the first cell of the summary: forward in float32


def told(found, number=FIRST, name=None):
    """The finding of a cell, or how a contender of it stands."""
    cell = Cell(found, number)
    if name is None:
        return plain(found, say.finding(cell))
    return plain(found, say.standing(cell, next(one for one in cell.contenders if one.name == name)))


def pair(found, first, second, number=FIRST):
    return next(p for p in found["cells"][number]["pairs"] if (p["first"], p["second"]) == (first, second))


def test_the_faster_one_is_named_with_its_ratio(summary):
    pair(summary, "torch", "jax").update(ratio=1.2149, low=1.17, high=1.26, floor=0.02)
    pair(summary, "torch", "transformers").update(ratio=0.93, low=0.91, high=0.95)
    assert told(summary, name="jax") == "JAX 1.21 × as fast"
    assert told(summary, name="transformers") == "PyTorch 1.08 × as fast"
    assert told(summary, name="torch") == "reference"


def test_no_one_is_faster_inside_the_floor(summary):
    pair(summary, "torch", "jax").update(faster=None, floor=0.0204)
    assert told(summary, name="jax") == "no difference seen (floor 2.0 %)"


def test_noise_has_no_ratio(summary):
    pair(summary, "torch", "jax").update(noisy=True, faster=None, floor=0.0831)
    assert told(summary, name="jax") == "noisy (floor 8.3 %)"
    training = next(n for n, cell in enumerate(summary["cells"]) if cell["suite"] == "train")
    largest = percent(max(p["floor"] for p in summary["cells"][training]["pairs"]))
    assert told(summary, training) == (
        f"noisy: this machine differs from itself by up to {largest}, so no ratio near that is shown"
    )


def test_other_work_beside_a_contest_is_said_of_the_worst_cell(summary):
    one, other, quiet = summary["cells"][:3]
    assert say.disturbed(summary) == ()
    quiet["others"], one["others"] = 0.04, 0.06
    assert plain(summary, say.disturbed(summary)) == (
        "Other work took up to 6.0 % of the cores in 1 cell; their ratios may be others in a quiet run."
    )
    other["others"] = 0.31
    assert plain(summary, say.warnings(summary)[-1]) == (
        "Other work took up to 31 % of the cores in 2 cells; their ratios may be others in a quiet run."
    )


def test_what_carry_over_voids_is_said_to_be_void(summary):
    pair(summary, "torch", "jax").update(carried=True, faster=None, carry_over=0.312)
    assert told(summary, name="jax") == "void: carry-over of 31 %"
    for number, own in enumerate(summary["cells"][FIRST]["pairs"]):
        own.update(carried=True, faster=None, carry_over=0.1 + 0.01 * number)
    most = percent(0.09 + 0.01 * len(summary["cells"][FIRST]["pairs"]))
    assert told(summary) == f"void: carry-over of up to {most}, so no ratio is shown"


def test_a_noisy_pair_has_no_winner_whatever_it_says(summary):
    for own in summary["cells"][FIRST]["pairs"]:
        own.update(noisy=True)
    assert "×" not in told(summary)
    assert Cell(summary, FIRST).leaders == []


def test_too_few_samples(summary):
    assert told(summary, len(summary["cells"]) - 1) == "too few samples to tell"
    assert told(summary, len(summary["cells"]) - 1, "jax scan") == "too few samples"


def unclear(summary, name, **why):
    """Nothing is known of a contender of the first cell."""
    for own in summary["cells"][FIRST]["pairs"]:
        if name in (own["first"], own["second"]):
            own.update(faster=None, **why)


def test_nobody_is_called_fastest_while_a_rival_may_be_faster(summary):
    """And who that is is named; what could be compared is still told."""
    only(summary, FIRST)
    assert plain(summary, say.headline(summary)) == "Of 1 cell: JAX is fastest in 1."
    unclear(summary, "torch compiled", noisy=True, floor=0.0831)
    cell = Cell(summary, FIRST)
    assert cell.leaders == []
    assert {one.name for one in cell.front} == {"torch compiled", "jax", "jax scan"}
    best = min(cell.firm, key=lambda one: one.one["seconds"]["median"])
    text = told(summary)
    assert text.startswith(f"{best.title} ")
    assert " × as fast as PyTorch (" in text
    assert text.endswith(f"; nobody is called fastest (PyTorch compiled against {best.title}: noisy (floor 8.3 %))")
    assert plain(summary, say.headline(summary)) == "Of 1 cell: no answer in 1."


def test_a_rival_of_the_same_framework_that_may_be_faster_costs_a_leader_but_no_win(summary):
    only(summary, FIRST)
    unclear(summary, "jax", carried=True, carry_over=0.12)
    assert told(summary).endswith("nobody is called fastest (JAX against JAX scan: void: carry-over of 12 %)")
    pair(summary, "torch", "jax").update(carried=False, faster="jax")
    pair(summary, "torch compiled", "jax").update(carried=False, faster="jax")
    assert Cell(summary, FIRST).leaders == []
    assert plain(summary, say.headline(summary)) == "Of 1 cell: JAX is fastest in 1."


def test_a_rival_that_is_slower_than_somebody_keeps_nobody_from_leading(summary):
    pair(summary, "jax scan", "transformers").update(carried=True, faster=None)
    assert "nobody" not in told(summary)
    assert [one.name for one in Cell(summary, FIRST).leaders] == ["jax", "jax scan"]


def only(summary, number):
    """The summary with one cell alone."""
    summary["cells"][:] = [summary["cells"][number]]


def test_a_refusal_is_told_in_its_own_words(summary):
    assert told(summary, 1, "jax scan").startswith("The logits are 3.1e-02 from the oracle's")


def test_a_refused_contender_has_no_ratio_even_if_it_was_timed(summary):
    one = next(c for c in summary["cells"][FIRST]["contenders"] if c["name"] == "jax")
    one["refused"] = "Something was compiled inside the timed region."
    cell = Cell(summary, FIRST)
    assert all(not p.usable for p in cell.pairs if "jax" in (p.base.name, p.other.name))
    assert told(summary, name="jax") == one["refused"]
    assert "JAX scan" in told(summary)
    assert "JAX " not in told(summary).replace("JAX scan", "")


def test_the_best_of_each_wing_meet(summary):
    text = told(summary)
    medians = {one["name"]: one["seconds"]["median"] for one in summary["cells"][FIRST]["contenders"]}
    best = pair(summary, "torch compiled", min(("jax", "jax scan"), key=medians.get))
    title = {"jax": "JAX", "jax scan": "JAX scan"}[best["second"]]
    assert text.startswith(f"{title} {best['ratio']:.2f} × as fast as PyTorch compiled ({best['low']:.2f} to ")
    own = pair(summary, "jax", "jax scan")
    assert text.endswith(f"no difference seen between JAX and JAX scan (floor {100 * own['floor']:.1f} %)")


def test_what_bounds_others_wins_nothing(summary):
    for one in summary["cells"][FIRST]["contenders"]:
        one["lower_bound"] = one["wing"] == "jax"
    pair(summary, "torch compiled", "transformers").update(ratio=0.795)
    pair(summary, "torch", "jax").update(ratio=1.2149)
    assert told(summary).startswith("PyTorch compiled 1.26 × as fast as transformers (")
    assert told(summary, name="jax") == "JAX 1.21 × as fast; a lower bound, no rival"


def test_the_reference_is_timed(summary):
    summary["cells"][FIRST]["contenders"][0]["refused"] = "No."
    assert Cell(summary, FIRST).reference.name == "torch compiled"


def test_a_pair_can_be_looked_at_from_both_sides(summary):
    cell = Cell(summary, FIRST)
    one, two = cell.contenders[:2]
    ahead, back = cell.between(one, two), cell.between(two, one)
    assert back.values == pytest.approx([1 / value for value in (ahead.values[0], *reversed(ahead.values[1:]))])
    assert (ahead.state, back.state) == ("faster", "slower")
    assert plain(summary, say.verdict(ahead)) == plain(summary, say.verdict(back))


def test_the_headline_counts_contests_of_several_wings(summary):
    text = plain(summary, say.headline(summary))
    assert text == "Of 10 cells: JAX is fastest in 9, no answer in 1."
    for cell in summary["cells"][1:]:
        cell["contenders"] = [one for one in cell["contenders"] if one["wing"] == "jax"]
    assert plain(summary, say.headline(summary)) == "Of 1 cell: JAX is fastest in 1."
    summary["cells"] = []
    assert plain(summary, say.headline(summary)) == "Nothing was timed in two frameworks."


def test_break_even(summary):
    one = next(one for one in break_evens(summary) if one.pair.state == "faster")
    assert plain(summary, say.break_even(one)) == f"{one.entry['calls']} calls"
    one.entry["calls"] = None
    assert plain(summary, say.break_even(one)) == "never"


def test_products_are_told_as_the_frameworks_flags_have_them(summary):
    first = [say.precision(one) for one in summary["cells"][FIRST]["contenders"]]
    assert first == ["float32, fp32 ieee"] * 2 + ["float32, matmul highest"] * 2 + [first[4]]
    assert first[4] == "float32, float32 (softmax, loss) sums, fp32 ieee"
    one = summary["cells"][FIRST]["contenders"][0]
    one["settings"] |= {"compute": "bfloat16", "products": "wide", "fp32_precision": "tf32"}
    assert say.precision(one) == "bfloat16, float32 weights, float32 sums, wide products, fp32 tf32"


def test_a_saving_inside_the_noise_pays_for_nothing(summary):
    one = break_evens(summary)[0]
    pair(summary, one.first.name, one.second.name).update(faster=None, floor=0.02)
    assert plain(summary, say.break_even(break_evens(summary)[0])) == "no difference seen (floor 2.0 %)"
    assert one.entry["calls"] not in [row["calls"] for row in series.breakeven(summary)[:1]]
    training = [one for one in break_evens(summary) if one.cell.cell["suite"] == "train"]
    assert {plain(summary, say.break_even(one))[:5] for one in training} == {"noisy"}


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (seconds, 0.0099999, "10.0 ms"), (seconds, 0.99999, "1.00 s"), (seconds, 123.4, "123 s"),
        (seconds, -0.02, "−20.0 ms"), (seconds, 0, "0 s"), (seconds, 3e-9, "3.00 ns"),
        (factor, 1.214, "1.21"), (factor, 1.0041, "1.004"), (factor, 0.99951, "0.9995"), (factor, 1, "1.00"),
        (factor, 12.34, "12.3"), (factor, 123.4, "123"), (factor, 0.05, "0.050"), (factor, 2345.6, "2,346"),
        (percent, 0.02, "2.0 %"), (percent, 0.123, "12 %"), (percent, 0, "0.0 %"),
        (numbers.count, 1234.5, "1,234"), (numbers.count, 33.66, "33.7"), (numbers.count, 1, "1"),
        (numbers.FORMS["flops"], 1.9e11, "190 GFLOP/s"), (numbers.FORMS["bandwidth"], 4.8e12, "4.8 TB/s"),
    ],
)  # fmt: skip
def test_forms(form, value, text):
    assert form(value) == text


def test_numbers_say_where_they_come_from(summary):
    number = Number("cells/0/contenders/0/seconds/median", "seconds")
    html = str(marked(summary, ("<in> ", number)))
    raw = summary["cells"][0]["contenders"][0]["seconds"]["median"]
    assert html.startswith(f'&lt;in&gt; <data value="{raw!r}" data-at="{number.at}" data-form="seconds">')
    assert plain(summary, (Number("cells/0/contenders/0/memory/device", "size"),)) == "—"
