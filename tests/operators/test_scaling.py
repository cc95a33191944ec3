"""Equilibration and the spectral norm against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.operators.dense import Dense
from pdopt.operators.implicit import Implicit
from pdopt.operators.norms import spectral_norm
from pdopt.operators.scaling import equilibrate
from pdopt.operators.sparse import Sparse


def badly_scaled(seed=0, shape=(12, 17)):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=shape) * (rng.uniform(size=shape) < 0.5)
    A = A * 10.0 ** rng.uniform(-4, 4, shape[0])[:, None] * 10.0 ** rng.uniform(-4, 4, shape[1])
    A[3], A[:, 5] = 0, 0
    return A


def both(A, dtype):
    row, column = np.nonzero(A)
    return Dense.make(A, dtype), Sparse.from_entries(row, column, A[row, column], A.shape, dtype)


def plain_equilibrate(A, passes, sums):
    """The same passes in NumPy, on the matrix itself."""
    D, E = np.ones(A.shape[0]), np.ones(A.shape[1])
    for k in range(passes + sums):
        S = abs(A) / D[:, None] / E
        rows, columns = (S.max(1), S.max(0)) if k < passes else (S.sum(1), S.sum(0))
        D, E = D * np.sqrt(np.where(rows > 0, rows, 1)), E * np.sqrt(np.where(columns > 0, columns, 1))
    return D, E


@pytest.mark.parametrize(("passes", "sums"), [(0, False), (1, False), (10, False), (10, True), (0, True)])
def test_factors_equal_numpy(passes, sums):
    A = badly_scaled()
    with jax.enable_x64(True):
        for operator in both(A, jnp.float64):
            for got, expected in zip(equilibrate(operator, passes, sums), plain_equilibrate(A, passes, sums)):
                np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_ruiz_brings_rows_and_columns_near_one():
    A = badly_scaled()
    with jax.enable_x64(True):
        for operator in both(A, jnp.float64):
            D, E = equilibrate(operator, 40, False)
            scaled = operator.scale(1 / D, 1 / E)
            for norms in (np.asarray(scaled.row_norms("linf")), np.asarray(scaled.column_norms("linf"))):
                # The error of a Ruiz pass halves its logarithm (Ruiz 2001): after 40 passes it is rounding.
                np.testing.assert_allclose(norms[norms > 0], 1.0, rtol=1e-6)
            assert D[3] == 1
            assert E[5] == 1


def test_pock_chambolle_bounds_the_norm_by_one():
    for seed in range(5):
        A = badly_scaled(seed)
        with jax.enable_x64(True):
            D, E = (np.asarray(v) for v in equilibrate(Dense.make(A, jnp.float64), 0, True))
        assert np.linalg.norm(A / D[:, None] / E, 2) <= 1 + 1e-12


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3)])
def test_nothing_to_scale(shape):
    for operator in (Dense(jnp.zeros(shape)), Sparse.from_entries([], [], [], shape, jnp.float32)):
        D, E = equilibrate(operator, 10, True)
        np.testing.assert_array_equal(D, np.ones(shape[0]))
        np.testing.assert_array_equal(E, np.ones(shape[1]))


def test_scaling_keeps_the_dtype():
    with jax.enable_x64(True):
        for operator in both(badly_scaled(), jnp.float32):
            assert {v.dtype for v in equilibrate(operator, 3, True)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spectral_norm_equals_the_largest_singular_value(seed, dtype):
    A = np.random.default_rng(seed).normal(size=(15, 9))
    expected = np.linalg.norm(A, 2)
    with jax.enable_x64(True):
        for operator in both(A, dtype):
            got = spectral_norm(operator, 15, dtype)
            assert got.dtype == dtype
            # The Rayleigh quotient is below lambda = s^2, by at most the residual 1e-4 lambda (s: half of that).
            assert expected * (1 - 1e-4) <= float(got) <= expected * (1 + 10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 4), (1, 1)])
def test_spectral_norm_of_nothing_is_zero(shape):
    for operator in (Dense(jnp.zeros(shape)), Sparse.from_entries([], [], [], shape, jnp.float32)):
        assert float(spectral_norm(operator, shape[0], jnp.float32)) == 0.0


def test_spectral_norm_of_an_implicit_map():
    operator = Implicit(jnp.float32(3.0), lambda d, x: d * x, lambda d, y: d * y, (4, 4))
    assert float(spectral_norm(operator, 4, jnp.float32)) == pytest.approx(3.0, rel=1e-6)


def test_two_equal_singular_values_settle():
    assert float(spectral_norm(Dense(2 * jnp.eye(5)), 5, jnp.float32)) == pytest.approx(2.0, rel=1e-6)
