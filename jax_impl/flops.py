"""Matrix-multiplication FLOPs as the framework itself would do them (2 per multiply-add)."""

import math

import jax


def matmul_flops(function, *args):
    """FLOPs of `function(*args)`, from its jaxpr: nothing is run."""
    jaxpr = jax.make_jaxpr(function)(*args)
    return _walk(jaxpr.jaxpr, 1)


def _walk(jaxpr, times):
    """Every dot_general costs 2 * contracted * output elements; a scan's body counts as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "while":
            raise ValueError("a while loop has no known number of rounds")
        if name in ("conv_general_dilated", "ragged_dot", "ragged_dot_general", "pallas_call", "custom_call"):
            raise ValueError(f"no FLOP rule for {name}")
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * times * depth * equation.outvars[0].aval.size
        inner = [_walk(body, times * equation.params.get("length", 1)) for body in _bodies(equation)]
        total += max(inner, default=0) if name == "cond" else sum(inner)
    return total


def _bodies(equation):
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            body = getattr(item, "jaxpr", item)
            if hasattr(body, "eqns"):
                yield body
