"""The mutation matrix: planted bugs are noticed, by rows that honest implementations pass; survivors fail the run."""

import numpy as np
import pytest

from common.cases import CASES
from common.errors import UserError
from common.parity import planted, power, suspects
from common.parity.planted import Mutant, Place
from common.parity.run import run
from common.parity.trial import Session, subjects, truth

WINGS = ("torch", "jax")
EVERYTHING = list(power.chosen(Session(subjects(WINGS))))
QUICK = {"torch": 8, "numpy": 30, "common": 30, "jax": 30}  # of what every component has, each so-manieth


@pytest.fixture(scope="module")
def court():
    return power.Court(Session(subjects(WINGS)))


def sample():
    """One mutant of every component in PyTorch, and a few elsewhere: the rest is in `make test-full`."""
    seen = {}
    for mutant, place in EVERYTHING:
        seen.setdefault((place, mutant.component), (mutant, place))
    some = [pair for number, pair in enumerate(seen.values()) if number % QUICK.get(pair[1], 8) == 0]
    return [pair for pair in some if pair[0].component not in ("precision", "compiled")]


def name(pair):
    return f"{pair[0].id}-{pair[1]}"


@pytest.mark.full_for("sinusoids-of-the-call-numpy", "groups-interleaved-numpy")  # searches of half a minute
@pytest.mark.full_for("-jax")  # a court that compiles; tests/diverge finds bugs of that wing too
@pytest.mark.parametrize("pair", sample(), ids=name)
def test_bugs_are_noticed_and_what_is_none_is_not(pair, court):
    judged(pair, court)


@pytest.mark.full
@pytest.mark.parametrize("pair", [pair for pair in EVERYTHING if pair not in sample()], ids=name)
def test_every_other_bug_is_noticed(pair, court):
    judged(pair, court)


def judged(pair, court):
    entry = court.tried(*pair)
    row = power.verdict(*pair, entry)
    assert row.passed, row.note
    assert entry["killed"] is not bool(pair[0].equivalent)
    if entry["killed"]:
        assert entry["claim"] in ("C0", "C1", "C2", "C3", "C4", "C5", "C7")
        assert float(entry["error"]) > entry["bound"]
    assert entry["file"].endswith(pair[0].places[pair[1]].file)


def test_a_survivor_fails_the_run(monkeypatch):
    """What changes nothing but claims to be a bug; and a bug that claims to change nothing."""
    harmless = Place("masks.py", "(key <= query)", "~(key > query)")
    bug = Place("masks.py", "(key <= query)", "(key < query)")
    hints = ("attention",)
    mutants = {
        "survivor": Mutant("survivor", "masks", "Nothing.", {"torch": harmless}, hints),
        "bug": Mutant("bug", "masks", "The diagonal is hidden.", {"torch": bug}, hints),
        "not equivalent": Mutant("not equivalent", "masks", "The same.", {"torch": bug}, hints, "because"),
        "equivalent": Mutant("equivalent", "masks", "The same.", {"torch": harmless}, hints, "because"),
    }
    monkeypatch.setattr(planted, "load_mutants", lambda: mutants)
    monkeypatch.setattr(suspects, "ordered", lambda first: first)
    monkeypatch.setattr(power.fields, "rows", lambda session: iter(()))
    monkeypatch.setattr(power.fields, "declared", lambda session: set())
    found = run(Session(subjects(WINGS)), [power])
    assert not found.passed
    assert {row.what for row in found.failures} == {"mutant/survivor/torch", "mutant/not equivalent/torch"}
    matrix = {entry["id"]: entry for entry in found.exhibits["mutants"]}
    assert set(matrix) == {"survivor", "bug", "equivalent", "not equivalent"}
    assert matrix["bug"]["killed"]
    assert (matrix["bug"]["claim"], matrix["bug"]["case"]) == ("C2", "attention")
    assert not matrix["survivor"]["killed"]
    assert {name for name, entry in matrix.items() if entry["equivalent"]} == {"equivalent", "not equivalent"}


def test_what_honest_code_fails_too_notices_nothing(monkeypatch, court):
    """A comparison that fails, or raises, without the bug as well is no witness."""
    edit = Place("masks.py", "(key <= query)", "~(key > query)")
    mutant = Mutant("harmless", "masks", "Nothing.", {"torch": edit}, ("attention",))
    monkeypatch.setattr(suspects, "ordered", lambda first: first)

    def raising(name, setting):
        raise RuntimeError("for everybody")
        yield

    monkeypatch.setattr(suspects, "search", raising)
    fresh = power.Court(court.session)
    assert not fresh.tried(mutant, "torch")["killed"]


@pytest.mark.full_for("gpt_dropout")
@pytest.mark.parametrize("case", ["gpt", "gpt_dropout"])
def test_a_search_that_suspects_the_oracle_leaves_the_shared_one_alone(case):
    """It trains the judge, and the truth about a case is shared by all that comes after it."""
    setting = suspects.Setting(suspects.Honest(), subjects(("torch",)), {}, accused=True)
    assert all(row.passed for row in suspects.search(case, setting))
    for name, weight in truth(case).model.weights().items():
        np.testing.assert_array_equal(weight, CASES[case].weights()[name])


def test_a_session_that_leaves_out_cases_or_tiers_plants_nothing():
    for session in (Session(subjects(WINGS), cases=("mlp",)), Session(subjects(WINGS), tiers=("float64",))):
        assert list(power.chosen(session)) == []
        assert not [what for what, _ in power.declared_once(session) if what.startswith("mutant/")]


def test_a_quick_session_plants_all_in_one_wing_and_something_of_everything_in_the_other():
    quick = list(power.chosen(Session(subjects(WINGS), quick=True)))
    assert [pair for pair in quick if pair[1] == "torch"] == [pair for pair in EVERYTHING if pair[1] == "torch"]
    for place in ("jax", "numpy", "common"):
        own = [pair[0].component for pair in quick if pair[1] == place]
        assert len(set(own)) == len(own)
        assert set(own) == {pair[0].component for pair in EVERYTHING if pair[1] == place}


def test_unknown_searches_are_refused():
    with pytest.raises(UserError, match="did you mean 'gpt'"):
        suspects.check("gtp")
    with pytest.raises(UserError, match="Unknown edge"):
        suspects.check("C7:no such edge")
    with pytest.raises(UserError, match="did you mean 'attention'"):
        suspects.check("C2:atention")
