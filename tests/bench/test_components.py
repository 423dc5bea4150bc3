"""Every case is timed: models by their forward pass, components with gradients, each of which the gate sees."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import once
from benchmarks.harness import gate, judging
from benchmarks.harness.cells import work
from benchmarks.suites import SUITES, Scope
from common import backend, params
from common.accounting import flops
from common.cases import CASES
from common.config import Execution

CELLS = {cell.model: cell for cell in SUITES["components"](Scope())}


def test_every_case_is_timed_once():
    models = [cell.model for cell in SUITES["cases"](Scope())]
    assert sorted([*models, *CELLS]) == sorted(CASES)
    assert {name: cell.path for name, cell in CELLS.items()} == {n: c.path for n, c in CASES.items() if c.path}


def test_work_of_a_component_by_hand():
    cell, streams = CELLS["mlp"], 4 * 2 * 11 * 8
    weights = 2 * 8 * 20 + 20 + 8
    found = work(cell)
    assert (found["unit"], found["work"]) == ("tokens", 22)
    assert found["flops_full"] == found["flops_causal"] == 3 * 2 * 22 * 2 * 8 * 20
    assert found["bytes"] == 4 * (3 * weights + streams)


def test_experts_are_read_by_one_token_at_least_and_all_their_gradients_written():
    cell, case = CELLS["experts"], CASES["experts"]
    own = {n: p for n, p in params.table(case.config).items() if n.startswith(f"{case.path}.")}
    routed = sum(p.size for p in own.values() if p.part == "experts")
    everything = sum(p.size for p in own.values())
    entry = case.config.feed_forward_of(int(case.path.split(".")[2]))
    read = everything - routed + routed // entry.num_experts * entry.top_k
    streams = 4 * case.batch * case.length * case.config.embed_dim
    assert work(cell)["bytes"] == 4 * (2 * read + streams + everything)
    assert work(cell)["flops_full"] == flops.flops_full(case.config, "train", case.batch, case.length, path=case.path)


@pytest.mark.parametrize("name", ["layer_norm", "attention"])
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_wings_pass_the_gate(name, wing):
    once.check(CELLS[name], next(one for one in CELLS[name].contenders if one.name == wing))


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_the_gate_sees_each_gradient(wing):
    cell = CELLS["attention"]
    one = next(one for one in cell.contenders if one.name == wing)
    outputs = {}
    for name, dtype in (("torch", "float64"), (wing, "float32")):
        model = backend.load(name).build(cell.config, once.recipe(cell).weights(), Execution(dtype=dtype))
        run = model.prepare("component", *cell.inputs(), path=cell.path)
        outputs[dtype] = {key: np.asarray(value) for key, value in run().items()}
    wanted, found = outputs["float64"], outputs["float32"]
    alive = [
        key for key in found if not getattr(params.table(cell.config).get(key.removeprefix("grad/")), "dead", False)
    ]
    assert {"output", "grad/input", f"grad/{cell.path}.q_proj.weight"} < set(alive)

    def refusal(shown):
        told = judging.verdicts(
            cell, one, *({k: gate.digest(v) for k, v in arrays.items()} for arrays in (shown, wanted))
        )
        return gate.refusal(told, "float32", "the judge")

    assert refusal(found) is None
    for key in alive:
        off = found[key] + 1e-4 * np.sqrt(np.square(found[key]).mean()) * np.sign(
            np.arange(found[key].size) % 3 - 0.5
        ).reshape(found[key].shape)
        assert key in refusal({**found, key: off.astype(np.float32)}), key


def test_inputs_are_a_signal_and_a_cotangent():
    cell = CELLS["mlp"]
    x, cotangent = cell.inputs()
    assert x.shape == cotangent.shape == (2, 11, 8)
    assert not np.array_equal(x, cotangent)
    assert np.array_equal(cell.inputs()[0], x)
    assert not np.array_equal(replace(cell, seed=1).inputs()[0], x)
