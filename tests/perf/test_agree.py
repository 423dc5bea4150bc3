"""Runs held against each other: who says the same, who saw less, who contradicts."""

import copy
import functools
import re

import made
import pytest

from benchmarks.harness.summary import summarise
from common.errors import UserError
from reports.perf import agree, job


@functools.cache
def run(seed):
    return summarise(list(made.lines(seed, suites=("forward",))))


def outcomes(*runs):
    return {one.title: one.outcome for one in agree.hold(dict(zip("abc", runs, strict=False)))}


def changed(found, number=0, **pair):
    found = copy.deepcopy(found)
    found["cells"][0]["pairs"][number] |= pair
    return found


def first(found):
    return found["cells"][0]["pairs"][0]


def title(found):
    return agree.hold({"a": found, "b": found})[0].title


def test_a_run_agrees_with_itself():
    assert set(outcomes(run(0), run(0), run(0)).values()) == {agree.AGREE}
    assert len(outcomes(run(0), run(0))) == sum(len(cell["pairs"]) for cell in run(0)["cells"])


def test_other_winners_and_factors_apart_contradict():
    one, name = run(0), title(run(0))
    pair = first(one)
    assert pair["faster"] == pair["second"]
    backwards = changed(one, faster=pair["first"])
    apart = changed(one, ratio=2 * pair["ratio"], low=2 * pair["low"], high=2 * pair["high"])
    for other in (backwards, apart):
        assert outcomes(one, other)[name] == agree.CONTRADICT
        assert outcomes(one, one, other)[name] == agree.CONTRADICT
        assert list(outcomes(one, other).values()).count(agree.CONTRADICT) == 1


def test_who_sees_no_difference_does_not_contradict_unless_intervals_lie_apart():
    one, name = run(0), title(run(0))
    assert outcomes(one, changed(one, faster=None))[name] == agree.OPEN
    assert outcomes(one, changed(one, faster=None, ratio=0.5, low=0.4, high=0.6))[name] == agree.CONTRADICT


def test_what_may_not_be_shown_is_not_held_against_anybody():
    one, name = run(0), title(run(0))
    noisy = changed(one, noisy=True, faster=None)
    assert outcomes(one, noisy)[name] == agree.ALONE
    assert outcomes(one, noisy, one)[name] == agree.AGREE


def test_intervals_are_counted_that_were_held_against_each_other():
    one = run(0)
    pairs = sum(len(cell["pairs"]) for cell in one["cells"])
    assert agree.comparisons(agree.hold({"a": one, "b": one, "c": one})) == 3 * pairs
    noisy = changed(one, noisy=True, faster=None)
    assert agree.comparisons(agree.hold({"a": one, "b": one, "c": noisy})) == 3 * pairs - 2


def test_runs_without_a_ratio_say_nothing():
    noisy = copy.deepcopy(run(0))
    for cell in noisy["cells"]:
        for pair in cell["pairs"]:
            pair["noisy"] = True
    assert not agree.comparable(agree.hold({"a": noisy, "b": noisy}))
    assert agree.comparable(agree.hold({"a": run(0), "b": run(0)}))


def test_the_order_in_which_a_run_has_its_contenders_does_not_matter():
    one = run(0)
    pair = first(one)
    turned = changed(
        one,
        first=pair["second"],
        second=pair["first"],
        ratio=1 / pair["ratio"],
        low=1 / pair["high"],
        high=1 / pair["low"],
    )
    assert set(outcomes(one, turned).values()) == {agree.AGREE}
    (line,) = (held for held in agree.hold({"a": one, "b": turned}) if held.title == title(one))
    spans = [pair.values for pair, _ in line.told.values()]
    assert spans[0] == pytest.approx(spans[1])
    assert len({words for _, words in line.told.values()}) == 1


def test_the_table_has_a_line_for_every_pair_and_the_counts_add_up():
    runs = {"a": run(0), "b": changed(run(0), faster=None)}
    held = agree.hold(runs)
    lines = agree.table(held, list(runs)).splitlines()
    assert len(lines) == 2 + len(held)
    assert lines[0] == "| Contenders | a | b | Outcome |"
    assert {line.count("|") for line in lines} == {5}
    assert sum(agree.counts(held).values()) == len(held)


def test_runs_of_other_cells_are_refused():
    other = summarise(list(made.lines(0, suites=("compile",))))
    with pytest.raises(UserError, match="no two contenders"):
        agree.hold({"a": run(0), "b": other})
    with pytest.raises(UserError, match="at least two"):
        agree.hold({"a": run(0)})


def test_names_tell_folders_apart(tmp_path):
    folders = [tmp_path / "one" / "cpu", tmp_path / "two" / "cpu", tmp_path / "gpu"]
    assert list(agree.names_of(folders).values())[:2] == ["one/cpu", "two/cpu"]
    assert list(agree.names_of(folders[1:]).values()) == ["cpu", "gpu"]
    with pytest.raises(UserError, match="twice"):
        agree.names_of([folders[0], folders[0]])


def swapped(line):
    """A line whose turns of both wings have changed places."""
    other = {"torch": "jax", "jax": "torch"}
    return re.sub('"(torch|jax)"', lambda found: f'"{other[found[1]]}"', line) if '"block"' in line else line


def test_the_command_prints_the_table_and_fails_where_runs_contradict(call, written, folder):
    code, out, err = call("--agree", written, folder)
    assert code == 0
    assert out.count("| agree |") > 10
    assert "CONTRADICT" not in out + err
    lines = (folder / job.RAW).read_text().splitlines(keepends=True)
    (folder / job.RAW).write_text("".join(map(swapped, lines)))
    code, out, err = call("--agree", written, folder)
    assert code == 1
    assert "| CONTRADICT |" in out
    assert "CONTRADICT (runs name different winners" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [((), "at least two folders"), (("--check",), "one at a time"), (("nowhere",), "nowhere is not a folder")],
)
def test_what_cannot_be_held_is_refused_in_a_sentence(call, written, more, words):
    code, out, err = call("--agree", written, *more)
    assert (code, out) == (2, "")
    assert words in err
