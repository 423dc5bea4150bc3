"""The shared random numbers of `common.rng` as arrays: `jax.random` defines them, so this file only fixes the types.

Under x64 `jax.random` draws 64-bit words unless told float32, which would be other numbers: here it always is.
"""

import jax
import jax.numpy as jnp
from jax.random import fold_in, split  # noqa: F401

from common.rng import TINY


def key(seed):
    """The key of a seed in [0, 2^32)."""
    return jax.random.wrap_key_data(jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)]), impl="threefry2x32")


def address(seed, *parts):
    """The key at an address: `fold_in` applied to the seed's key for every part, in order."""
    at = key(seed)
    for part in parts:
        at = fold_in(at, part)
    return at


def native_address(seed, *parts):
    """The key at an address, for XLA's own generator."""
    words = jax.random.key_data(address(seed, *parts))
    return jax.random.wrap_key_data(jnp.concatenate([words, words]), impl="rbg")


GENERATORS = {"shared": address, "native": native_address}


def bits(key, shape):
    """Random 32-bit words, uint32."""
    return jax.random.bits(key, shape, jnp.uint32)


def uniform(key, shape):
    """float32 in [0, 1)."""
    return jax.random.uniform(key, shape, jnp.float32)


def bernoulli(key, probability, shape):
    """True with that probability (rounded to float32)."""
    return uniform(key, shape) < jnp.float32(probability)


def gumbel(key, shape, dtype):
    """Gumbel noise from the shared uniforms: `argmax(logits + noise)` draws from `softmax(logits)`."""
    lifted = jnp.maximum(uniform(key, shape), jnp.float32(TINY)).astype(dtype)
    return -jnp.log(-jnp.log(lifted))
