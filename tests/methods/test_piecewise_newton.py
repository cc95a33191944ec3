"""Newton steps on the pieces of a quadratic program: against Clarabel and PDHG, in batches, statuses, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import nnls

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.methods.piecewise_newton import PiecewiseNewton, banded
from pdopt.solve import default_method
from pdopt.types import Status
from tests.test_quadratic_programs import by_clarabel, random_data

METHOD = pdopt.AugmentedLagrangian(inner=PiecewiseNewton())
COUNT = 12


@pytest.fixture(scope="module")
def batch():
    data = [random_data(seed) for seed in range(COUNT)]
    with jax.enable_x64(True):
        stacked = {name: jnp.stack([d[name] for d in data]) for name in data[0]}
        problems = jax.vmap(lambda d: pdopt.QuadraticProgram(**d))(stacked)
        solve = lambda qp: pdopt.solve(qp, METHOD, tolerance=1e-9, max_iterations=50, gradient="none")
        return data, problems, jax.jit(jax.vmap(solve))(problems)


def test_any_rows_and_bounds_have_clarabels_value(batch):
    data, _, found = batch
    assert [Status(int(s)) for s in found.status] == [Status.OPTIMAL] * COUNT
    expected = [by_clarabel(d) for d in data]
    np.testing.assert_allclose(found.objective, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_member_is_what_it_is_alone(batch):
    _, problems, found = batch
    with jax.enable_x64(True):
        for k in (0, 5):
            alone = jax.tree.map(lambda leaf, k=k: leaf[k], problems)
            one = pdopt.solve(alone, METHOD, tolerance=1e-9, max_iterations=50, gradient="none")
            np.testing.assert_allclose(found.x[k], one.x, atol=1e-7)


def chain(n, seed=0):
    """The nearest concave sequence to a noisy one: rows of second differences, ill-conditioned as n^4."""
    target = np.sin(np.linspace(0, 6, n)) + 0.1 * np.random.default_rng(seed).standard_normal(n)
    A = sp.csr_matrix(np.diff(np.eye(n), 2, axis=0))
    return pdopt.QuadraticProgram(np.ones(n), -target, A, np.full(n - 2, -np.inf), np.zeros(n - 2), dtype=jnp.float64)


def test_a_long_chain_takes_a_band_by_default_and_few_steps():
    with jax.enable_x64(True):
        qp = chain(600)
        method = default_method(qp)
        assert method.inner.plan is not None
        assert method.inner.plan.width == 16
        found = pdopt.solve(qp, tolerance=1e-8, max_iterations=40)
        assert found.status == Status.OPTIMAL
        assert int(found.iterations) <= 40
        assert float(qp.residuals(found.pair).error) <= 1e-8


def fourth_differences(n):
    """As LISWET: the nearest sequence whose fourth differences are positive. Its multipliers are 1e5 times y's start.

    Returns the program and its optimum, by nonnegative least squares in the coordinates where the rows are `u >= 0`.
    """
    target, D = np.sin(np.linspace(0, 6, n)) + 0.1 * np.sin(np.arange(n)), np.diff(np.eye(n), 4, axis=0)
    cubic, pieces = np.linalg.qr(np.vander(np.linspace(-1, 1, n), 4))[0], np.linalg.pinv(D)
    rest = nnls(np.hstack([cubic, -cubic, pieces / np.linalg.norm(pieces, axis=0)]), target, maxiter=100_000)[1]
    rows = np.zeros(n - 4), np.full(n - 4, np.inf)
    qp = pdopt.QuadraticProgram(np.ones(n), -target, sp.csr_matrix(D), *rows, dtype=jnp.float64)
    return qp, (rest**2 - target @ target) / 2


@pytest.mark.parametrize("n", [200, 400])
def test_small_residuals_are_not_believed_before_the_multipliers_have_settled(n):
    with jax.enable_x64(True):
        qp, optimum = fourth_differences(n)
        found = pdopt.solve(qp, tolerance=1e-4)
        early = pdopt.solve(qp, tolerance=1e-4, max_iterations=10)
        errors = [float(solution.residuals.error) for solution in (found, early)]
    assert found.status == Status.OPTIMAL
    assert float(found.objective) == pytest.approx(optimum, abs=1e-3 * (1 + abs(optimum)))
    assert max(errors) <= 1e-4
    # The residuals alone would have ended it at an objective that is further off.
    assert early.status == Status.ITERATION_LIMIT
    assert abs(float(early.objective) - optimum) > 1e-3 * (1 + abs(optimum))


def test_a_resumed_run_does_not_believe_them_either(tmp_path):
    with jax.enable_x64(True):
        qp, _ = fourth_differences(200)
        whole = pdopt.run(qp, tolerance=1e-4)
        first = pdopt.run(qp, tolerance=1e-4, max_iterations=10, checkpoint=tmp_path)
        assert float(first.residuals.error) <= 1e-4
        rest = pdopt.run(qp, tolerance=1e-4, checkpoint=tmp_path, resume=True)
    assert rest.status == whole.status == Status.OPTIMAL
    assert int(rest.iterations) == int(whole.iterations)
    np.testing.assert_array_equal(rest.x, whole.x)


def test_not_the_default_without_a_band_or_curvature():
    full = pdopt.QuadraticProgram(np.eye(3), np.ones(3), np.ones((1, 3)), [1.0], [1.0], dtype=jnp.float32)
    assert banded(full) is None
    assert isinstance(default_method(full), pdopt.PDHG)
    with jax.enable_x64(True):
        flat = chain(600).replace(Q=pdopt.QuadraticProgram(np.r_[np.ones(9), np.zeros(591)], np.ones(600),
                                   chain(600).A, -np.ones(598), np.ones(598), dtype=jnp.float64).Q)  # fmt: skip
        assert banded(flat) is None
        seen = []
        jax.make_jaxpr(lambda qp: seen.append(banded(qp)))(chain(600))
    assert seen == [None]


@pytest.mark.slow
def test_infeasible_rows_are_certified():
    with jax.enable_x64(True):
        qp = pdopt.QuadraticProgram([1.0, 1.0], [0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]], [2.0, -np.inf], [np.inf, 1.0],
                                    dtype=jnp.float64)  # fmt: skip
        found = pdopt.solve(qp, METHOD, max_iterations=100)
    assert found.status == Status.PRIMAL_INFEASIBLE


@pytest.mark.slow
def test_float32_and_a_maximisation():
    qp = pdopt.QuadraticProgram([-2.0, -2.0], [0.0, 9.0], [[1.0, 1.0]], [1.0], [2.0], [0.0, 0.0], maximise=True,
                                dtype=jnp.float32)  # fmt: skip
    found = pdopt.solve(qp, METHOD, tolerance=1e-4)
    assert found.status == Status.OPTIMAL
    np.testing.assert_allclose(found.x, [0, 2], atol=1e-3)


def test_refusals():
    with pytest.raises(InvalidOption, match="budget"):
        PiecewiseNewton(budget=0)
    lp = pdopt.LinearProgram([1.0], [[1.0]], [1.0], [2.0], dtype=jnp.float32)
    with pytest.raises(UnsupportedProblem, match="LinearProgram has no piecewise quadratic view"):
        pdopt.solve(lp, METHOD)
    with jax.enable_x64(True):
        with pytest.raises(UnsupportedProblem, match=r"4000 variables and PiecewiseNewton no plan.*planned"):
            pdopt.solve(chain(4000), METHOD)
        other = pdopt.AugmentedLagrangian(inner=PiecewiseNewton.planned(chain(3000)))
        with pytest.raises(UnsupportedProblem, match="plan is for 3000 variables; the program has 4000"):
            pdopt.solve(chain(4000), other)
