"""Bilevel programs: the natural map, hypergradients and the certificate against a slow twin; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.geometry.sets import Box
from pdopt.problems.bilevel import Levels, Multipliers
from pdopt.problems.natural_map import newton, solve_jacobian
from pdopt.types import Pair
from tests.problems import bilevel_family as family

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("seed", range(8))
def test_hypergradient_is_the_slope_of_the_slow_twin(seed):
    data = family.draw(seed)
    x = np.random.default_rng(seed).standard_normal(2)
    found = pdopt.hypergradient(family.program(data), x)
    y, lam, mu = family.answer(data, x)
    assert float(found.residual) < 1e-9
    assert not found.degenerate
    np.testing.assert_allclose(found.lower.x, y, atol=1e-8)
    np.testing.assert_allclose(found.lower.y.equality, lam, atol=1e-8)
    np.testing.assert_allclose(found.lower.y.inequality, mu, atol=1e-8)
    np.testing.assert_allclose(found.value, family.value(data, x), atol=1e-8)
    np.testing.assert_allclose(found.gradient, family.slope(lambda p: family.value(data, p), x), atol=1e-6)


def test_every_active_set_was_met_above():
    counts = [
        np.sum(family.answer(family.draw(s), np.random.default_rng(s).standard_normal(2))[2] > 0) for s in range(8)
    ]
    assert {0, 1} <= set(counts)


def test_a_tight_row_without_a_multiplier_is_reported():
    data = family.draw(0)
    x = np.zeros(2)
    data["e"] = data["e"] + 100
    y = family.answer(data, x)[0]
    data["e"][0] = data["D"][0] @ y  # tight by itself
    assert bool(pdopt.hypergradient(family.program(data), x).degenerate)


def test_lower_solution_has_a_derivative_in_x_and_in_the_data():
    data = family.draw(3)
    x = np.random.default_rng(3).standard_normal(2)
    program = family.program(data)

    def score(x, args):
        w = pdopt.lower_solution(program.replace(args=args, check=False), x)
        return jnp.sum(w.x**2) + jnp.sum(w.y.inequality)

    def twin(x, data):
        y, _, mu = family.answer(data, x)
        return np.sum(y**2) + np.sum(mu)

    by_x, (by_data,) = jax.jit(jax.grad(score, argnums=(0, 1)))(jnp.asarray(x), program.args)
    np.testing.assert_allclose(by_x, family.slope(lambda p: twin(p, data), x), atol=1e-6)
    for name in ("e", "a"):
        expected = family.slope(lambda p: twin(x, {**data, name: p}), data[name])  # noqa: B023
        np.testing.assert_allclose(by_data[name], expected, atol=1e-6)


@pytest.mark.slow
def test_the_certificate_vanishes_exactly_at_a_solution():
    data = family.draw(1)
    program = family.program(data)
    solution = pdopt.polish_bilevel(program, program.first())
    assert solution.reason.converged
    x = np.asarray(solution.x.upper)
    assert np.abs(family.slope(lambda p: family.value(data, p), x)).max() < 1e-6
    assert abs(float(solution.dual_objective - solution.objective)) < 1e-9
    y, lam, mu = family.answer(data, x + 0.1)
    away = program.optimality(Pair(Levels(jnp.asarray(x + 0.1), jnp.asarray(y)), Multipliers(jnp.asarray(lam), mu)))
    assert float(away.residuals.primal) < 1e-9
    assert float(away.residuals.dual) > 1e-3  # the lower level is solved, the upper is not


@pytest.mark.slow
def test_the_objective_has_the_derivative_of_the_optimal_value():
    data = {name: jnp.asarray(v) for name, v in family.draw(1).items()}
    program = family.program(data).replace(X=Box(jnp.full(2, -0.1), jnp.full(2, 0.1)))
    best = pdopt.polish_bilevel(program, program.first())
    assert best.reason.converged
    assert float(jnp.max(jnp.abs(best.x.upper))) > 0.0999  # a bound of X holds

    def through(s, upper):
        changed = program.replace(args=({**data, "s": s},), X=Box(jnp.full(2, -0.1), upper), check=False)
        return pdopt.solve(changed, pdopt.ImplicitGradient(), start=best, tolerance=1e-6).objective

    by_s, by_upper = jax.grad(through, argnums=(0, 1))(data["s"], program.X.upper)

    def value(s, upper):
        changed = program.replace(args=({**data, "s": jnp.asarray(s)},), X=Box(jnp.full(2, -0.1), jnp.asarray(upper)))
        return float(pdopt.polish_bilevel(changed, best).objective)

    s, top = np.asarray(data["s"]), np.full(2, 0.1)
    np.testing.assert_allclose(by_s, family.slope(lambda p: value(p, top), s, 1e-4), atol=1e-5)
    np.testing.assert_allclose(by_upper, family.slope(lambda p: value(s, p), top, 1e-4), atol=1e-5)


def test_newton_and_the_linear_solves():
    rng = np.random.default_rng(0)
    M, right = rng.standard_normal((5, 5)) + 4 * np.eye(5), jnp.asarray(rng.standard_normal(5))
    function = lambda v: jnp.asarray(M) @ v
    np.testing.assert_allclose(solve_jacobian(function, right, right), np.linalg.solve(M, right), rtol=1e-10)
    transposed = solve_jacobian(function, right, right, transpose=True)
    np.testing.assert_allclose(transposed, np.linalg.solve(M.T, right), rtol=1e-10)
    # min |v - 2|^2/2 with v <= 1 and v >= 0, as a natural map
    root = newton(lambda v: v - jnp.clip(v - (v - 2), 0, 1), jnp.zeros(3))
    np.testing.assert_allclose(root.point, 1.0)


def test_large_systems_are_solved_without_a_matrix(monkeypatch):
    monkeypatch.setattr("pdopt.problems.natural_map.DENSE", 2)
    rng = np.random.default_rng(0)
    M, right = rng.standard_normal((4, 4)) + 4 * np.eye(4), jnp.asarray(rng.standard_normal(4))
    for transpose, matrix in ((False, M), (True, M.T)):
        found = solve_jacobian(lambda v: jnp.asarray(M) @ v, right, right, transpose=transpose)
        np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-8)


SCALAR = lambda x, y: x * y
GOOD = {"upper": SCALAR, "lower": SCALAR, "start": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"upper": 3}, InvalidOption, "upper is 3"),
        ({"inequality": 3}, InvalidOption, "inequality is 3"),
        ({"X": 3}, InvalidOption, "X is 3"),
        ({"args": 3}, InvalidOption, "args has type int"),
        ({"start": 0.0}, InvalidProblem, "start is float"),
        ({"start": (np.nan, 0.0)}, InvalidProblem, "start has 1 NaN"),
        ({"lower": lambda x, y: jnp.stack([x, y])}, InvalidProblem, "lower returns arrays of shapes"),
        ({"inequality": lambda x, y: jnp.int32(1)}, InvalidProblem, "inequality returns int32"),
        ({"project": lambda x, y: (jnp.stack([x, x]), y)}, InvalidProblem, "project returns"),
    ],
)
def test_wrong_programs_are_refused(changes, error, match):
    with pytest.raises(error, match=match):
        pdopt.BilevelProgram(**{**GOOD, **changes})


def test_wrong_points_are_refused():
    program = family.program(family.draw(0))
    with pytest.raises(InvalidProblem, match=r"x has shape \(3,\); expected \(2,\)"):
        pdopt.hypergradient(program, np.zeros(3))
    with pytest.raises(InvalidOption, match="tolerance is 0"):
        pdopt.hypergradient(program, np.zeros(2), tolerance=0.0)
    with pytest.raises(InvalidProblem, match=r"start.y has shape \(1,\); expected \(2,\)"):
        pdopt.polish_bilevel(program, program.first()._replace(y=Multipliers(np.zeros(()), np.zeros(1))))
    with pytest.raises(InvalidOption, match="steps is 0"):
        pdopt.polish_bilevel(program, program.first(), steps=0)
