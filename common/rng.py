"""The shared random numbers: threefry2x32 with 20 rounds, in the layout of `jax.random` (partitionable).

A key is two uint32 words. Word i of a draw is the cipher at counter i, so every draw is the same function of
(key, shape) in NumPy, torch and JAX, on every device. Keys are addresses, not streams: `address(seed, purpose, step,
site)` names one draw for ever, whatever was drawn before it.
Source: Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*.
"""

import math

import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
DROPOUT, SAMPLING, DATA = 1, 2, 3  # purposes
TINY = float(np.finfo(np.float32).tiny)


def threefry(key: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cipher: two uint32 words per counter (`high`, `low`)."""
    first, second = (np.uint32(word) for word in key)
    schedule = (first, second, first ^ second ^ np.uint32(PARITY))
    with np.errstate(over="ignore"):
        x, y = np.asarray(high, np.uint32) + first, np.asarray(low, np.uint32) + second
        for group in range(5):
            for turn in ROTATIONS[group % 2]:
                x = x + y
                y = (y << np.uint32(turn)) | (y >> np.uint32(32 - turn))
                y = y ^ x
            x = x + schedule[(group + 1) % 3]
            y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def key(seed: int) -> np.ndarray:
    """The key of a seed in [0, 2^32)."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} is not in [0, 2^32)")
    return np.array([0, seed], np.uint32)


def fold_in(key: np.ndarray, data: int) -> np.ndarray:
    """A new key, a function of `key` and a whole number in [0, 2^32)."""
    x, y = threefry(key, np.zeros(1, np.uint32), np.array([data], np.uint32))
    return np.concatenate([x, y])


def address(seed: int, *parts: int) -> np.ndarray:
    """The key at an address: `fold_in` applied to the seed's key for every part, in order."""
    at = key(seed)
    for part in parts:
        at = fold_in(at, part)
    return at


def words(key: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Both words of counters 0 … count-1."""
    counter = np.arange(count, dtype=np.uint64)
    return threefry(key, (counter >> np.uint64(32)).astype(np.uint32), counter.astype(np.uint32))


def split(key: np.ndarray, count: int = 2) -> np.ndarray:
    """`count` new keys, uint32 [count, 2]."""
    return np.stack(words(key, count), axis=-1)


def bits(key: np.ndarray, shape: tuple[int, ...], width: int = 32) -> np.ndarray:
    """Random unsigned integers of 32 or 64 bits."""
    x, y = words(key, math.prod(shape))
    if width == 64:
        return ((x.astype(np.uint64) << np.uint64(32)) | y).reshape(shape)
    if width == 32:
        return (x ^ y).reshape(shape)
    raise ValueError(f"width {width} is neither 32 nor 64")


def uniform(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in [0, 1): the upper 23 bits as the fraction of a float in [1, 2), minus 1."""
    mantissa = (bits(key, shape) >> np.uint32(9)) | np.uint32(0x3F800000)
    return mantissa.view(np.float32) - np.float32(1)


def bernoulli(key: np.ndarray, probability: float, shape: tuple[int, ...]) -> np.ndarray:
    """True with that probability (rounded to float32)."""
    return uniform(key, shape) < np.float32(probability)


def gumbel(key: np.ndarray, shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    """Gumbel noise from the shared uniforms: `argmax(logits + noise)` draws from `softmax(logits)`."""
    lifted = np.maximum(uniform(key, shape), np.float32(TINY)).astype(dtype)
    return -np.log(-np.log(lifted))
