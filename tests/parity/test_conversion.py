"""C0 holds for honest wings and notices weights that are cast, transposed, exchanged, misnamed or never read."""

import functools

import ml_dtypes
import numpy as np
import pytest

from common import backend as door
from common import params
from common.cases import CASES
from common.parity import conversion, run
from common.parity.trial import Session, Trial, subjects

SMALL = ("mlp", "attention_no_bias", "gpt", "gpt_untied")
QUERY, KEY, VALUE = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")


class Faulty:
    """The PyTorch wing with `put` applied to the weights that go in and `take` to those that come out."""

    def __init__(self, put=dict, take=dict, shapes=dict):
        self._wing, self._put, self._take, self._shapes = door.load("torch"), put, take, shapes

    def __getattr__(self, name):
        return getattr(self._wing, name)

    def build(self, config, weights, execution):
        model = self._wing.build(config, self._put(dict(weights)), execution)
        weights, shapes = model.weights, model.state_shapes
        model.weights = lambda: self._take(weights())
        model.state_shapes = lambda: self._shapes(shapes())
        return model


def failures(wing, *cases, tiers=("exact", "float64")):
    """(case, what) of the rows that fail."""
    found = run.run(Session({"torch": wing}, tiers, cases), [conversion])
    return {(row.case, row.what) for row in found.failures}


def exchanged(one, other, weights):
    return {**weights, one: weights[other], other: weights[one]}


def turned(name, weights):
    return {**weights, name: weights[name].T}


@pytest.mark.parametrize("names", [("torch",), ("torch", "jax")], ids="/".join)
def test_honest_wings_pass(names):
    cases = SMALL if len(names) == 1 else ("gpt_untied",)
    found = run.run(Session(subjects(names), cases=cases), [conversion])
    assert found.passed, [(row.case, row.what, row.errors, row.note) for row in found.failures]
    assert all(set(names) <= set(row.errors) for row in found.rows if row.what != "order of q, k, v")
    if len(names) > 1:
        trips = [row for row in found.rows if row.what.startswith("round trip")]
        assert len(trips) == 5  # three precision policies, a checkpoint, a state dict
        assert all({"torch/jax", "jax/torch"} < set(row.errors) for row in trips)


@pytest.mark.full
def test_honest_wings_pass_on_every_case():
    found = run.run(Session(subjects(("torch", "jax"))), [conversion])
    assert found.passed, [(row.case, row.what, row.errors, row.note) for row in found.failures]


def test_a_dead_tensor_moves_nothing_and_every_other_one_does():
    trial = Trial(Session(subjects(("torch",)), cases=("gpt",)), CASES["gpt"])
    rows = {row.what: row for row in conversion.for_case(trial)}
    dead = [name for name, parameter in params.table(trial.case.config).items() if parameter.dead]
    assert dead
    assert all(rows[f"noise/{name}"].note.startswith("dead") for name in dead)
    assert {what.removeprefix("noise/") for what in rows if what.startswith("noise/")} == set(trial.case.weights())


def test_square_matrices_that_are_exchanged_inside_are_noticed():
    swap = functools.partial(exchanged, QUERY, VALUE)
    assert failures(Faulty(swap, swap), "gpt") >= {("gpt", f"noise/{QUERY}"), ("gpt", f"noise/{VALUE}")}


def test_a_square_matrix_that_is_transposed_inside_is_noticed():
    turn = functools.partial(turned, KEY)
    assert ("gpt", f"noise/{KEY}") in failures(Faulty(turn, turn), "gpt")


def test_a_tensor_that_is_never_read_is_noticed():
    name = "model.layers.1.mlp.up_proj.bias"
    found = failures(Faulty(lambda weights: {**weights, name: np.zeros_like(weights[name])}), "mlp")
    assert ("mlp", f"noise/{name}") in found
    assert ("mlp", "round trip/float32") in found


@pytest.mark.parametrize(
    "cast",
    [
        lambda a: a.astype(ml_dtypes.bfloat16).astype(a.dtype),
        lambda a: a.astype(np.float32).astype(a.dtype),
        lambda a: np.where(np.abs(a) < np.finfo(a.dtype).tiny, 0, a).astype(a.dtype),
        lambda a: a + a.dtype.type(0),
        lambda a: np.ascontiguousarray(a.T).reshape(a.shape),
    ],
    ids=["bfloat16", "float32", "flushed", "sign of zero", "another order"],
)
def test_changes_of_single_bits_are_noticed(cast):
    wing = Faulty(take=lambda weights: {name: cast(value) for name, value in weights.items()})
    with np.errstate(over="ignore"):
        assert ("gpt", "round trip/float64") in failures(wing, "gpt", tiers=("exact",))


def test_names_and_shapes_of_the_framework_are_compared():
    wing = Faulty(shapes=lambda held: {name: shape[::-1] for name, shape in held.items()})
    assert failures(wing, "gpt", tiers=("exact",)) == {("gpt", "names and shapes")}


def test_bytes_do_not_depend_on_the_order_in_memory():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert conversion.digest(np.asfortranarray(array)) == conversion.digest(array)
    assert conversion.digest(array.astype(">f4")) == conversion.digest(array)
    assert conversion.digest(array.astype(np.float64)) != conversion.digest(array)
    assert conversion.digest(array.reshape(4, 3)) != conversion.digest(array)


def test_a_parameter_that_the_oracle_itself_ignores_fails_unless_it_is_declared_dead(monkeypatch):
    """The key bias, if the table did not mark it."""
    trial = Trial(Session(subjects(("torch",)), cases=("attention",)), CASES["attention"])
    monkeypatch.setattr(type(trial.truth), "dead", lambda self, name: False)
    row = next(r for r in conversion.for_case(trial) if r.what.endswith("k_proj.bias"))
    assert not row.passed
    assert "table does not say that it is dead" in row.note
