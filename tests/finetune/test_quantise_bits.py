"""NF4 three times: the codebook is the published one, codes, bytes and what they stand for are equal to the bit."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common import backend as door
from common.errors import UserError
from common.nf4 import BLOCK, DYNAMIC, GROUP, NF4, TINY, midpoints, stored
from common.oracle import quantise as oracle
from jax_impl import quantise as in_jax
from torch_impl import quantise as in_torch

# Dettmers et al. 2023, appendix E
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
BASES = ("nf4", "nf4_double")
SHAPES = ((1, 1), (7, 9), (3, 64), (64, 65), (33, 1001), (261, 513))  # one; odd; blocks; above a group, a part


def weights(shape, seed=0):
    """Normal numbers whose blocks have very different sizes; the first block is zero where there are several."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape) * generator.choice([1e-35, 1e-30, 0.02, 1.0, 50.0], shape)
    if x.size > BLOCK:
        x.reshape(-1)[:BLOCK] = 0
        x.reshape(-1)[BLOCK // 2] = -0.0
    return x.astype(np.float32)


def made(x, base):
    """What all three implementations keep, and make of it again (JAX compiled), as the certificate asks them."""
    return [door.load(name).four_bits(x, base) for name in ("numpy", "torch", "jax")]


def same(*arrays):
    """Equal in type, shape and every bit, the sign of zero among them."""
    first = arrays[0]
    return all((a.dtype, a.shape, a.tobytes()) == (first.dtype, first.shape, first.tobytes()) for a in arrays[1:])


def test_the_codebook_is_the_published_one_to_the_bit():
    assert same(NF4, np.array(PUBLISHED, np.float32))
    assert (NF4[7], NF4[0], NF4[-1]) == (0, -1, 1)


def test_the_eight_bit_codebook():
    """Seven decades, twice as many numbers in each; 1 itself has no negative twin."""
    assert DYNAMIC.shape == (256,)
    assert (np.diff(DYNAMIC) > 0).all()
    positive = DYNAMIC[DYNAMIC > 0].astype(np.float64)
    assert np.array_equal(np.sort(-DYNAMIC[DYNAMIC < 0]), DYNAMIC[DYNAMIC > 0][:-1])
    assert [int(((positive > 10.0**k) & (positive < 10.0 ** (k + 1))).sum()) for k in range(-7, 0)] == [
        1, 2, 4, 8, 16, 32, 64,
    ]  # fmt: skip
    assert positive[-2] == pytest.approx(0.1 + 0.9 * 63.5 / 64, abs=1e-7)


@pytest.mark.full_for("(33, 1001)", "(1, 1)", "(3, 64)")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_three_agree_to_the_bit(shape, base):
    x = weights(shape)
    found = made(x, base)
    assert all(list(own) == list(found[0]) for own in found)
    assert all(same(*(own[name] for own in found)) for name in found[0])
    assert same(found[0]["weight"], np.asarray(in_jax.dequantise(in_jax.quantise(x, base), shape)))  # not compiled
    have = {name: (part.shape, part.dtype.name) for name, part in found[0].items()}
    assert have == stored(x.size, base) | {"weight": (shape, "float32")}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_formats_are_read_as_float32(dtype):
    x = torch.from_numpy(weights((9, 100))).to(getattr(torch, dtype))
    plain = in_torch.quantise(x.float())
    assert all(map(torch.equal, in_torch.quantise(x)[:2], plain[:2]))
    if dtype == "float64":
        assert same(oracle.quantise(x.numpy()).packed, plain.packed.numpy())
    else:
        with_jax = in_jax.quantise(jnp.asarray(x.float().numpy(), jnp.bfloat16))
        assert same(np.asarray(with_jax.packed), plain.packed.numpy())


def test_by_hand():
    """Two numbers: absmax 2, codes 15 and 0 for the ends, the first in the high half of the byte."""
    assert oracle.quantise(np.array([2.0, -2.0], np.float32)).packed.tolist() == [0xF0]
    assert oracle.quantise(np.array([-2.0, 2.0], np.float32)).packed.tolist() == [0x0F]
    odd = oracle.quantise(np.array([4.0, 0.0, -4.0], np.float32))  # the last byte is filled up
    assert (odd.packed.tolist(), odd.absmax.tolist()) == ([0xF7, 0x00], [4.0])
    two = oracle.quantise(np.concatenate([np.full(BLOCK, 3), [5.0]]).astype(np.float32))
    assert two.absmax.tolist() == [3.0, 5.0]


def test_every_weight_gets_a_nearest_number():
    """Held against all 16, in float64; what lies between two may get either, to within float32's rounding."""
    x = np.random.default_rng(1).standard_normal((40, BLOCK)).astype(np.float32)
    found = oracle.quantise(x)
    ratio = x / found.absmax.astype(np.float64)[:, None]
    off = np.abs(ratio[..., None] - NF4.astype(np.float64))
    own = np.take_along_axis(off, oracle.unpack(found.packed).reshape(x.shape)[..., None], -1)[..., 0]
    assert (own <= off.min(-1) + 2**-23).all()
    assert set(oracle.unpack(found.packed).tolist()) == set(range(16))


@pytest.mark.parametrize("values", [NF4, DYNAMIC], ids=["4 bits", "8 bits"])
def test_ties_go_to_the_lower_code(values):
    middle = midpoints(values)[None]
    codes = [
        oracle.nearest(middle, np.ones(1, np.float32), values),
        in_torch.nearest(torch.from_numpy(middle), torch.ones(1), values).numpy(),
        np.asarray(in_jax.nearest(jnp.asarray(middle), jnp.ones(1), values)),
    ]
    assert same(*codes)
    assert codes[0][0].tolist() == list(range(len(values) - 1))
    above = np.nextafter(middle, np.float32(2))
    assert oracle.nearest(above, np.ones(1, np.float32), values)[0].tolist() == list(range(1, len(values)))


@pytest.mark.parametrize("base", BASES)
def test_blocks_of_zeros_stay_zeros(base):
    """Also those of numbers that are too small: none of three divides by zero or meets a subnormal number."""
    zeros = np.zeros((5, BLOCK), np.float32)
    assert not oracle.dequantise(oracle.quantise(zeros, base), zeros.shape).any()
    small = np.full((2, BLOCK), 0.99 * TINY, np.float32)
    kept = np.full((2, BLOCK), 1.01 * TINY, np.float32)
    for x, none in ((small, True), (kept, False)):
        found = made(x, base)
        assert all(same(*(own[name] for own in found)) for name in found[0])
        assert (not found[0]["weight"].any()) == none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    x = np.ones((2, 3), np.float32)
    x[1, 1] = value
    for quantise, array in ((oracle.quantise, x), (in_torch.quantise, torch.from_numpy(x)), (in_jax.quantise, x)):
        with pytest.raises(UserError, match="q_proj holds NaN or infinity"):
            quantise(array, "nf4", "q_proj")


def test_again_changes_nothing():
    """The largest number of a block is a code's, so what was quantised once comes back to the bit."""
    x = weights((33, 1001))
    once = oracle.dequantise(oracle.quantise(x), x.shape)
    assert same(once, oracle.dequantise(oracle.quantise(once), x.shape))


def test_the_error_of_normal_weights():
    """The mean square over codes and normal blocks, from the codebook alone: a numerical integral over 64 numbers."""
    x = np.random.default_rng(2).standard_normal((4000, BLOCK)).astype(np.float32)
    for base, low, high in (("nf4", 0.0900, 0.0935), ("nf4_double", 0.0900, 0.0940)):
        change = oracle.dequantise(oracle.quantise(x, base), x.shape) - x
        assert low < math.sqrt(np.square(change).mean()) < high
    error = np.abs(oracle.dequantise(oracle.quantise(x), x.shape) - x)
    absmax = np.abs(x).max(-1, keepdims=True)
    assert (error <= absmax * np.diff(NF4).max() / 2 * (1 + 1e-6)).all()


def test_double_quantisation_keeps_absmax_within_its_step():
    """No absmax is further off than half the widest gap of the 8-bit codes, times the scale of its group."""
    x = np.random.default_rng(3).standard_normal((1, BLOCK * (GROUP + 9))).astype(np.float32)
    single, double = oracle.quantise(x), oracle.quantise(x, "nf4_double")
    assert same(single.packed, double.packed)
    assert (double.scale.size, double.offset.size) == (2, 1)
    assert double.offset[0] == pytest.approx(single.absmax.mean(), rel=1e-6)
    out = oracle.dequantise(double, x.shape).reshape(-1, BLOCK)
    back = np.abs(out).max(-1)  # the largest code of a block is an end
    step = np.repeat(double.scale, GROUP)[: back.size] * np.diff(DYNAMIC).max()
    assert (np.abs(back - single.absmax) <= step / 2 * (1 + 1e-5)).all()
    assert not np.array_equal(back, single.absmax)


def test_sums_are_in_one_order():
    x = np.random.default_rng(4).standard_normal(1001).astype(np.float32)
    found = oracle.total(x), in_torch.total(torch.from_numpy(x)).numpy(), np.asarray(in_jax.total(jnp.asarray(x)))
    assert same(*found)
    assert found[0][0] == pytest.approx(x.astype(np.float64).sum(), abs=1e-3)
