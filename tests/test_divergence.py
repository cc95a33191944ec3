"""The Sinkhorn divergence: zero, positive, a loop over its definition, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidProblem, UnsupportedProblem
from pdopt.methods.symmetric_sinkhorn import SymmetricSinkhorn
from pdopt.types import Status

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 2)), RNG.normal(size=(5, 2)) + 0.3
A, B = np.array([0.2, 0.0, 0.3, 0.1, 0.25, 0.15]), np.array([0.3, 0.1, 0.1, 0.3, 0.2])


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def entropic_value(C, a, b, epsilon, rho=np.inf, sweeps=15_000):
    """`OT(a, b)` from its definition: plain sweeps in NumPy (the self terms need many), then the dual function."""
    tau = 1.0 if np.isinf(rho) else rho / (rho + epsilon)
    with np.errstate(divide="ignore"):
        la, lb = np.log(a), np.log(b)
    f, g = np.zeros(len(a)), np.zeros(len(b))
    lse = lambda z, axis: np.log(np.sum(np.exp(z - z.max(axis, keepdims=True)), axis)) + z.max(axis)
    for _ in range(sweeps):
        f = -tau * epsilon * lse(lb + (g - C) / epsilon, 1)
        g = -tau * epsilon * lse((la + f / epsilon)[:, None] - C / epsilon, 0)
    P = a[:, None] * b * np.exp((f[:, None] + g - C) / epsilon)
    side = lambda f, a: f @ a if np.isinf(rho) else -rho * a @ np.expm1(-f / rho)
    return side(f, a) + side(g, b) - epsilon * (P.sum() - a.sum() * b.sum())


def square(x, y):
    return ((x[:, None] - y) ** 2).sum(-1)


@pytest.mark.parametrize("rho", [np.inf, 2.0])
def test_equals_its_definition(rho):
    a, b, epsilon = A, B if np.isinf(rho) else 1.7 * B, 0.4
    found = pdopt.sinkhorn_divergence(pdopt.SqEuclidean(X, Y), a, b, epsilon=epsilon, unbalanced=rho, tolerance=1e-12)
    assert found.reason is Status.OPTIMAL
    cross, first, second = (
        entropic_value(C, p, q, epsilon, rho)
        for C, p, q in ((square(X, Y), a, b), (square(X, X), a, a), (square(Y, Y), b, b))
    )
    mass = 0 if np.isinf(rho) else epsilon / 2 * (a.sum() - b.sum()) ** 2
    assert float(found.value) == pytest.approx(cross - (first + second) / 2 + mass, abs=1e-11)
    assert float(found.first.objective) == pytest.approx(first, abs=1e-11)


@pytest.mark.parametrize("rho", [np.inf, 1.0])
def test_zero_at_equal_measures_and_positive_elsewhere(rho):
    at = jax.jit(lambda y, b: pdopt.sinkhorn_divergence(
        pdopt.SqEuclidean(X, y), A, b, epsilon=0.5, unbalanced=rho, tolerance=1e-10).value)  # fmt: skip
    assert float(at(X, A)) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(1)
    for _ in range(5):
        b = rng.dirichlet(np.ones(6))
        assert float(at(X + rng.normal(scale=0.1, size=X.shape), b)) > 0


def test_derivatives_equal_finite_differences():
    def value(x, y, a, b, epsilon):
        return pdopt.sinkhorn_divergence(pdopt.SqEuclidean(x, y), a, b, epsilon=epsilon, tolerance=1e-13).value

    at, slope = jax.jit(value), jax.jit(jax.grad(value, argnums=(0, 1, 2, 3, 4)))
    point = (X, Y, A, B, np.asarray(0.4))
    rng = np.random.default_rng(2)
    da, db = np.where(A > 0, rng.normal(size=A.shape), 0) * 0.1, rng.normal(size=B.shape) * 0.1
    da[A > 0] -= da.sum() / (A > 0).sum()
    db -= db.mean()
    slopes, t = slope(*point), 1e-4
    for k, moved in enumerate((rng.normal(size=X.shape), rng.normal(size=Y.shape), da, db, np.asarray(0.3))):
        ends = [at(*(v + s * t * moved if j == k else v for j, v in enumerate(point))) for s in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * t)
        assert float(jnp.vdot(slopes[k], moved)) == pytest.approx(float(expected), abs=1e-6), k


@pytest.mark.slow
def test_one_support_takes_its_cost_thrice_and_others_are_named():
    line = (np.arange(4.0)[:, None] - np.arange(4.0)) ** 2
    a, b = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.1, 0.1, 0.1, 0.7])
    dense = pdopt.sinkhorn_divergence(line, a, b, epsilon=1.0, tolerance=1e-11)
    grid = pdopt.sinkhorn_divergence(pdopt.Grid((line,)), a, b, epsilon=1.0, tolerance=1e-11)
    points = np.arange(4.0)[:, None]
    named = pdopt.sinkhorn_divergence(
        square(points, points), a, b, epsilon=1.0, tolerance=1e-11, within=(line, pdopt.SqEuclidean(points, points))
    )
    np.testing.assert_allclose([grid.value, named.value], dense.value, atol=1e-11)
    with pytest.raises(InvalidProblem, match=r"cost has shape \(2, 3\); expected a square one"):
        pdopt.sinkhorn_divergence(np.ones((2, 3)), epsilon=1.0)


def test_the_first_status_that_is_not_optimal_is_reported():
    found = pdopt.sinkhorn_divergence(pdopt.SqEuclidean(X, Y), A, B, epsilon=0.01, tolerance=1e-12, max_iterations=2)
    assert found.reason is Status.ITERATION_LIMIT


def test_float32_is_zero_to_its_rounding():
    x = X.astype(np.float32)
    found = pdopt.sinkhorn_divergence(pdopt.SqEuclidean(x, x), epsilon=np.float32(0.5))
    assert found.value.dtype == jnp.float32
    # Three values of size 1, each rounded to 6e-8, after sums of 36 terms.
    assert abs(float(found.value)) < 1e-5


def test_the_symmetric_method_needs_a_square_cost():
    with pytest.raises(UnsupportedProblem, match="square"):
        pdopt.solve(pdopt.Transport(np.ones((2, 3)), regulariser=pdopt.Entropy(1.0)), SymmetricSinkhorn())
