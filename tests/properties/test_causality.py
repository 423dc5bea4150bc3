"""What comes later changes nothing before it, to the last bit, without a cache and through one."""

import numpy as np
import pytest

LENGTH, CAPACITY = 8, 10


def changed(ids, at):
    """The same ids with every token from `at` on replaced."""
    other = ids.copy()
    other[:, at:] = (other[:, at:] + 7) % 61
    return other


OFFERED = [
    ("numpy", "float64", "plain"),
    *(("torch", dtype, kernel) for dtype in ("float64", "float32", "bfloat16") for kernel in ("plain", "fused")),
    *(("jax", dtype, "plain") for dtype in ("float64", "float32", "bfloat16")),
    *(("jax", dtype, "fused") for dtype in ("float32", "bfloat16")),
]


@pytest.mark.parametrize(("name", "dtype", "kernel"), OFFERED)
def test_full_forward(model_of, tokens, name, dtype, kernel):
    model, ids = model_of(name, dtype=dtype, attention=kernel), tokens(2, LENGTH)
    before = model.forward(ids).logits
    for at in range(1, LENGTH):
        after = model.forward(changed(ids, at)).logits
        np.testing.assert_array_equal(after[:, :at], before[:, :at], err_msg=f"token {at} reached back")
        assert (after[:, at:] != before[:, at:]).any(-1).all(), f"token {at} had no effect"


def through_cache(model, ids, chunk):
    cache = model.new_cache(len(ids), CAPACITY)
    return np.concatenate([model.extend(cache, ids[:, s : s + chunk]) for s in range(0, ids.shape[1], chunk)], axis=1)


@pytest.mark.parametrize("chunk", [LENGTH, 5, 1])
def test_through_the_cache(model_of, tokens, name, chunk):
    """A chunk in a cache must be causal inside itself too, and may not see empty slots."""
    model, ids = model_of(name), tokens(2, LENGTH)
    before = through_cache(model, ids, chunk)
    for at in (1, 4, 5, 6, 7):
        after = through_cache(model, changed(ids, at), chunk)
        np.testing.assert_array_equal(after[:, :at], before[:, :at], err_msg=f"token {at} reached back")
        assert (after[:, at:] != before[:, at:]).any(-1).all(), f"token {at} had no effect"


def test_intermediate_values_are_causal_too(model_of, tokens, name):
    """Every tap but the scores and weights, whose last axis is the keys."""
    model, ids, at = model_of(name), tokens(2, LENGTH), 5
    before, after = (model.forward(x, taps=("*",)).taps for x in (ids, changed(ids, at)))
    assert len(before) > 20
    for tap, value in before.items():
        if tap.endswith((".scores", ".weights")) or value.ndim == 4:
            np.testing.assert_array_equal(after[tap][:, :, :at], value[:, :, :at], err_msg=tap)
        else:
            np.testing.assert_array_equal(after[tap][:, :at], value[:, :at], err_msg=tap)
