"""The method of multipliers: the property that defines its step, its rate, its schedule, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.types import Status

RNG = np.random.default_rng(6)
M = RNG.standard_normal((7, 7))
Q, C, A, B = M @ M.T / 7 + 0.3 * np.eye(7), RNG.standard_normal(7), RNG.standard_normal((3, 7)), RNG.standard_normal(3)


def program(dtype: Any = np.float64, **changes: Any) -> pdopt.QuadraticProgram:
    return pdopt.QuadraticProgram(**{"Q": Q, "c": C, "A": A, "row_lower": B, "row_upper": B, **changes}, dtype=dtype)


@pytest.mark.parametrize("rho", [0.1, 1.0, 100.0])
@pytest.mark.slow
def test_the_minimiser_is_one_and_each_step_is_stationary_in_the_new_multipliers(rho: float) -> None:
    """`grad_x (f + penalty(y, v(x), rho)) = 0` at x', which is `grad f(x') - A'y' = 0` for the moved y'."""
    method = pdopt.AugmentedLagrangian(penalty=rho, growth=1.0)
    with jax.enable_x64(True):
        view = method.view(program())
        state = method.init(view, view.start())
        for _ in range(4):
            state, visit = method.step(view, state)
            slope = jax.grad(view.augmented)(visit.after.x, visit.before.y, rho)
            np.testing.assert_allclose(slope, 0, atol=1e-11 * (1 + rho))
            pair = view.back(visit.after)
            np.testing.assert_allclose(Q @ pair.x + C - A.T @ pair.y, 0, atol=1e-11 * (1 + rho))
            # The augmented Lagrangian has its closed form for equalities.
            broken = B - A @ pair.x
            y = view.back(visit.before).y
            plain = float(view.objective(pair.x) + y @ broken + rho / 2 * broken @ broken)
            assert abs(float(view.augmented(pair.x, visit.before.y, rho)) - plain) < 1e-11 * (1 + abs(plain))


@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0])
def test_the_rate_is_the_one_of_the_theory(rho: float) -> None:
    """`y - y*` shrinks by `1 / (1 + rho sigma)` for every eigenvalue sigma of A Q^-1 A'; the smallest one decides."""
    sigma = np.linalg.eigvalsh(A @ np.linalg.solve(Q, A.T))[0]
    S = A @ np.linalg.solve(Q, A.T)
    best = np.linalg.solve(S, B + A @ np.linalg.solve(Q, C))
    method = pdopt.AugmentedLagrangian(penalty=rho, growth=1.0)
    with jax.enable_x64(True):
        view = method.view(program())
        state = method.init(view, view.start())
        distance = np.linalg.norm(best)
        for _ in range(6):
            state, visit = method.step(view, state)
            now = np.linalg.norm(view.back(visit.after).y - best)
            assert now <= distance / (1 + rho * sigma) + 1e-12
            distance = now


def test_the_penalty_grows_where_the_violation_is_slow_and_stops_at_its_limit() -> None:
    slow = pdopt.AugmentedLagrangian(penalty=1e-3, growth=10.0, largest=100.0)
    with jax.enable_x64(True):
        view = slow.view(program())
        state = slow.init(view, view.start())
        penalties = []
        for _ in range(6):
            state, visit = slow.step(view, state)
            state = slow.check(view, state, visit)
            penalties.append(float(state.schedule.penalty))
    # The first check has nothing to compare with.
    np.testing.assert_allclose(penalties[:4], [1e-3, 1e-2, 1e-1, 1e-1], rtol=1e-12)
    assert max(penalties) <= 0.1 * (1 + 1e-12)
    fast = pdopt.AugmentedLagrangian(penalty=1e4)
    with jax.enable_x64(True):
        state = fast.init(view, view.start())
        for _ in range(2):
            state, visit = fast.step(view, state)
            state = fast.check(view, state, visit)
    assert float(state.schedule.penalty) == 1e4


def test_a_growing_penalty_takes_fewer_steps_than_a_fixed_one() -> None:
    first = 1e-2
    fixed = pdopt.solve(program(), pdopt.AugmentedLagrangian(penalty=first, growth=1.0))
    growing = pdopt.solve(program(), pdopt.AugmentedLagrangian(penalty=first))
    assert fixed.reason is growing.reason is Status.OPTIMAL
    assert int(growing.iterations) < int(fixed.iterations) / 5


def test_an_objective_that_the_rows_make_convex_enough_is_accepted() -> None:
    """Q = 0 in the directions that the rows fix; dual ascent refuses it."""
    flat = {"Q": np.diag([0.0, 1.0]), "c": [1.0, 1.0], "A": [[1.0, 0.0]], "row_lower": [2.0], "row_upper": [2.0]}
    problem = pdopt.QuadraticProgram(**flat, dtype=np.float64)
    with pytest.raises(UnsupportedProblem, match="AugmentedLagrangian needs only"):
        pdopt.solve(problem, pdopt.DualAscent())
    solution = pdopt.solve(problem, pdopt.AugmentedLagrangian())
    np.testing.assert_allclose(solution.x, [2, -1], atol=1e-5)
    np.testing.assert_allclose(solution.y, [1], atol=1e-5)


def test_what_is_missing_is_named() -> None:
    method = pdopt.AugmentedLagrangian()
    for changes, words in (
        ({"row_upper": B + np.array([0, 1, 0])}, r"row 1 is .* inequality rows is missing"),
        ({"row_lower": np.full(3, -np.inf)}, "row 0"),
        ({"lower": np.r_[np.full(6, -np.inf), 0.0]}, r"lower is 0 at index 6; .* within bounds is missing"),
        ({"upper": np.zeros(7)}, "upper is 0 at index 0"),
        ({"Q": np.zeros((7, 7))}, r"Q \+ A'A is singular"),
    ):
        for solver in (pdopt.solve, pdopt.run):
            with pytest.raises(UnsupportedProblem, match=words):
                solver(program(**changes), method)


def test_traced_inequalities_are_no_number_instead_of_a_wrong_answer() -> None:
    with jax.enable_x64(True):
        solve = lambda high: pdopt.solve(program(row_upper=high), pdopt.AugmentedLagrangian(), gradient="none")
        assert jax.jit(solve)(jnp.asarray(B + 1)).reason is Status.NUMERICAL_ERROR
        assert jax.jit(solve)(jnp.asarray(B)).reason is Status.OPTIMAL


def test_contradicting_rows_are_proved() -> None:
    rows = {"A": np.vstack([A, A[:1]]), "row_lower": np.r_[B, B[0] + 1], "row_upper": np.r_[B, B[0] + 1]}
    solution = pdopt.solve(program(**rows), pdopt.AugmentedLagrangian(), max_iterations=200)
    assert solution.reason is Status.PRIMAL_INFEASIBLE
    y = np.asarray(solution.certificate.ray.y)
    assert y @ rows["row_lower"] > 0
    np.testing.assert_allclose(rows["A"].T @ y, 0, atol=1e-7)


def test_dependent_but_consistent_rows_are_solved() -> None:
    rows = {"A": np.vstack([A, A[:1]]), "row_lower": np.r_[B, B[0]], "row_upper": np.r_[B, B[0]]}
    solution = pdopt.solve(program(**rows), pdopt.AugmentedLagrangian())
    plain = pdopt.solve(program(), pdopt.AugmentedLagrangian())
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(solution.x, plain.x, atol=1e-4)


def test_settings_are_checked() -> None:
    for settings in (
        {"penalty": 0.0},
        {"growth": 0.5},
        {"shrink": 0.0},
        {"shrink": 2.0},
        {"largest": 0.1},
        {"every": 1.5},
    ):
        with pytest.raises(InvalidOption, match=next(iter(settings))):
            pdopt.AugmentedLagrangian(**settings)
