"""Error measures on numbers whose answer is known."""

import numpy as np
import pytest

from common import compare


def test_relative_rms_largest_and_where():
    want = np.full((2, 3), 2.0)
    got = want.copy()
    got[1, 2] += 0.6
    row = compare.difference("x", got, want)
    assert row.relative == pytest.approx(0.6 / np.sqrt(6) / 2)
    assert row.largest == pytest.approx(0.6)
    assert row.where == (1, 2)
    assert row.size == 6
    assert compare.difference("x", want, want).relative == 0


def test_zero_references_and_empty_arrays():
    assert compare.difference("x", np.zeros(3), np.zeros(3)).relative == 0
    assert compare.difference("x", np.ones(3), np.zeros(3)).relative == np.inf
    assert compare.difference("x", np.zeros((0, 2)), np.zeros((0, 2))).largest == 0


@pytest.mark.parametrize(
    ("got", "want", "words"),
    [
        (np.zeros(2), np.zeros(3), "shape"),
        (np.array([np.nan, 1]), np.array([0.0, 1]), "NaN or infinity"),
        (np.array([0.0, 1]), np.array([np.nan, 1]), "NaN or infinity"),
        (np.array([np.inf, 1]), np.array([-np.inf, 1]), "NaN or infinity"),
    ],
)
def test_shapes_and_places_of_nan_must_be_equal(got, want, words):
    with pytest.raises(ValueError, match=words):
        compare.difference("x", got, want)


def test_equal_places_of_infinity_are_left_out():
    array = np.array([-np.inf, 1.0, np.nan])
    row = compare.difference("x", array + np.array([0, 1e-3, 0]), array)
    assert row.relative == pytest.approx(1e-3)


def test_sets_of_arrays():
    want = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
    got = {**want, "b": np.ones(2) * 1.1, "c": np.ones(2) * 2}
    rows = compare.differences(got, want)
    assert compare.worst(rows).name == "c"
    assert compare.first_divergent(got, want, 1e-6).name == "b"
    assert compare.first_divergent(want, want, 0) is None
    with pytest.raises(ValueError, match="names differ"):
        compare.differences({"a": np.ones(2)}, want)


def test_ulps():
    one = np.float32(1)
    above = np.nextafter(one, np.float32(2))
    assert compare.ulps(np.array([above]), np.array([1.0]))[0] == 1
    assert compare.ulps(np.array([1.0]), np.array([1.0]))[0] == 0


def test_nats_and_agreement():
    logits = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    assert compare.nats(logits + 7, logits) == pytest.approx([0, 0], abs=1e-15)
    other = np.log(np.array([[0.25, 0.75], [0.1, 0.9]]))
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert compare.nats(other, logits)[0] == pytest.approx(expected)
    assert compare.top1_agreement(other, np.log(np.array([[0.2, 0.8], [0.9, 0.1]]))) == 0.5
