"""The saddle view of quadratic programs: the bound on the curvature, the step, and the metric it is proximal in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import pdopt
from pdopt.operators.convert import as_operator
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.scaling import Scaling, equilibrate
from pdopt.problems.quadratic_saddle import majorant
from pdopt.problems.views import saddle
from pdopt.types import Memory, Pair

UNSCALED = Scaling(ruiz=0, pock_chambolle=False, bound_objective=False)


def curvature(seed: int, n: int, rank: int, kind: str) -> np.ndarray:
    """Semidefinite, with entries of very different size."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-2, 2, n)
    if kind == "diagonal":
        return np.diag(size * (rng.uniform(size=n) < 0.7))
    M = rng.standard_normal((n, rank)) * (rng.uniform(size=(n, rank)) < (0.3 if kind == "sparse" else 1))
    return size[:, None] * (M @ M.T) * size[None, :]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["dense", "sparse", "diagonal"]), st.integers(1, 12))
def test_the_bound_is_above_the_curvature(seed: int, kind: str, rank: int) -> None:
    Q = curvature(seed, 12, rank, kind)
    with jax.enable_x64(True):
        H = np.asarray(majorant(as_operator(Q, np.float64)))
    least = np.linalg.eigvalsh(np.diag(H) - Q)[0]
    assert least >= -1e-10 * np.abs(Q).max()
    # Nowhere above the row sums, which are a bound for every symmetric matrix; exact for a diagonal one.
    assert (np.abs(Q).sum(axis=1) * (1 + 1e-12) - H >= 0).all()
    if kind == "diagonal":
        np.testing.assert_array_equal(H, np.diag(Q))


def program(seed: int, Q: Any = None, n: int = 5, m: int = 3) -> pdopt.QuadraticProgram:
    rng = np.random.default_rng(seed)
    low, lower = rng.standard_normal(m), -rng.uniform(0, 1, n)
    low[0], lower[0] = -np.inf, -np.inf
    high, upper = np.where(np.isfinite(low), low, 0) + rng.uniform(0, 1, m), rng.uniform(0, 1, n)
    high[1], upper[1] = low[1], np.inf
    Q = curvature(seed, n, 3, "dense") if Q is None else Q
    return pdopt.QuadraticProgram(
        Q, rng.standard_normal(n), rng.standard_normal((m, n)), low, high, lower, upper, dtype=np.float64
    )


def metric(view: Any, Q: np.ndarray, A: np.ndarray, tau: float, sigma: float) -> np.ndarray:
    m, n = A.shape
    P = np.eye(n) / tau + np.diag(np.asarray(view.bound)) - Q
    return np.block([[P, A.T], [A, np.eye(m) / sigma]])  # v = -A x, and y ascends


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_the_step_is_the_proximal_step_of_its_metric(kind: str) -> None:
    """Optimality of x' over the box: the gradient of the objective with |x - x0|_P^2 / 2 has a valid sign."""
    Q = curvature(1, 5, 3, kind)
    with jax.enable_x64(True):
        qp = program(1, Q)
        view, tau = saddle(qp, UNSCALED), 0.3
        rng = np.random.default_rng(2)
        for _ in range(5):
            x0, y = rng.standard_normal(5), rng.standard_normal(3)
            after = np.asarray(view.curved_step(x0, view.slope(x0), y, tau))
            P = np.eye(5) / tau + np.diag(np.asarray(view.bound)) - Q
            A, c, l, u = (np.asarray(v) for v in (qp.A.matrix, qp.c, qp.lower, qp.upper))
            slope = Q @ after + c - A.T @ y + P @ (after - x0)
            free = (after > l) & (after < u)
            assert np.abs(slope[free]).max(initial=0) <= 1e-10 * (1 + np.abs(Q).max())
            assert (slope[after == l] >= 0).all()
            assert (slope[after == u] <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_map_is_firmly_nonexpansive_in_its_metric(seed: int) -> None:
    """|Tz - Tw|^2 <= <Tz - Tw, z - w>: what full reflection and restarts rest on; and the metric is definite."""
    with jax.enable_x64(True):
        qp = program(seed)
        method = pdopt.PDHG.constant(scaling=UNSCALED)
        view = method.view(qp)
        Q, A = np.asarray(qp.Q.matrix), np.asarray(qp.A.matrix)
        eta, omega = 0.99 / np.linalg.norm(A, 2), 1.7
        M = metric(view, Q, A, eta / omega, eta * omega)
        assert np.linalg.eigvalsh(M)[0] > -1e-9 * np.abs(M).max()
        size = method.stepsize.init(jnp.float64(np.linalg.norm(A, 2) / 0.99 * 0.998))
        T = method._map(view, size, omega)
        rng = np.random.default_rng(seed)

        def apply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            from pdopt.methods.pdhg import image

            after, _ = T(Pair(image(view, jnp.asarray(x)), jnp.asarray(y)), Memory())
            return np.concatenate([after.x.point, after.y])

        for _ in range(20):
            z, w = rng.standard_normal((2, 8)) * 3
            d, moved = z - w, apply(z[:5], z[5:]) - apply(w[:5], w[5:])
            assert moved @ M @ moved <= moved @ M @ d + 1e-9 * np.abs(M).max()


@pytest.mark.parametrize(
    "stored",
    [pytest.param(kind, marks=pytest.mark.slow) for kind in ("sparse A", "sparse Q")] + ["both", "diagonal Q"],
)
def test_slope_in_the_order_of_the_layout(stored: str) -> None:
    """A and Q in layouts of their own: `Q x` in the user's order is what the view's slope comes back as."""
    rng = np.random.default_rng(0)
    n, m = 90, 70  # 6 300 entries and more: sparse matrices stay sparse
    A = sp.random(m, n, 0.05, rng=rng, format="csr")
    R = sp.random(n, n, 0.02, rng=rng)
    Q = (R @ R.T).tocsr()
    if stored == "diagonal Q":
        Q = sp.diags(rng.uniform(0, 1, n)).tocsr()
    A = A.toarray() if stored == "sparse Q" else A
    given_Q = Q.toarray() if stored == "sparse A" else Q
    qp = pdopt.QuadraticProgram(
        given_Q, rng.standard_normal(n), A, np.zeros(m), np.ones(m), np.zeros(n), np.ones(n), dtype=np.float64
    )
    assert isinstance(qp.Q, Diagonal) == (stored == "diagonal Q")
    with jax.enable_x64(True):
        view = saddle(qp, Scaling())
        x = rng.uniform(0, 1, n)
        inside = view.into(Pair(x, np.zeros(m)))
        order = view.linear.column_order
        found = view.slope(inside.x) * view.linear.E / view.linear.objective
        found = found if order is None else order.back(found)
    np.testing.assert_allclose(found, Q @ x, rtol=1e-10, atol=1e-12)


def test_scaling_counts_the_curvature() -> None:
    """Entries of [A; Q] tend to at most 1; a column without rows is scaled by its curvature alone."""
    with jax.enable_x64(True):
        A = as_operator(np.array([[2.0, 0.0]]), np.float64)
        Q = Diagonal(jnp.array([0.0, 100.0]))
        D, E = equilibrate(A, 20, True, Q)
        np.testing.assert_allclose(Q.scale(1 / E, 1 / E).diagonal[1], 1, rtol=1e-3)
        np.testing.assert_allclose((D[0] * E[0], equilibrate(A, 20, True)[1][1]), (2, 1), rtol=1e-3)
