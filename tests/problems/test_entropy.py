"""Entropic transport as a problem: marginals, objectives and gap against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.problems.costs import DenseCost, strided_sum, three_sum
from pdopt.problems.couplings import Marginals, Potentials
from pdopt.problems.entropy import Entropy, entropic_marginals
from pdopt.problems.grid_cost import Grid
from pdopt.problems.transport import Transport
from pdopt.types import Pair, Status

EPSILON = 0.3


def data(seed=0, n=7, m=5):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.5, 1, n), rng.uniform(0.5, 1, m)
    a[2] = b[1] = 0.0
    f, g = rng.uniform(0, 0.5, n), rng.uniform(0, 0.5, m)
    return rng.uniform(0, 1, (n, m)), a / a.sum(), b / b.sum(), f * (a > 0), g * (b > 0)


def plan(C, a, b, f, g):
    return a[:, None] * b * np.exp((f[:, None] + g - C) / EPSILON)


def kl(p, q):
    there = p > 0
    return np.sum(p[there] * np.log(p[there] / q[there])) - p.sum() + q.sum()


@pytest.mark.parametrize(("dtype", "accuracy"), [(np.float64, 1e-13), (np.float32, 3e-6)])
def test_marginals_and_plan_are_those_of_the_formula(dtype, accuracy):
    C, a, b, f, g = data()
    with jax.enable_x64(dtype == np.float64):
        problem = Transport(C, a, b, Entropy(EPSILON), dtype=dtype)
        y = Potentials(jnp.asarray(f, dtype), jnp.asarray(g, dtype))
        T = plan(C, a, b, f, g)
        found = entropic_marginals(problem, y)
        np.testing.assert_allclose(found.row, T.sum(1), atol=accuracy)
        np.testing.assert_allclose(found.column, T.sum(0), atol=accuracy)
        shown = problem.shown(problem.inside(Pair(None, y)))
        v, u = np.linspace(0, 1, 5), np.linspace(1, 2, 7)
        np.testing.assert_allclose(shown.x.todense(), T, atol=accuracy)
        np.testing.assert_allclose(shown.x.matvec(jnp.asarray(v, dtype)), T @ v, atol=accuracy)
        np.testing.assert_allclose(shown.x.rmatvec(jnp.asarray(u, dtype)), u @ T, atol=accuracy)


@pytest.mark.parametrize("rho", [(np.inf, np.inf), (0.5, np.inf), (0.5, 2.0)])
def test_objectives_are_those_of_the_definition(rho):
    """Primal: cost, entropy and penalties of the plan; dual: their conjugates; the gap is what is between them."""
    C, a, b, f, g = data()
    with jax.enable_x64(True):
        problem = Transport(C, a, b, Entropy(EPSILON), unbalanced=rho, dtype=np.float64)
        y = Potentials(jnp.asarray(f), jnp.asarray(g))
        found = problem.optimality(problem.shown(problem.inside(Pair(None, y))))
    T = plan(C, a, b, f, g)
    primal = (C * T).sum() + EPSILON * kl(T, np.outer(a, b))
    dual = -EPSILON * (T.sum() - 1)
    error = 0.0
    for marginal, mass, potential, weight in ((T.sum(1), a, f, rho[0]), (T.sum(0), b, g, rho[1])):
        if np.isinf(weight):
            dual += potential @ mass
            error += np.abs(marginal - mass).sum()
        else:
            primal += weight * kl(marginal, mass)
            dual += weight * (mass @ (1 - np.exp(-potential / weight)))
            error += np.abs(marginal - mass * np.exp(-potential / weight)).sum()
    np.testing.assert_allclose(found.objective, primal, rtol=1e-12)
    np.testing.assert_allclose(found.dual_objective, dual, rtol=1e-12)
    np.testing.assert_allclose(found.residuals.primal_absolute, error, rtol=1e-12)
    np.testing.assert_allclose(found.residuals.gap_absolute, abs(primal - dual), rtol=1e-9)
    assert found.residuals.gap <= found.residuals.primal or np.isfinite(min(rho))


def test_carried_marginals_are_taken_at_their_word_and_audited_at_the_end():
    C, a, b, f, g = data()
    problem = Transport(C, a, b, Entropy(EPSILON), dtype=np.float32)
    y = Potentials(jnp.asarray(f, np.float32), jnp.asarray(g, np.float32))
    believed = Pair(Marginals(problem.a, problem.b), y)
    judged = problem.optimality(believed)
    assert judged.residuals.primal < 1e-6  # what rounding may add
    found, status = problem.audited(believed, judged, jnp.int32(int(Status.OPTIMAL)), 1e-4)
    T = plan(C, a, b, f, g)
    error = np.abs(T.sum(1) - a).sum() + np.abs(T.sum(0) - b).sum()
    np.testing.assert_allclose(found.residuals.primal, error, rtol=1e-5)
    assert int(status) == Status.PRECISION_LIMIT
    assert int(problem.audited(believed, judged, jnp.int32(int(Status.OPTIMAL)), 2 * error)[1]) == Status.OPTIMAL


def test_float32_judges_its_own_potentials_accurately():
    """f + g - C cancels to a few epsilon: plain float32 would miss by `eps_mach C / epsilon`, about 1e-4 of a row."""
    rng = np.random.default_rng(3)
    n, epsilon = 200, np.float32(1e-3)
    f, g = (rng.uniform(0, 1, n).astype(np.float32) for _ in range(2))
    C = f[:, None] + g - np.float32(epsilon) * rng.uniform(-3, 3, (n, n)).astype(np.float32)
    exact = np.exp((f[:, None].astype(float) + g - C.astype(float)) / float(epsilon)).mean(1)
    with jax.enable_x64(False):
        found = DenseCost(jnp.asarray(C)).log_rows(jnp.asarray(f), jnp.asarray(g), jnp.full(n, -np.log(n)), epsilon)
    np.testing.assert_allclose(np.exp(np.asarray(found, float)), exact, rtol=2e-6)


def test_sums_are_accurate():
    assert float(three_sum(jnp.float32(1e8), jnp.float32(3.25), jnp.float32(-1e8))) == 3.25
    x = np.random.default_rng(0).uniform(0, 1, (2, 1000)).astype(np.float32)
    np.testing.assert_allclose(strided_sum(jnp.asarray(x)), x.astype(float).sum(1), rtol=3e-7)
    np.testing.assert_allclose(strided_sum(jnp.asarray(x[:, :10])), x[:, :10].astype(float).sum(1), rtol=3e-7)


@pytest.mark.slow
def test_a_grid_and_its_matrix_agree():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        grid = Grid((jnp.asarray(rng.uniform(0, 1, (3, 2))), jnp.asarray(rng.uniform(0, 1, (2, 4)))))
        dense = DenseCost(grid.todense())
        f, g, b = (jnp.asarray(rng.uniform(0, 1, size)) for size in (6, 8, 8))
        for verb, third in (("log_rows", jnp.log(b)), ("sum_rows", b)):
            values = [getattr(cost, verb)(f, g, third, 0.1) for cost in (grid, dense)]
            np.testing.assert_allclose(*values, rtol=1e-12)
        assert float(dense.spread()) > 0
        assert 0 < float(grid.spread()) < 2 * float(dense.spread())


def test_epsilon_must_be_positive():
    with pytest.raises(InvalidOption, match="epsilon"):
        Entropy(0.0)
