"""A kind of layer says itself what accounts must know of it: one that they never heard of is counted all the same."""

from dataclasses import dataclass

import pytest

from common import params, variants
from common.accounting import activations, elementwise, estimate, flops, memory
from common.accounting.work import ATTENTION, FEED_FORWARD, HEAD, PROJECTIONS, SCORES, Component
from common.config import GPTConfig
from common.parameter import linear
from common.variants.part import SCORED, Attention
from reports.estimate import table
from reports.estimate.job import Result

B, T, E = 2, 7, 12
PICKED = 3  # the width of what picks
SMALL = GPTConfig(31, 16, E, 2, 3, ff_dim=20)


@dataclass(frozen=True)
class Picking(Attention):
    """Multi-head attention beside which something picks, by products that have no way back."""

    kind = "picking"
    module = "Picking"
    components = (Component(PROJECTIONS), Component("picks", backward=0, again={"checkpointed": 2}), SCORED)
    inputs = Attention.inputs | {"pick_proj": "x"}
    decodes = {"picking": "lazy"}  # noqa: RUF012

    def parameters(self, config, path):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from linear(f"{path}.{name}", E, E, bias=False)
        yield from linear(f"{path}.pick_proj", PICKED, E, bias=False)

    def component(self, name):
        return "picks" if name == "pick_proj" else super().component(name)

    def products(self, config, work):
        found = super().products(config, work) | {"stray": work.tokens}  # which it does not declare
        return found | ({} if work.forms.get("picking") == "lazy" else {"picks": 10 * work.tokens})

    def kept(self, config, at, path):
        yield ATTENTION, f"{path} picked", at.tokens * at.compute


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(variants.ATTENTIONS, "picking", Picking)
    return SMALL.with_(attention=({"kind": "multi_head"}, {"kind": "picking"}))


def test_its_components_stand_where_it_says(config):
    found = flops.forward(config, B, T)
    assert list(found) == [PROJECTIONS, "picks", SCORES, FEED_FORWARD, HEAD, "stray"]
    other = config.with_(attention=config.attention[::-1])
    assert list(flops.forward(other, B, T)) == list(found)
    plain = flops.forward(SMALL, B, T)
    assert found == plain | {"picks": 2 * B * T * E * PICKED + 10 * B * T, "stray": B * T}


def test_its_way_back_is_what_it_says(config):
    once, plain = flops.forward(config, B, T), flops.training(SMALL, B, T)
    for kernel, picks in {"plain": 1, "fused": 1, "checkpointed": 2}.items():
        found = flops.training(config, B, T, attention=kernel)
        assert found["picks"] == picks * once["picks"]
        assert found["stray"] == 3 * once["stray"]
        assert found[PROJECTIONS] == plain[PROJECTIONS]
    assert flops.training(config, B, T, attention="checkpointed")[SCORES] == 4 * once[SCORES]


def test_its_maps_that_read_one_tensor_keep_it_once(config):
    path = "model.layers.1.self_attn"
    found = activations.saved(config, B, T, path=path)
    assert found == {ATTENTION: 4 * (2 * B * T * E + B * T)}  # x, the input of o_proj, what was picked


def test_its_decoding_has_a_form_of_its_own(config):
    plain, lazy = (flops.decode_step(config, B, T, forms=forms) for forms in ({}, {"picking": "lazy"}))
    assert plain["picks"] - lazy["picks"] == 10 * B
    row = estimate.estimate("new", config, T, B)
    assert row.decode == sum(lazy.values())
    assert row.parameters == params.count(config)
    assert row.cache == memory.kv_cache(config, B, T)
    notes = table.notes(
        Result({"new": config, "old": SMALL}, estimate.grid({"new": config}, (T,), (B,)), "float32", "plain")
    )
    assert "one token of new: lazy, as in the mode of that name." in notes
    assert sum(elementwise.forward(config, B, T).values()) > 0
