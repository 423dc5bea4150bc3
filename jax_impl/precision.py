"""The precision policy in this framework's dtypes."""

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "float64": jnp.float64, "bfloat16": jnp.bfloat16}


def dtype(name):
    """The dtype of that name."""
    return DTYPES[name]


def at_least(x, reduce):
    """x in the precision of reductions, or in its own if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, reduce))
