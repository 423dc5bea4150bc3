"""Matrix-multiplication FLOPs as the framework itself would do them (2 per multiply-add)."""

import math
import re

import jax

from common.backend import Reported

# Where an operation keeps the programs that it runs, and so how often: once, unless it is one of the last three.
BODIES = {
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "core_call": ("call_jaxpr",),
    "remat": ("jaxpr",),
    "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_vjp_call_jaxpr": ("fun_jaxpr",),
    "scan": ("jaxpr",),
    "cond": ("branches",),
    "while": ("cond_jaxpr", "body_jaxpr"),
}
UNKNOWN = re.compile(  # what multiplies matrices, or may, by a name of its own
    r"^conv_|dot|ragged|pallas|custom_call|ffi_call|attention|matmul|gemm|fft|cholesky|linear_solve"
    r"|^lu|^qr|geqrf|householder|hessenberg|schur|svd|eig|pure_callback|io_callback|call_exported|hi_primitive"
)


def matmul_flops(function, *args, rounds=None):
    """FLOPs of `function(*args)`, from its jaxpr: nothing is run.

    A loop that ends by a condition is refused, unless `rounds` says how often each one goes round. A triangle counts
    M * M for every column that it is solved for.
    """
    return _walk(_jitted(function).trace(*args).jaxpr.jaxpr, 1, rounds, True)


def xla_flops(function, *args):
    """XLA's own figure for the compiled `function(*args)`, or None where it has none.

    It counts elementwise work too, and the body of a scan or of a loop once: `missed` are the products of all others.
    """
    traced = _jitted(function).trace(*args)
    found = (traced.lower().compile().cost_analysis() or {}).get("flops", -1)
    return Reported(found, _missed(traced.jaxpr.jaxpr)) if found >= 0 else None


def _missed(jaxpr):
    """FLOPs of products in bodies of scans, but for the first time; 0 where there are operations that nobody knows."""
    try:
        every, once = (_walk(jaxpr, 1, 1, repeated) for repeated in (True, False))
    except ValueError:
        return 0
    return every - once


def _jitted(function):
    return function if hasattr(function, "trace") else jax.jit(function)


def _walk(jaxpr, times, rounds, repeated):
    """Every dot_general costs 2 * contracted * output elements; a body counts as often as it runs, or once where scans
    are not `repeated`."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * times * depth * equation.outvars[0].aval.size
        elif name == "ragged_dot_general":  # every row is multiplied by the matrix of its group
            dims, (lhs, rhs) = equation.params["ragged_dot_dimension_numbers"], (v.aval for v in equation.invars[:2])
            (_, contracted), (_, rows) = dims.dot_dimension_numbers
            taken = {*contracted, *rows, *dims.rhs_group_dimensions}
            free = math.prod(size for axis, size in enumerate(rhs.shape) if axis not in taken)
            total += 2 * times * lhs.size * free
        elif name == "triangular_solve":  # M * M for every column, on whichever side they stand
            total += times * equation.invars[0].aval.shape[-1] * equation.outvars[0].aval.size
        elif name in BODIES:
            total += _walk_bodies(equation, times, rounds, repeated)
        elif UNKNOWN.search(name):
            raise ValueError(f"no FLOP rule for {name}")
        elif any(_walk(body, 1, rounds, repeated) for body in _bodies(equation.params.values())):
            raise ValueError(f"no rule says how often {name} runs its body")
    return total


def _walk_bodies(equation, times, rounds, repeated):
    name = equation.primitive.name
    if name == "while" and rounds is None:
        raise ValueError("a while loop has no known number of rounds")
    length = equation.params.get("length") if repeated else 1
    times *= {"scan": length, "while": rounds}.get(name, 1)
    found = [_walk(body, times, rounds, repeated) for body in _bodies(equation.params[key] for key in BODIES[name])]
    return max(found) if name == "cond" else sum(found)


def _bodies(values):
    for value in values:
        for item in value if isinstance(value, (tuple, list)) else (value,):
            body = getattr(item, "jaxpr", item)
            if hasattr(body, "eqns"):
                yield body
