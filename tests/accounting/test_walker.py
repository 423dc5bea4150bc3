"""JAX's program is walked to the end: every body as often as it runs, nothing unknown passed over in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.backend import Reported
from jax_impl.flops import BODIES, matmul_flops, xla_flops

X = np.ones((3, 3), np.float32)
ONE = 2 * 3**3


def twice(x):
    return x @ x @ x


@jax.custom_vjp
def own_gradient(x):
    return x @ x


own_gradient.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T @ x,))


BODY_CASES = {  # products of X in a run, by how they are nested
    "plain": (2, twice),
    "jit in jit": (2, jax.jit(lambda x: jax.jit(twice)(x))),
    "called twice": (4, lambda x: jax.jit(twice)(x) + jax.jit(twice)(x + 1)),
    "scan": (10, lambda x: jax.lax.scan(lambda c, _: (twice(c), None), x, None, length=5)[0]),
    "scan in scan": (
        12,
        lambda x: jax.lax.scan(
            lambda c, _: (jax.lax.scan(lambda d, _: (twice(d), None), c, None, length=2)[0], None),
            x,
            None,
            length=3,
        )[0],
    ),
    "cond": (2, lambda x: jax.lax.cond(x[0, 0] > 0, twice, lambda y: y @ y, x)),
    "switch": (3, lambda x: x @ jax.lax.switch(0, [twice, jnp.sin, lambda y: y @ y], x)),
    "remat": (2, jax.checkpoint(twice)),
    # forward 2, again 1 (nobody needs the second one's result again), backward 4
    "remat, gradient": (2 + 1 + 4, jax.grad(lambda x: jax.checkpoint(lambda y: (y @ y @ y).sum())(x))),
    "custom_vjp": (1, own_gradient),
    "custom_vjp, gradient": (3, jax.grad(lambda x: own_gradient(x).sum())),
    "custom_jvp": (1, lambda x: jax.nn.relu(x @ x)),
    "batched": (4, lambda x: jnp.einsum("bij,bjk->bik", jnp.stack([x] * 4), jnp.stack([x] * 4))),
    "vmap": (4, lambda x: jax.vmap(lambda y: y @ y)(jnp.stack([x] * 4))),
    "groups of rows": (1, lambda x: jax.lax.ragged_dot(x, jnp.stack([x, x]), jnp.array([1, 2]))),
    "groups of rows, gradient": (3, jax.grad(lambda x: jax.lax.ragged_dot(x, x[None], jnp.array([3])).sum())),
    "triangle": (1 / 2, lambda x: jax.scipy.linalg.solve_triangular(x, x)),
    "triangle on the right": (1 / 2, lambda x: jax.lax.linalg.triangular_solve(x, x, left_side=False)),
    "triangles": (4 / 6, lambda x: jax.scipy.linalg.solve_triangular(jnp.stack([x] * 4), jnp.ones((4, 3, 1)))),
    # for the columns, for the triangle (JAX solves for these apart), and their product
    "triangle, gradient": (5 / 2, jax.grad(lambda x: jax.scipy.linalg.solve_triangular(x, 2 * x).sum())),
    "vector": (1 / 3, lambda x: x @ x[0]),
}


@pytest.mark.parametrize(
    ("products", "function"),
    BODY_CASES.values(),
    ids=BODY_CASES,
)
def test_every_body_counts_as_often_as_it_runs(products, function):
    assert matmul_flops(function, X) == round(products * ONE)


def test_a_loop_without_a_known_end_is_refused():
    def search(x):
        return jax.lax.while_loop(lambda y: y.sum() < 1e3, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="a while loop has no known number of rounds"):
        matmul_flops(search, X)
    assert matmul_flops(search, X, rounds=1) == ONE
    assert matmul_flops(lambda x: search(x) @ x, X, rounds=4) == 5 * ONE


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("conv_general_dilated", lambda x: jax.lax.conv(x[None, None], x[None, None], (1, 1), "SAME")),
        ("cholesky", jnp.linalg.cholesky),
        ("eigh", jnp.linalg.eigh),
        ("fft", jnp.fft.fft),
        ("pure_callback", lambda x: jax.pure_callback(lambda y: y @ y, x, x)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_product_is_refused(name, function):
    with pytest.raises(ValueError, match=f"no FLOP rule for {name}"):
        matmul_flops(function, X)


def test_an_unknown_structure_is_refused(monkeypatch):
    """An operation that is new to us, with a product in its body, is not passed over."""
    monkeypatch.delitem(BODIES, "scan")
    with pytest.raises(ValueError, match="no rule says how often scan runs its body"):
        matmul_flops(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=2)[0], X)
    assert matmul_flops(lambda x: jax.lax.scan(lambda c, _: (c + c, None), x, None, length=2)[0], X) == 0


def test_xla_counts_the_body_of_a_scan_once():
    """Why its figure is shown beside, and never used."""

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=50)[0]

    x = np.ones((64, 64), np.float32)
    assert matmul_flops(scanned, x) == 50 * 2 * 64**3
    found = xla_flops(scanned, x)
    assert 2 * 64**3 <= found.flops < 2 * 2 * 64**3
    assert found.missed == 49 * 2 * 64**3
    assert matmul_flops(jnp.sin, x) == 0
    assert xla_flops(lambda x: x + x * x, x) == Reported(2 * 64**2, 0)
