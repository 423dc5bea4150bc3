"""The precision policy in this framework's dtypes."""

import contextlib

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
MATMULS = {"tf32": "tf32"}  # how a GPU multiplies float32 matrices, by `Execution.products`, if told


def dtype(name):
    """The dtype of that name."""
    return DTYPES[name]


def at_least(x, reduce):
    """x in the precision of reductions, or in its own if that is wider."""
    return x.to(torch.promote_types(x.dtype, reduce))


@contextlib.contextmanager
def multiplying(products):
    """As long as it lasts, a GPU multiplies matrices so; the switch is the whole process's, and is put back."""
    switch = torch.backends.cuda.matmul
    before, wider = switch.fp32_precision, torch.backends.fp32_precision
    if products in MATMULS:
        switch.fp32_precision = MATMULS[products]
    try:
        yield
    finally:
        if products in MATMULS:
            switch.fp32_precision = "none" if before == wider else before  # "none" follows the wider one


def told(products):
    """What records say of how matrices are multiplied."""
    with multiplying(products):
        wider, matmul = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    found = {"tf32": matmul == "tf32", "fp32_precision": wider, "fp32_precision_cuda_matmul": matmul}
    return found | ({"fp32_precision": matmul} if products in MATMULS else {})
