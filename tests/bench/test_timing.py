"""Intervals and verdicts on drawn times: another run of the same contenders says the same."""

import numpy as np
import pytest

from benchmarks.harness import timing


def run(rng, blocks, noise, process, factor=1.0):
    """One run: two contenders, two processes each, that are off by `process`; turns are off by `noise`."""
    off = {(name, copy): process * rng.standard_normal() for name in "ab" for copy in (0, 1)}

    def turn(name):
        return lambda copy: float(
            np.exp(off[name, copy] + noise * rng.standard_normal()) * (factor if name == "a" else 1.0)
        )

    contest = timing.Contest({name: turn(name) for name in "ab"}, int(rng.integers(1 << 30)))
    for _ in range(blocks):
        contest.block()
    return timing.compare(contest.blocks, "a", "b", processes=2)


def alone(rng, process, factor=1.0):
    """One run in which each of the two has one process, both copies in it."""
    off = {name: process * rng.standard_normal() / np.sqrt(2) for name in "ab"}

    def turn(name):
        return lambda copy: float(np.exp(off[name] + 0.01 * rng.standard_normal()) * (factor if name == "a" else 1.0))

    contest = timing.Contest({name: turn(name) for name in "ab"}, int(rng.integers(1 << 30)))
    for _ in range(8):
        contest.block()
    return timing.compare(contest.blocks, "a", "b", processes=1, apart=process)


def test_where_each_has_one_process_what_processes_differ_by_is_no_lead():
    """Twelve in sixty would be called faster by their blocks alone."""
    rng = np.random.default_rng(3)
    runs = [alone(rng, 0.05) for _ in range(60)]
    assert sum(found["faster"] is not None for found in runs) <= 6
    assert np.mean([found["low"] <= 1 <= found["high"] for found in runs]) >= 0.9
    assert sum(alone(rng, 0.02, factor=1.2)["faster"] == "b" for _ in range(20)) == 20


def test_what_processes_typically_differ_by_is_told_by_the_median_or_assumed():
    rng = np.random.default_rng(4)
    drawn = [*(0.02 * rng.standard_normal(101)), 0.4, -0.5]
    assert timing.typical(drawn) == pytest.approx(0.02, rel=0.25)
    assert timing.typical(drawn[:4]) == timing.APART


@pytest.mark.parametrize(("blocks", "noise", "process"), [(6, 0.03, 0.0), (6, 0.02, 0.02), (24, 0.05, 0.01)])
def test_equal_contenders_are_seldom_told_apart_and_intervals_hold(blocks, noise, process):
    rng = np.random.default_rng(blocks)
    runs = [run(rng, blocks, noise, process) for _ in range(60)]
    assert sum(found["faster"] is not None for found in runs) <= 1
    assert np.mean([found["low"] <= 1 <= found["high"] for found in runs]) >= 0.9


def test_three_runs_of_a_clear_difference_agree_within_their_intervals():
    rng = np.random.default_rng(1)
    runs = [[run(rng, 8, 0.02, 0.01, factor=1.2) for _ in range(3)] for _ in range(20)]
    assert sum(found["faster"] == "b" for three in runs for found in three) >= 59
    assert np.mean([found["low"] <= 1.2 <= found["high"] for three in runs for found in three]) >= 0.9
    assert np.mean([a["low"] <= b["high"] for three in runs for a in three for b in three]) >= 0.98
