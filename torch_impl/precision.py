"""The precision policy in this framework's dtypes."""

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def dtype(name):
    """The dtype of that name."""
    return DTYPES[name]


def at_least(x, reduce):
    """x in the precision of reductions, or in its own if that is wider."""
    return x.to(torch.promote_types(x.dtype, reduce))
