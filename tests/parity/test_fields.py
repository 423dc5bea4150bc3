"""Every config field is read alike everywhere, and a wing that leaves one unread is caught."""

import dataclasses
import json
import math

import pytest

from common import backend as door
from common.config import FAMILIES, PRESETS, Execution, GPTConfig, SamplingConfig, TrainConfig
from common.parity import fields, probes
from common.parity.perturb import another
from common.parity.rows import Exhibit
from common.parity.trial import Session, subjects
from common.variants import PATTERNS
from common.variants.rotary import Rotary

PARTS = (entry for table in PATTERNS.values() for entry in table.values() if dataclasses.fields(entry))
CLASSES = (*FAMILIES.values(), *PARTS, Rotary, TrainConfig, SamplingConfig, Execution)


@pytest.fixture(scope="module")
def torch_alone():
    return Session(subjects(("torch",)), quick=True)


def keys(classes=CLASSES):
    return {f"{cls.__name__}.{f.name}" for cls in classes for f in dataclasses.fields(cls)}


@pytest.mark.full
def test_honest_wings_pass_and_no_field_is_left_out(torch_alone):
    """All fields of all classes but those that this machine, this process or a quick run cannot try."""
    found = list(fields.rows(torch_alone))
    rows, (exhibit,) = [r for r in found if not isinstance(r, Exhibit)], [r for r in found if isinstance(r, Exhibit)]
    assert [(row.what, row.note) for row in rows if not row.passed] == []
    assert {(row.what, row.tier) for row in rows} == fields.declared(torch_alone)
    missing = keys() - {row.what.removeprefix("field/") for row in rows}
    assert missing <= {"Execution.device", "Execution.compile", "Execution.allocator", "Execution.graphs"}
    assert len(exhibit.data) == len(rows) == len({row.key for row in rows})
    for entry in exhibit.data:
        assert entry["unread"] or float(entry["change"]) > fields.READ
    json.dumps(exhibit.data, allow_nan=False)


@pytest.mark.full
def test_honest_pairs_pass():
    found = [r for r in fields.rows(Session(subjects(("torch", "jax")))) if not isinstance(r, Exhibit)]
    assert [(row.what, row.note) for row in found if not row.passed] == []
    assert "field/Execution.compile" in {row.what for row in found}
    assert {"torch", "jax", "torch/jax", "torch change", "jax change"} == set(found[8].errors)


def test_the_reasons_name_fields_that_exist():
    assert set(fields.UNREAD) <= keys()


class Deaf:
    """A backend that takes one field of a config for granted."""

    def __init__(self, field, value, inner="torch"):
        self.inner, self.field, self.value = door.load(inner), field, value

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def granted(self, config):
        own = {f.name for f in dataclasses.fields(config)}
        return config.with_(**{self.field: self.value}) if self.field in own else config

    def build(self, config, weights, execution):
        model = self.inner.build(self.granted(config), weights, self.granted(execution))
        start, generate = model.start_training, model.generate
        model.start_training = lambda train, *rest, **named: start(self.granted(train), *rest, **named)
        model.generate = lambda prompts, sampling: generate(prompts, self.granted(sampling))
        return model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("GPTConfig.norm_eps", 1e-5),
        ("GPTConfig.activation", "gelu_tanh"),
        ("GPTConfig.dropout_attn", 0.0),
        ("GPTConfig.context_length", 16),
        ("TrainConfig.beta2", probes.TRAIN.beta2),
        pytest.param("TrainConfig.final_rate", probes.TRAIN.final_rate, marks=pytest.mark.full),
        pytest.param("TrainConfig.decay", "matrices", marks=pytest.mark.full),
        ("SamplingConfig.top_k", None),
        ("SamplingConfig.overflow", "error"),
    ],
)
def test_a_wing_that_ignores_a_field_is_caught(key, value):
    deaf = fields.row(Session({"deaf": Deaf(key.partition(".")[2], value)}, quick=True), key)
    assert not deaf.passed
    if "deaf change" in deaf.errors and math.isfinite(deaf.errors["deaf change"]):
        assert deaf.errors["deaf change"] == pytest.approx(1, abs=1e-6), "nothing of the change arrived"


def test_a_wing_that_reads_what_it_should_not_is_caught(torch_alone):
    """Here: a cache that repeats the first token, so that turning it off changes the text."""

    class Stuck(Deaf):
        def build(self, config, weights, execution):
            model = self.inner.build(config, weights, execution)
            honest = model.generate
            model.generate = lambda p, s: [[r[0]] * len(r) if s.cache else r for r in honest(p, s)]
            return model

    assert not fields.row(Session({"stuck": Stuck("", None)}), "SamplingConfig.cache").passed
    assert fields.row(torch_alone, "SamplingConfig.cache").passed


def test_a_field_without_effect_needs_a_reason(torch_alone, monkeypatch):
    """And a reason that is not true is found out."""
    monkeypatch.delitem(fields.UNREAD, "SamplingConfig.prefill_chunk")
    unread = fields.row(torch_alone, "SamplingConfig.prefill_chunk")
    assert not unread.passed
    assert "changes nothing in the oracle" in unread.note
    monkeypatch.setitem(fields.UNREAD, "GPTConfig.norm_eps", "is only an epsilon")
    claimed = fields.row(torch_alone, "GPTConfig.norm_eps")
    assert not claimed.passed
    assert "changes the oracle" in claimed.note


@pytest.mark.parametrize("config", [*PRESETS.values(), TrainConfig(), SamplingConfig(), probes.SAMPLING])
def test_another_value_differs_in_that_field_alone(config):
    for field in dataclasses.fields(config):
        changed = another(config, field.name)
        differs = [f.name for f in dataclasses.fields(config) if getattr(changed, f.name) != getattr(config, f.name)]
        assert differs == [field.name]


def test_a_field_of_unknown_kind_is_none_and_fails(torch_alone, monkeypatch):
    """A kind of value that nobody taught `another` yet must not slip through."""

    @dataclasses.dataclass(frozen=True)
    class Layered(GPTConfig):
        kinds: tuple = ("full",)

    config = Layered(5, 4, 4, 1, 2)
    assert another(config, "kinds") is None
    monkeypatch.setattr(fields, "another", lambda *_: None)
    unknown = fields.row(torch_alone, "GPTConfig.ff_dim")
    assert not unknown.passed
    assert "no other valid value of GPTConfig.ff_dim is known" in unknown.note
