"""Written-out factors against LAPACK's, alone and in a batch, and what is not positive definite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.methods.small_factors import SMALL, cholesky, cholesky_solve
from pdopt.runtime.batching import minor

pytestmark = pytest.mark.usefixtures("quick_compiles")


def definite(order: int, count: int) -> np.ndarray:
    roots = np.random.default_rng(order).standard_normal((count, order, order))
    return roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(order)


@pytest.mark.parametrize("order", [1, 2, 5, SMALL, SMALL + 1])
def test_a_batch_of_factors_and_solves(order: int) -> None:
    matrices = definite(order, 3)
    right = np.random.default_rng(0).standard_normal((3, order))

    def both(matrix, right):
        factor = cholesky(matrix)
        return factor, cholesky_solve(factor, right)

    with jax.enable_x64(True):
        factors, found = jax.jit(jax.vmap(minor(both)))(jnp.asarray(matrices), jnp.asarray(right))
    np.testing.assert_allclose(factors, np.linalg.cholesky(matrices), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found, np.linalg.solve(matrices, right[..., None])[..., 0], rtol=1e-8, atol=1e-9)


def test_only_the_lower_half_is_read_and_what_is_indefinite_is_not_finite() -> None:
    matrix = jnp.asarray(definite(4, 1)[0], jnp.float32)
    np.testing.assert_array_equal(cholesky(jnp.tril(matrix)), cholesky(matrix))
    assert not bool(jnp.isfinite(cholesky(matrix - 50 * jnp.eye(4))).all())
