"""Planting a bug: a second copy of a package with one line altered; the honest one and the disk stay as they are."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import common.errors
from common import backend as door
from common.cases import CASES
from common.config import Execution
from common.errors import UserError
from common.parity import planted
from common.parity.planted import Mutant, Place
from common.variants import PATTERNS

CASE = CASES["layer_norm"]
EPS = ("layers.py", "variance + self.eps", "variance + 2 * self.eps")
MUTANTS = planted.load_mutants()


def output(backend):
    model = backend.build(CASE.config, CASE.weights(), Execution(dtype="float64"))
    return model.component(CASE.path, *CASE.signals())[0]


@pytest.mark.parametrize("wing", ["torch", "jax", "numpy"])
def test_an_edit_acts_in_the_copy_alone_and_leaves_no_trace(wing):
    honest = output(door.load(wing))
    modules, finders = set(sys.modules), list(sys.meta_path)
    with planted.edited(wing, *EPS) as backend:
        assert backend is not door.load(wing)
        changed = output(backend)
        assert np.array_equal(output(door.load(wing)), honest)  # at the same time
        assert any(name.startswith("planted_") for name in sys.modules)
    assert not np.allclose(changed, honest, rtol=1e-6)
    assert np.array_equal(output(door.load(wing)), honest)
    assert not [name for name in set(sys.modules) - modules if name.startswith("planted_")]
    assert sys.meta_path == finders


def test_two_edits_can_be_planted_at_once():
    with planted.edited("torch", *EPS) as one, planted.edited("torch", EPS[0], EPS[1], "variance") as other:
        assert not np.array_equal(output(one), output(other))
        assert not np.array_equal(output(one), output(door.load("torch")))


def test_traces_are_removed_after_an_error_too():
    finders, modules = list(sys.meta_path), set(sys.modules)
    with pytest.raises(ZeroDivisionError), planted.edited("torch", *EPS):
        raise ZeroDivisionError
    assert not [name for name in set(sys.modules) - modules if name.startswith("planted_")]
    assert sys.meta_path == finders


def test_refusals_keep_their_identity():
    with planted.edited("torch", *EPS) as backend:
        model = backend.build(CASE.config, CASE.weights(), Execution(dtype="float64"))
        with pytest.raises(UserError, match="outside the vocabulary"):
            model.forward(np.array([[10_000]]))
    with planted.world("common", Place("training.py", "math.pi * done", "math.pi + done")) as world:
        assert world.module("common.errors") is common.errors
        with pytest.raises(UserError, match="allowed is"):
            world.module("common.config").TrainConfig(steps=-1)


def test_an_oracle_that_errs_is_what_the_claims_see():
    with planted.world("numpy", Place(*EPS)) as world:
        trial = world.module("common.parity.trial")
        assert world.backend("torch") is door.load("torch")
        truth = trial.truth("layer_norm").expected["output"]
        wrong = world.backend("numpy")
        assert np.array_equal(output(wrong), truth)
        assert world.module("common.cases") is sys.modules["common.cases"]
    assert not np.allclose(output(door.load("numpy")), truth, rtol=1e-6)


def test_a_bug_in_common_is_everywhere():
    with planted.world(
        "common", Place("training.py", "return self.learning_rate", "return 2 * self.learning_rate")
    ) as world:
        config = world.module("common.config").TrainConfig(schedule="constant", learning_rate=1.0)
        assert config.rate(3) == 2.0
        for name in ("torch", "numpy"):
            backend = world.module("common.backend").load(name)
            assert backend is world.backend(name)
            assert type(backend).__module__.startswith("planted_")


@pytest.mark.parametrize(
    ("find", "count"), [("no such line", 0), ("keepdim=True", 7)], ids=["gone", "not the only one"]
)
def test_stale_edits_are_refused(find, count):
    edit = planted.edited("torch", "layers.py", find, "")
    with pytest.raises(UserError, match=f"stale: '{find}' occurs {count} times, not once"), edit:
        pass


def test_edits_that_are_no_python_are_refused():
    edit = planted.edited("torch", "layers.py", "variance + self.eps", "variance + (")
    with pytest.raises(UserError, match="torch cannot be loaded: SyntaxError"), edit:
        pass


def test_unknown_places_are_answered_with_near_matches():
    mutant = next(iter(MUTANTS.values()))
    with pytest.raises(UserError, match="did you mean 'torch'"), planted.backend(mutant, "torhc"):
        pass
    with pytest.raises(UserError, match="did you mean 'torch'"), planted.edited("torhc", *EPS):
        pass


def test_every_mutant_fits_its_source_once_and_names_real_searches():
    assert [fault for mutant in MUTANTS.values() for fault in planted.check(mutant)] == []


def test_the_list_is_long_and_covers_both_wings():
    bugs = [mutant for mutant in MUTANTS.values() if not mutant.equivalent]
    on_both = [mutant for mutant in bugs if {"torch", "jax"} <= set(mutant.places)]
    assert len(on_both) >= 60
    assert all(mutant.places and mutant.what.endswith(".") for mutant in MUTANTS.values())
    assert len({mutant.component for mutant in on_both}) >= 12
    edits = [(place, edit.file, edit.find, edit.replace) for m in bugs for place, edit in m.places.items()]
    assert len(set(edits)) == len(edits)  # the same bug is not counted twice


@pytest.mark.parametrize("wing", ["torch", "jax"])
@pytest.mark.parametrize("field", PATTERNS)
def test_every_kind_of_layer_has_three_bugs_of_its_own(field, wing):
    bugs = [mutant for mutant in MUTANTS.values() if not mutant.equivalent and wing in mutant.places]
    files = Counter(mutant.places[wing].file for mutant in bugs)
    assert {kind for kind in PATTERNS[field] if files[f"{field}/{kind}.py"] < 3} == set()


def test_files_that_are_added_are_found_and_faults_are_named(tmp_path):
    good = """component = "new"
    [[mutant]]
    id = "one"
    what = "Something is wrong."
    file = "layers.py"
    find = "variance + self.eps"
    replace = "variance"
    torch = {}
    jax = { replace = "variance - self.eps" }
    """
    (tmp_path / "new.toml").write_text(good)
    (found,) = planted.load_mutants(tmp_path).values()
    place = Place("layers.py", "variance + self.eps", "variance")
    assert found == Mutant("one", "new", "Something is wrong.", {"torch": place, "jax": found.places["jax"]})
    assert found.places["jax"].replace == "variance - self.eps"
    for text, words in (
        (good + good.replace('component = "new"', ""), "second mutant 'one'"),
        (good.replace("torch = ", "torhc = "), "did you mean 'torch'"),
        (good.replace("what", "wath", 1), "did you mean 'what'"),
        (good.replace("find", "#", 1), "'one' in new.toml lacks or has too much"),
        ("component =", "new.toml is no TOML"),
    ):
        (tmp_path / "new.toml").write_text(text)
        with pytest.raises(UserError, match=words):
            planted.load_mutants(tmp_path)


def test_tracebacks_name_the_real_file():
    with planted.edited("torch", "layers.py", "variance + self.eps", "variance + self.no_such") as backend:
        with pytest.raises(AttributeError) as caught:
            output(backend)
        assert Path(caught.traceback[-2].path).name in ("layers.py", "module.py")
