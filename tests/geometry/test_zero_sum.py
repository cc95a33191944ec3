"""Vectors that sum to zero: projection and support against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.geometry.moves import Euclidean
from pdopt.geometry.zero_sum import ZeroSum


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projection_is_the_nearest_point(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(5, 7)), dtype)
        z = ZeroSum().project(x)
        assert z.dtype == dtype
        few = 8 * 7 * np.finfo(dtype).eps  # a sum of 7 numbers below 4
        np.testing.assert_allclose(np.sum(z, axis=1), 0, atol=few)
        # x - z is orthogonal to the subspace: constant along each row.
        np.testing.assert_allclose(x - z, np.broadcast_to(np.mean(x, 1, keepdims=True), x.shape), atol=few)
        np.testing.assert_allclose(ZeroSum().project(z), z, atol=few)


def test_support_is_zero_on_constants_and_infinite_elsewhere():
    assert float(ZeroSum().support(jnp.full(4, 3.0))) == 0
    assert float(ZeroSum().support(jnp.array([1.0, 1.0, 1.1]))) == np.inf
    assert float(ZeroSum().support(jnp.array([1.0, 1.0, 1.1]), tolerance=0.1)) == 0


def test_penalty_of_the_move_has_the_moved_point_as_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        y = ZeroSum().project(jnp.asarray(rng.normal(size=6)))
        v = jnp.asarray(rng.normal(size=6))
        move = Euclidean(ZeroSum())
        np.testing.assert_allclose(jax.grad(lambda v: move.penalty(y, v, 0.7))(v), move(y, v, 0.7), atol=1e-14)
