"""What comes later changes nothing before it, to the last bit: in every mask, kernel, precision and cache path."""

import numpy as np
import pytest

from common.cases import CASES

LENGTH, CAPACITY = 6, 10


def changed(ids, at, vocab):
    """The same ids with every token from `at` on replaced."""
    other = ids.copy()
    other[:, at:] = (other[:, at:] + 7) % vocab
    return other


def check(before, after, at):
    """Nothing before `at` moved, and everything from there on did."""
    np.testing.assert_array_equal(after[:, :at], before[:, :at], err_msg=f"token {at} reached back")
    assert (after[:, at:] != before[:, at:]).any(-1).all(), f"token {at} had no effect"


OFFERED = [
    ("numpy", "float64", "plain"),
    *(("torch", dtype, kernel) for dtype in ("float64", "float32", "bfloat16") for kernel in ("plain", "fused")),
    *(("jax", dtype, "plain") for dtype in ("float64", "float32", "bfloat16")),
    *(("jax", dtype, "fused") for dtype in ("float32", "bfloat16")),
]


# JAX compiles few of the models here; test_cache.py holds all of them against the oracle, whatever follows a token
FEW = ("gpt", "gpt_hybrid", "gpt_sparse", "gpt_today")
LONGER = [f"{name}-jax" for name, case in CASES.items() if not case.path and name not in FEW]


@pytest.mark.full_for("jax-float32", "jax-bfloat16", *LONGER)
@pytest.mark.parametrize(("name", "dtype", "kernel"), OFFERED)
def test_full_forward(causal_case, case_model, row_by_row, late, name, dtype, kernel):
    if kernel != "plain" and {entry.kind for entry in causal_case.config.attention} != {"multi_head"}:
        pytest.skip("only multi-head attention has other kernels")
    model = case_model(name, causal_case, dtype, attention=kernel, **row_by_row(name, causal_case))
    ids, positions = late(causal_case, 2, LENGTH)
    before = model.forward(ids, positions).logits
    for at in range(1, LENGTH):
        check(before, model.forward(changed(ids, at, causal_case.config.vocab_size), positions).logits, at)


def through_cache(model, ids, positions, chunk):
    cache = model.new_cache(len(ids), CAPACITY)
    parts = [slice(start, start + chunk) for start in range(0, ids.shape[1], chunk)]
    return np.concatenate([model.extend(cache, ids[:, p], positions[:, p]) for p in parts], axis=1)


@pytest.mark.full_for("jax-6", "jax-4", "jax-1", *LONGER)  # halves are both inside of a chunk and after another one
@pytest.mark.parametrize("chunk", [LENGTH, 4, LENGTH // 2, 1])
def test_through_the_cache(causal_case, case_model, row_by_row, late, name, chunk):
    """A chunk in a cache must be causal inside itself too, and may not see empty slots."""
    model, (ids, positions) = (
        case_model(name, causal_case, **row_by_row(name, causal_case)),
        late(causal_case, 2, LENGTH),
    )
    before = through_cache(model, ids, positions, chunk)
    for at in range(1, LENGTH):
        check(before, through_cache(model, changed(ids, at, causal_case.config.vocab_size), positions, chunk), at)


@pytest.mark.full_for("jax")
def test_intermediate_values_are_causal_too(causal_case, case_model, row_by_row, late, name):
    """Every tap but those of all tokens at once; of scores and weights [B, H, T, S] the third axis is the query, of all
    others the second or third.
    """
    model, (ids, positions), at = (
        case_model(name, causal_case, **row_by_row(name, causal_case)),
        late(causal_case, 2, LENGTH),
        4,
    )
    other = changed(ids, at, causal_case.config.vocab_size)
    before, after = (model.forward(x, positions, taps=("*",)).taps for x in (ids, other))
    assert len(before) > 10 * causal_case.config.num_layers
    for tap, value in before.items():
        if value.ndim == 0:
            continue
        if tap.endswith((".scores", ".weights")) or value.ndim == 4:
            np.testing.assert_array_equal(after[tap][:, :, :at], value[:, :, :at], err_msg=tap)
        else:
            np.testing.assert_array_equal(after[tap][:, :at], value[:, :at], err_msg=tap)


# variants of a part that JAX computes here too
SIBLINGS = ("grouped_query_gated", "grouped_query_no_positions", "latent_attention_book", "attention_no_bias")
SIBLINGS += ("experts_chosen_softmax", "experts_sigmoid", "experts_grouped", "experts_clamped", "mlp_exact_gelu")
SIBLINGS += ("block", "latent_attention", "gated_mlp", "experts", "attention")


@pytest.mark.full_for("jax-float32", *(f"{name}-jax" for name in SIBLINGS))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_components_are_causal_forwards_and_backwards(part, case_model, row_by_row, wing, dtype):
    """Later inputs change no earlier output, and an output has no gradient at later inputs, nor in another row."""
    model, at = case_model(wing, part, dtype, **row_by_row(wing, part)), part.length // 2
    x, cotangent = part.signals()
    later, other_row = x.copy(), x.copy()
    later[:, at:] = 1 - later[:, at:]  # not -x, which an even function does not see
    other_row[1:] = 1 - other_row[1:]
    before, _ = model.component(part.path, x, cotangent)
    check(before, model.component(part.path, later, cotangent)[0], at)
    np.testing.assert_array_equal(model.component(part.path, other_row, cotangent)[0][0], before[0])
    early, first = cotangent.copy(), cotangent.copy()
    early[:, at:], first[1:] = 0, 0
    gradient = model.component(part.path, x, early)[1].grads["input"]
    assert (gradient[:, at:] == 0).all()
    assert (gradient[:, :at] != 0).any(-1).all()
    gradient = model.component(part.path, x, first)[1].grads["input"]
    assert (gradient[1:] == 0).all()
