"""A base in 4 bits is part of C1 and C2: honest wings pass, another byte or gradient is noticed."""

import numpy as np
import pytest

from common import backend as door
from common import nf4
from common.cases import CASES
from common.parity import four_bits
from common.parity.trial import Session, Trial, subjects

WINGS = ("torch", "jax")


class Altered:
    """The PyTorch wing, with one byte of what 4 bits keep changed."""

    def __init__(self, part):
        self._wing, self._part = door.load("torch"), part

    def __getattr__(self, name):
        return getattr(self._wing, name)

    def four_bits(self, weight, base):
        found = self._wing.four_bits(weight, base)
        if self._part in found:
            found[self._part].view(np.uint8)[..., -1] ^= 1
        return found


def failed(wing):
    return {row.what for row in four_bits.exact(Session({"torch": wing})) if not row.passed}


def test_honest_bits_are_those_they_always_were():
    rows = list(four_bits.exact(Session(subjects(("torch",)))))
    assert [row.errors for row in rows] == [{"numpy": 0.0, "torch": 0.0}] * len(four_bits.BASES)


def test_one_wrong_byte_is_noticed():
    both = {four_bits.what(base) for base in four_bits.BASES}
    for part in ("packed", "absmax", "weight"):
        assert failed(Altered(part)) == both
    for part in ("scale", "offset"):
        assert failed(Altered(part)) == {four_bits.what("nf4_double")}


def test_the_matrices_have_what_is_hard():
    uneven, level = four_bits.matrices()
    flat, groups = uneven.reshape(-1), nf4.BLOCK * nf4.GROUP
    assert uneven.size > groups  # of 8-bit scales
    assert uneven.size % nf4.BLOCK
    assert uneven.size % 2
    assert not flat[: nf4.BLOCK].any()
    assert set(nf4.midpoints(nf4.NF4)) <= set(flat[nf4.BLOCK : 2 * nf4.BLOCK])
    assert 0 < flat[2 * nf4.BLOCK] < nf4.TINY
    assert len(set(level.reshape(-1))) == 1


def test_what_is_tried_follows_from_the_cases():
    """Models with adapters, and the first with a kind of feed-forward map that these lack, in a session that is not
    quick."""
    for quick in (True, False):
        session = Session({}, quick=quick)
        tried = {name for name, case in CASES.items() if four_bits.declared(Trial(session, case))}
        adapted = {name for name, case in CASES.items() if case.config.adapters}
        assert tried == (adapted if quick else adapted | {"gpt_today"})


@pytest.mark.full_for("gpt_dora", "gpt_today")
@pytest.mark.parametrize("name", ["gpt_lora", "gpt_dora", "gpt_today"])
def test_models_compute_what_the_oracle_does(name):
    wings = ("torch",) if name == "gpt_lora" else WINGS
    trial = Trial(Session(subjects(wings)), CASES[name])
    rows = list(four_bits.rows(trial))
    assert [row.key for row in rows if not row.passed] == []
    assert sorted((row.what, row.tier) for row in rows) == sorted(four_bits.declared(trial))
