"""The precision policy in this framework's dtypes."""

import jax
import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "float64": jnp.float64, "bfloat16": jnp.bfloat16}
MATMULS = {"plain": "highest", "tf32": "tensorfloat32"}  # how float32 matrices are multiplied, by `Execution.products`


def dtype(name):
    """The dtype of that name."""
    return DTYPES[name]


def at_least(x, reduce):
    """x in the precision of reductions, or in its own if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, reduce))


def multiplying(products):
    """The context in which programs are traced whose matrices are multiplied so; nothing outside of it changes."""
    return jax.default_matmul_precision(MATMULS[products])


def told(products):
    """What records say of how matrices are multiplied."""
    with multiplying(products):
        matmul = jax.config.jax_default_matmul_precision
    return {"tf32": matmul not in ("highest", "float32"), "matmul_precision": matmul}
