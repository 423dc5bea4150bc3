"""What a turn owes to the turn before it, on drawn times."""

import numpy as np
import pytest

from benchmarks.harness import timing


def drawn(ratio, carry, count=200, mirrored=True, seed=0):
    """Blocks of "a", which takes `ratio` times as long as "b"; any turn after another contender's takes `carry` times
    as long as after one's own."""
    rng, last = np.random.default_rng(seed), [""]

    def arm(name, factor):
        def turn(*copy):
            slow = carry if last[0] not in ("", name) else 1.0
            last[0] = name
            return factor * slow * float(np.exp(0.01 * rng.standard_normal()))

        return turn

    match = timing.Contest({"a": arm("a", ratio), "b": arm("b", 1.0)}, seed, mirrored)
    for _ in range(count):
        match.block()
    return timing.compare(match.blocks, "a", "b")


def test_carry_over_withholds_a_verdict_and_says_so():
    found = drawn(1.2, 1.4)
    assert found["low"] > 1 + found["floor"]
    assert (found["faster"], found["carried"]) == (None, True)
    assert found["carry_over"] == pytest.approx(0.4, abs=0.05)


def test_without_it_the_same_ratio_has_a_winner():
    found = drawn(1.2, 1.0)
    assert (found["faster"], found["carried"]) == ("b", False)
    assert found["carry_over"] < 0.02


def test_a_ratio_beyond_it_has_a_winner():
    found = drawn(1.6, 1.2)
    assert (found["faster"], found["carried"]) == ("b", False)
    assert found["carry_over"] == pytest.approx(0.2, abs=0.05)


def test_no_difference_is_not_voided():
    found = drawn(1.0, 1.4)
    assert (found["faster"], found["carried"]) == (None, False)


def test_too_few_turns_say_nothing_of_it():
    found = drawn(1.2, 1.4, count=1, mirrored=False)
    assert (found["carry_over"], found["carried"], found["faster"]) == (None, False, None)
