"""Factors of band matrices against dense ones; the matrix of a Newton step put together from its plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from pdopt.operators.band import factorise, inverse_factor, solve
from pdopt.operators.convert import as_operator
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.normal import BandPlan, Normal
from pdopt.operators.sparse import Sparse


def blocks(count, width, seed):
    """Blocks of a positive definite block-tridiagonal matrix, and the matrix."""
    rng = np.random.default_rng(seed)
    whole = np.zeros((count * width, count * width))
    for k in range(count):
        low, high = k * width, min(k + 2, count) * width
        R = rng.standard_normal((high - low, high - low))
        whole[low:high, low:high] += R @ R.T
    whole += np.eye(count * width)
    part = lambda i, j: whole[i * width : (i + 1) * width, j * width : (j + 1) * width]
    own = np.stack([part(k, k) for k in range(count)])
    below = np.stack([part(k + 1, k) if k + 1 < count else np.zeros((width, width)) for k in range(count)])
    return own, below, whole


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([(1, 5), (2, 1), (4, 3), (3, 70)]), st.integers(0, 99))
def test_solves_what_a_dense_factor_solves(shape, seed):
    with jax.enable_x64(True):
        own, below, whole = blocks(shape[0], shape[1], seed)
        v = np.random.default_rng(seed).standard_normal(len(whole))
        found = solve(factorise(jnp.asarray(own), jnp.asarray(below)), jnp.asarray(v))
        np.testing.assert_allclose(found, np.linalg.solve(whole, v), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [1, 32, 33, 100])
def test_inverse_factor(n):
    with jax.enable_x64(True):
        own, _, _ = blocks(1, n, 0)
        inverse = inverse_factor(jnp.asarray(own[0]))
        np.testing.assert_allclose(inverse @ own[0] @ inverse.T, np.eye(n), atol=1e-9)
        assert bool(jnp.all(jnp.triu(inverse, 1) == 0))


def test_a_matrix_that_is_not_definite_gives_nan():
    own, below, _ = blocks(3, 2, 0)
    assert not bool(jnp.all(jnp.isfinite(factorise(jnp.asarray(own) - 99 * jnp.eye(2), jnp.asarray(below)).inverse)))


def operators(n, seed, diagonal):
    """A chain: rows of second differences in a shuffled order of the variables; Q diagonal or tridiagonal."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    A = sp.csr_matrix(np.diff(np.eye(n), 2, axis=0)[:, order])
    A.data *= rng.uniform(0.5, 2, A.nnz)
    tridiagonal = np.diag(rng.uniform(1, 2, n)) - 0.3 * (np.eye(n, k=1) + np.eye(n, k=-1))
    Q = sp.csr_matrix(tridiagonal[order][:, order])
    row, column = Q.nonzero()
    whole = Sparse.from_entries(row, column, np.asarray(Q[row, column]).ravel(), Q.shape, jnp.float64)
    curved = Diagonal.make(Q.diagonal(), jnp.float64) if diagonal else whole
    a, b = A.nonzero()
    return curved, Sparse.from_entries(a, b, np.asarray(A[a, b]).ravel(), A.shape, jnp.float64), A.toarray()


@pytest.mark.parametrize("diagonal", [True, False])
def test_put_together_from_its_plan_it_is_the_dense_matrix(diagonal):
    with jax.enable_x64(True):
        n, rng = 75, np.random.default_rng(1)
        Q, A, dense = operators(n, 0, diagonal)
        plan = BandPlan.make(Q, A)
        assert plan is not None
        assert plan.count > 3  # the order of the chain is found
        w, d, v = (jnp.asarray(rng.uniform(0, 1, k)) for k in (n - 2, n, n))
        expected = np.linalg.solve(np.asarray(Q.toarray()) + dense.T @ (np.asarray(w)[:, None] * dense) + np.diag(d), v)
        for given in (plan, None):
            normal = Normal(Q, A, given)
            np.testing.assert_allclose(normal.solve(normal.factor(w, d), v), expected, rtol=1e-9)


def test_no_plan_for_a_dense_matrix_and_for_rows_that_fill_it():
    assert BandPlan.make(Diagonal.make(np.ones(4), jnp.float32), as_operator(np.ones((2, 4)), jnp.float32)) is None
    n = 6000
    full = Sparse.from_entries(np.zeros(n), np.arange(n), np.ones(n), (1, n), jnp.float32)
    assert BandPlan.make(Diagonal.make(np.ones(n), jnp.float32), full) is None
