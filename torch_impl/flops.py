"""Matrix-multiplication FLOPs as the framework itself counts them (2 per multiply-add)."""

import math

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula


def matmul_flops(function, *args):
    """FLOPs of `function(*args)`, run once with the framework's counter, its backward pass included if it makes one.

    A fused attention counts 2 products forward and 5 backward, where it computes its scores again. A triangle counts
    M * M for every column that it is solved for.
    """
    # the counter does not know CPU's fused attention (pytorch#195460): give it the formula of the GPU's
    for tail in ("", "_backward"):
        known = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention{tail}")
        on_cpu = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{tail}")
        flop_registry.setdefault(on_cpu, flop_registry[known])
    if torch.ops.aten._grouped_mm not in flop_registry:  # every row of the first is multiplied by one matrix
        register_flop_formula(torch.ops.aten._grouped_mm)(_grouped_flops)
    if torch.ops.aten.linalg_solve_triangular not in flop_registry:
        register_flop_formula(torch.ops.aten.linalg_solve_triangular)(_triangular_flops)
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


def _grouped_flops(rows, matrices, *_, out_shape=None, **__):
    return 2 * math.prod(rows) * matrices[-1]


def _triangular_flops(triangle, *_, out_shape=None, **__):
    return triangle[-1] * math.prod(out_shape)
