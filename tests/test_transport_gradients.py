"""Gradients through `solve` of an entropic transport problem: value, potentials and plan, in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.types import Status


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 2)), RNG.normal(size=(5, 2))
A, B = np.array([0.2, 0.0, 0.3, 0.1, 0.25, 0.15]), np.array([0.3, 0.1, 0.0, 0.4, 0.2])
EPSILON = 0.5


def solved(x, y=Y, a=A, b=B, epsilon=EPSILON, unbalanced=(np.inf, np.inf), **options):
    options = {"tolerance": 1e-13, "max_iterations": 20_000} | options
    problem = pdopt.Transport(
        pdopt.SqEuclidean(x, y), a, b, pdopt.Entropy(epsilon), unbalanced, check=False, dtype=jnp.result_type(x)
    )
    return pdopt.solve(problem, **options)


def objective(x, y, a, b, epsilon):
    return solved(x, y, a, b, epsilon).objective


def plan_loss(x, y, a, b, epsilon):
    plan = solved(x, y, a, b, epsilon).x
    return jnp.sum(plan.todense() ** 2) + jnp.sum(plan.matvec(y[:, 0]) * x[:, 1])


POINT = (X, Y, A, B, np.asarray(EPSILON))


def moves():
    rng = np.random.default_rng(1)
    da, db = (np.where(m > 0, rng.normal(size=m.shape), 0) * 0.1 for m in (A, B))
    da[A > 0] -= da.sum() / (A > 0).sum()
    db[B > 0] -= db.sum() / (B > 0).sum()
    return rng.normal(size=X.shape), rng.normal(size=Y.shape), da, db, 0.3


@pytest.mark.parametrize("loss", [objective, plan_loss])
def test_gradients_through_solve_equal_finite_differences(loss):
    at = jax.jit(loss)
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(*POINT)
    for k, moved in enumerate(moves()):
        t = 1e-4
        ends = [at(*(v + s * t * moved if j == k else v for j, v in enumerate(POINT))) for s in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * t)
        assert float(jnp.vdot(slopes[k], moved)) == pytest.approx(float(expected), abs=1e-6), k


@pytest.mark.slow
def test_second_derivatives_of_the_value_follow_from_the_potentials():
    of_x = lambda x: objective(x, *POINT[1:])
    v = jnp.asarray(moves()[0])
    forward = jax.jit(lambda x: jax.jvp(jax.grad(of_x), (x,), (v,))[1])(POINT[0])
    backward = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(of_x)(x), v)))(POINT[0])
    slope = jax.jit(jax.grad(of_x))
    t = 1e-4
    np.testing.assert_allclose(forward, (slope(X + t * v) - slope(X - t * v)) / (2 * t), atol=1e-6)
    np.testing.assert_allclose(forward, backward, atol=1e-12)


def test_batched_gradients_equal_the_loop_and_forward_equals_backward():
    slope = lambda x: jax.grad(lambda x: plan_loss(x, *POINT[1:]))(x)
    many = np.stack([X, 0.5 * X, X + 1])
    batch = jax.jit(jax.vmap(slope))(many)
    one = jax.jit(slope)
    for k in range(3):
        np.testing.assert_allclose(batch[k], one(many[k]), atol=1e-10)
    forward = jax.jit(jax.jacfwd(lambda x: plan_loss(x, *POINT[1:])))(POINT[0])
    np.testing.assert_allclose(forward, batch[0], atol=1e-12)


@pytest.mark.slow
def test_unbalanced_weights_have_a_slope():
    at = jax.jit(lambda rho: solved(X, unbalanced=(rho, 2 * rho)).objective)
    rho, t = jnp.asarray(0.8), 1e-4
    expected = (at(rho + t) - at(rho - t)) / (2 * t)
    assert float(jax.grad(lambda r: solved(X, unbalanced=(r, 2 * r)).objective)(rho)) == pytest.approx(
        float(expected), abs=1e-7
    )


@pytest.mark.slow
def test_the_weight_of_one_side_alone_moves_the_potentials():
    of = jax.jit(lambda rho: jnp.sum(solved(X, unbalanced=(rho, np.inf)).x.todense() ** 2))
    rho, t = jnp.asarray(0.8), 1e-4
    expected = (of(rho + t) - of(rho - t)) / (2 * t)
    assert float(jax.grad(of)(rho)) == pytest.approx(float(expected), abs=1e-7)


def test_gradient_none_gives_constants():
    loss = lambda x: (s := solved(x, gradient="none")).objective + jnp.sum(s.y.f) + jnp.sum(s.x.todense())
    assert not jnp.any(jax.grad(loss)(POINT[0]))


@pytest.mark.slow
def test_float32_gradients_are_near():
    x = X.astype(np.float32)
    slope = jax.grad(lambda x: solved(x, tolerance=1e-5).objective)(x)
    exact = jax.grad(lambda x: objective(x, *POINT[1:]))(POINT[0])
    assert slope.dtype == jnp.float32
    # A marginal error of 1e-5 moves the plan, and so the slope in points of size 1, by about as much.
    np.testing.assert_allclose(slope, exact, atol=1e-4)


def test_one_program_serves_every_number_of_iterations():
    """The backward pass knows nothing of iterations: their limit is data, so memory cannot depend on it."""
    slope = jax.jit(jax.grad(lambda x, limit: solved(x, max_iterations=limit).objective))
    slope(POINT[0], jnp.int32(10))
    slope(POINT[0], jnp.int32(1000))
    assert slope._cache_size() == 1


def test_an_unregularised_problem_has_no_rule_for_its_pair():
    problem = pdopt.Transport(np.ones((2, 2)))
    assert problem.differentiated(None) is None


def test_the_slope_at_an_empty_bin_is_one_sided():
    at = jax.jit(lambda a: objective(*POINT[:2], a, *POINT[3:]))
    slopes = jax.grad(at)(POINT[2])
    moved = np.array([-1.0, 1.0, 0, 0, 0, 0])  # mass into the empty bin
    t = 1e-6
    # The value is analytic in the masses for a > 0 and continuous at 0; this quotient errs by t times a curvature.
    expected = (at(A + t * moved) - at(A)) / t
    assert float(jnp.vdot(slopes, moved)) == pytest.approx(float(expected), abs=1e-4)


def test_status_is_that_of_the_solve():
    assert solved(X).reason is Status.OPTIMAL
