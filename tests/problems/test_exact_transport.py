"""Exact transport end to end, against HiGHS and SciPy: feasible plans, true bounds, derivatives, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment, linprog

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.problems.exact_transport import c_transform
from pdopt.solve import _solve, checked_options, default_method
from pdopt.types import Pair, Status

METHODS = {
    "default": pdopt.PDHG.transport(),
    "average spectrum": pdopt.AverageSpectrum(),
    "halpern": pdopt.PDHG(metric="scalar"),
}


def instance(seed, n, m, zeros=0):
    """Uniform costs, uneven masses, the first ones of both sides zero."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.2, 1, n), rng.uniform(0.2, 1, m)
    a[:zeros], b[:zeros] = 0, 0
    return rng.uniform(0, 1, (n, m)), a / a.sum(), b / b.sum()


def by_highs(C, a, b):
    n, m = C.shape
    rows = sp.vstack([sp.kron(sp.eye(n), np.ones((1, m))), sp.kron(np.ones((1, n)), sp.eye(m))])
    found = linprog(C.ravel(), A_eq=rows, b_eq=np.r_[a, b], bounds=(0, None), method="highs")
    assert found.status == 0
    return found.fun


def proved(solution, C, a, b, value, tolerance, wide):
    """The plan is feasible, the potentials are, and the two objectives enclose the optimum."""
    plan = np.asarray(solution.x.todense(), np.float64)
    f, g = (np.asarray(v, np.float64) for v in solution.y)
    eps = 1e-12 if wide else 1e-6
    assert plan.min() >= 0
    assert np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum() <= eps
    rounding = 10 * np.finfo(np.float64 if wide else np.float32).eps
    assert (f[:, None] + g - C).max() <= rounding
    assert f @ a + g @ b <= value + rounding
    assert (C * plan).sum() >= value - rounding
    np.testing.assert_allclose(float(solution.objective), (C * plan).sum(), rtol=10 * rounding)
    assert abs(float(solution.objective) - value) <= 1.01 * tolerance * abs(value) + rounding
    assert solution.reason is Status.OPTIMAL


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_uneven_masses_with_zeros_against_highs(name, wide):
    C, a, b = instance(0, 14, 9, zeros=2)
    dtype, tolerance = (np.float64, 1e-7) if wide else (np.float32, 1e-4)
    problem = pdopt.Transport(C, a, b, dtype=dtype)
    solution = pdopt.solve(problem, METHODS[name], tolerance=tolerance, gradient="none")
    proved(solution, C, a, b, by_highs(C, a, b), tolerance, wide)


@pytest.mark.parametrize("metric", ["scalar", "deflated", "douglas_rachford"])
@pytest.mark.parametrize("kind", ["lean", "average spectrum"])
@pytest.mark.slow
def test_metrics_reach_one_optimum(metric, kind):
    C = np.random.default_rng(5).uniform(0, 1, (20, 20)).astype(np.float32)
    method = pdopt.PDHG.lean(metric=metric) if kind == "lean" else pdopt.AverageSpectrum(metric=metric)
    solution = pdopt.solve(pdopt.Transport(C), method, gradient="none")
    rows, columns = linear_sum_assignment(C)
    assert bool(solution.certificate.integral)
    np.testing.assert_array_equal(solution.certificate.permutation, columns)
    proved(solution, C, np.full(20, 0.05), np.full(20, 0.05), C[rows, columns].sum() / 20, 1e-4, False)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1)])
def test_one_source_or_target(shape):
    C = np.random.default_rng(1).uniform(1, 2, shape).astype(np.float32)
    solution = pdopt.solve(pdopt.Transport(C), gradient="none")
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(float(solution.objective), C.mean(), rtol=1e-6)


def test_a_cost_of_zeros():
    solution = pdopt.solve(pdopt.Transport(np.zeros((4, 3), np.float32)), gradient="none")
    assert solution.reason is Status.OPTIMAL
    assert float(solution.objective) == 0.0


@pytest.mark.slow
def test_streamed_cost_equals_the_stored_one():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(14, 2)), rng.normal(size=(9, 2))
    C = ((x[:, None] - y) ** 2).sum(-1)
    with jax.enable_x64(True):
        points = pdopt.SqEuclidean(jnp.asarray(x), jnp.asarray(y))
    solution = pdopt.solve(pdopt.Transport(points, dtype=np.float64), tolerance=1e-7, gradient="none")
    a, b = np.full(14, 1 / 14), np.full(9, 1 / 9)
    value = by_highs(C, a, b)
    np.testing.assert_allclose(float(solution.objective), value, rtol=2e-7)


def test_run_equals_solve_and_a_warm_start_takes_no_step():
    C, a, b = instance(0, 14, 9, zeros=2)
    problem = pdopt.Transport(C.astype(np.float32), a.astype(np.float32), b.astype(np.float32))
    solved = pdopt.solve(problem, gradient="none")
    driven = pdopt.run(problem)
    for one, other in zip(jax.tree.leaves(solved.pair), jax.tree.leaves(driven.pair)):
        np.testing.assert_array_equal(one, other)
    assert int(solved.iterations) == int(driven.iterations) > 0
    again = pdopt.solve(problem, start=solved, tolerance=2e-4, gradient="none")
    assert int(again.iterations) == 0
    np.testing.assert_allclose(again.x.todense(), solved.x.todense(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(float(again.objective), float(solved.objective), rtol=1e-5)


@pytest.mark.slow
def test_vmap_equals_the_loop():
    made = [instance(seed, 14, 9, zeros=2) for seed in (0, 1, 2)]
    single = [pdopt.Transport(*(v.astype(np.float32) for v in data)) for data in made]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    together = jax.vmap(lambda p: pdopt.solve(p, gradient="none"))(batch)
    for k, problem in enumerate(single):
        alone = pdopt.solve(problem, gradient="none")
        assert int(together.status[k]) == Status.OPTIMAL
        np.testing.assert_allclose(float(together.objective[k]), float(alone.objective), rtol=2e-4)
        plan = np.asarray(jax.tree.leaves(together.x)[0][k], np.float64)
        assert np.abs(plan.sum(1) - made[k][1]).sum() + np.abs(plan.sum(0) - made[k][2]).sum() <= 1e-6


def test_the_value_has_the_derivatives_of_the_envelope():
    C, a, b = instance(3, 8, 6)
    with jax.enable_x64(True):

        def value(C, a, b):
            return pdopt.solve(pdopt.Transport(C, a, b), tolerance=1e-10).objective

        args = tuple(jnp.asarray(v) for v in (C, a, b))
        slopes = jax.grad(value, argnums=(0, 1, 2))(*args)
    rng = np.random.default_rng(4)
    directions = [rng.normal(size=v.shape) for v in (C, a, b)]
    directions[1] -= directions[1].mean()
    directions[2] -= directions[2].mean()
    h = 1e-5  # the value is piecewise linear in each: differences are exact while the vertex stays
    for k, d in enumerate(directions):
        moved = [[v + s * h * d if i == k else v for i, v in enumerate((C, a, b))] for s in (1, -1)]
        difference = (by_highs(*moved[0]) - by_highs(*moved[1])) / (2 * h)
        np.testing.assert_allclose(np.vdot(slopes[k], d), difference, rtol=1e-6, atol=1e-7)


def test_c_transform_is_feasible_and_never_lowers_the_bound():
    C, a, b = instance(6, 14, 9)
    f = np.random.default_rng(0).normal(size=14)
    with jax.enable_x64(True):
        y = c_transform(pdopt.Transport(C, a, b, dtype=np.float64).cost, jnp.asarray(f))
    g = (C - f[:, None]).min(0)
    np.testing.assert_allclose(y.g, g, atol=1e-14)
    assert np.asarray(y.f) @ a >= f @ a - 1e-12
    assert (np.asarray(y.f)[:, None] + np.asarray(y.g) - C).max() <= 1e-14


@pytest.mark.parametrize(
    ("method", "most"),
    [(None, 4), (pdopt.PDHG.lean(), 3), (pdopt.AverageSpectrum(), 3)],
    ids=["default", "lean", "average spectrum"],
)
@pytest.mark.slow
def test_few_arrays_of_the_size_of_the_cost(method, most):
    """Arguments, results and temporaries of the whole compiled solve: C, the plan, one being made, an anchor."""
    n = 2000
    C = jnp.zeros((n, n), jnp.float32)
    problem = pdopt.Transport(C)
    options = checked_options(problem, 1e-4, 1000, "implicit", 0)
    method = default_method(problem) if method is None else method
    compiled = _solve.plain.lower(problem, method, None, *options, "implicit", 0).compile()
    sizes = compiled.memory_analysis()
    if sizes is None:
        pytest.skip("this backend reports no memory analysis")
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    assert (total - sizes.alias_size_in_bytes) / (4 * n * n) <= most + 0.15


def test_what_has_no_saddle_is_refused():
    C = np.ones((2, 2), np.float32)
    with pytest.raises(UnsupportedProblem, match="no saddle view"):
        pdopt.solve(pdopt.Transport(C, regulariser=pdopt.Entropy(0.1)), pdopt.AverageSpectrum())
    with pytest.raises(UnsupportedProblem, match="both marginals"):
        pdopt.solve(pdopt.Transport(C, unbalanced=(1.0, np.inf)))
    with pytest.raises(InvalidOption, match="metric"):
        pdopt.solve(pdopt.Transport(C), pdopt.AverageSpectrum(metric="deflate"))
    lp = pdopt.LinearProgram([1.0], [[1.0]], [1.0], [1.0], [0.0], dtype=np.float32)
    with pytest.raises(UnsupportedProblem, match="scalar one only"):
        pdopt.solve(lp, pdopt.PDHG(metric="deflated"))


def test_a_start_gives_its_plan():
    problem = pdopt.Transport(np.ones((2, 2), np.float32))
    zeros = np.zeros(2, np.float32)
    start = Pair(np.full((2, 2), 0.25, np.float32), (zeros, zeros))
    assert int(pdopt.solve(problem, start=start).iterations) == 0
