"""FLOPs of matrix products in a compiled program, from its text: of one device, loops as often as they run."""

import jax
import jax.numpy as jnp
import pytest

from common.accounting import flops
from common.config import GPTConfig
from jax_impl.hlo import compiled_flops

A, B = jnp.zeros((3, 4, 5)), jnp.zeros((3, 5, 6))
ONCE = 2 * 3 * 4 * 5 * 6


def found(function, *args):
    return compiled_flops(jax.jit(function).lower(*args).compile().as_text())


def test_a_product_costs_two_for_every_multiplication():
    assert found(jnp.matmul, A, B) == ONCE
    assert found(lambda a, b: jnp.matmul(a, b) + jnp.matmul(a, b + 1).sum(), A, B) == 2 * ONCE
    assert found(lambda a: a + a, A) == 0


def test_a_loop_counts_as_often_as_it_runs():
    """Also one in another: 7 times 5."""

    def inner(b, _):
        return jnp.tanh(jnp.matmul(A, b).sum()) + b, None

    def outer(b, _):
        return jax.lax.scan(inner, b, length=5)[0], None

    assert found(lambda b: jax.lax.scan(inner, b, length=5)[0], B) == 5 * ONCE
    assert found(lambda b: jax.lax.scan(outer, b, length=7)[0], B) == 35 * ONCE


def test_of_branches_the_dearest_one_counts():
    def chosen(which, a, b):
        return jax.lax.cond(which, lambda: jnp.matmul(a, b), lambda: jnp.zeros((3, 4, 6)))

    assert found(chosen, True, A, B) == ONCE


def test_what_the_text_does_not_tell_is_refused():
    def until(b):
        return jax.lax.while_loop(lambda b: b.sum() < 9, lambda b: jnp.tanh(jnp.matmul(A, b).sum()) + b, b)

    with pytest.raises(ValueError, match="no known number of rounds"):
        found(until, B)
    text = "ENTRY %main (a: f32[2,2]) -> f32[2,2] {\n %a = f32[2,2]{1,0} parameter(0)\n"
    call = ' ROOT %m = f32[2,2]{1,0} custom-call(%a, %a), custom_call_target="__onednn$matmul"\n}\n'
    with pytest.raises(ValueError, match="no FLOP rule for __onednn"):
        compiled_flops(text + call)
    told = " ROOT %m = f32[2,2]{1,0} dot(f32[2,2]{1,0} %a, f32[2,2]{1,0} %a), lhs_contracting_dims={1}\n}\n"
    assert compiled_flops(text + told) == 16  # as others print it
    branch = "%other (b: f32[2,2]) -> f32[2,2] {\n %b = f32[2,2]{1,0} parameter(0)\n" + told.replace("%a", "%b")
    chosen = " ROOT %c = f32[2,2]{1,0} conditional(%p, %a), true_computation=%other, false_computation=%other\n}\n"
    assert compiled_flops(branch + text + chosen) == 16
    with pytest.raises(ValueError, match="does not tell its branches"):
        compiled_flops(text + " ROOT %c = f32[2,2]{1,0} conditional(%p, %a)\n}\n")
    with pytest.raises(ValueError, match="does not tell what it multiplies"):
        compiled_flops(text + told.replace("f32[2,2]{1,0} %a", "%z"))


@pytest.mark.parametrize(("layers", "again"), [("loop", 0), ("scan", 0), ("checkpointed", 2)])
def test_a_training_step_is_that_of_the_closed_form(layers, again):
    """Of two micro-batches; checkpointed blocks compute their scores, and what they weigh, once more."""
    from common import backend, params
    from common.backend import step_inputs
    from common.config import Execution, TrainConfig

    config = GPTConfig(31, 12, 16, 3, 2, ff_dim=24)
    model = backend.load("jax").build(config, params.initialise(config, 0), Execution(layers=layers))
    model.start_training(TrainConfig(batch_size=3, accumulate=2))
    with model.scope():
        program, *args = model._counted("train", 3, 12, "", None)
        inputs, targets, *_ = step_inputs(*[jnp.zeros((2, 3, 12), jnp.int32)] * 2, config)
        args[2:4] = inputs, targets
        text = program.lower(*args).compile().as_text()
    scores = 2 * 6 * 12 * 12 * 16 * config.num_layers  # of one product of all pairs and heads
    assert compiled_flops(text) == flops.flops_full(config, "train", 6, 12) + again * scores
