"""Dual ascent: its step rule, its monotonicity, what it refuses and how it reports what it cannot know before."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.rules.acceleration import Averaged, Halpern, Relaxed
from pdopt.types import Status

RNG = np.random.default_rng(5)
M = RNG.standard_normal((6, 6))
Q, C, A = M @ M.T / 6 + np.eye(6), RNG.standard_normal(6), RNG.standard_normal((3, 6))
B = A @ RNG.uniform(-0.4, 0.4, 6)
EVERYTHING = {"lower": np.full(6, -0.5), "upper": np.r_[np.full(5, 0.5), np.inf]}


def program(dtype: Any = np.float64, **changes: Any) -> pdopt.QuadraticProgram:
    data = {"Q": Q, "c": C, "A": A, "row_lower": B - 0.05, "row_upper": B + 0.05, **EVERYTHING, **changes}
    return pdopt.QuadraticProgram(**data, dtype=dtype)


def test_the_default_step_is_one_over_the_duals_constant() -> None:
    """`L = |R Q^-1 R'|_2` with R the rows and the bounded variables, here computed the long way."""
    rows = np.vstack([A, np.eye(6)])
    L = np.linalg.norm(rows @ np.linalg.inv(Q) @ rows.T, 2)
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        problem = program(dtype)
        with jax.enable_x64(True):
            method = pdopt.DualAscent()
            view = method.view(problem)
            state = method.init(view, view.start())
            assert state.step.dtype == dtype
            np.testing.assert_allclose(state.step, 1 / L, rtol=rtol)


def test_a_program_without_rows_or_bounds_is_solved_at_once() -> None:
    free = program(A=np.zeros((0, 6)), row_lower=[], row_upper=[], lower=None, upper=None)
    solution = pdopt.solve(free, pdopt.DualAscent(every=1))
    assert int(solution.iterations) == 1
    np.testing.assert_allclose(solution.x, np.linalg.solve(Q, -C), atol=1e-12)


@pytest.mark.parametrize("share", [0.5, 1.0, 1.9])
def test_steps_below_two_over_L_converge_and_those_up_to_one_never_lower_the_dual(share: float) -> None:
    problem = program()
    with jax.enable_x64(True):
        view = pdopt.DualAscent().view(problem)
        method = pdopt.DualAscent(stepsize=share / float(view.smoothness()), every=1)
        solution = pdopt.solve(problem, method, max_iterations=5000, history=600)
        assert solution.reason is Status.OPTIMAL
        if share <= 1:
            state = method.init(view, view.start())
            values = []
            for _ in range(40):
                state, visit = method.step(view, state)
                # The Lagrangian at its own minimiser is the dual function at the y before the move.
                x, y = visit.after.x, visit.before.y
                low, high = view.sides.row_lower, view.sides.row_upper
                sides = np.where(y > 0, low, np.where(y < 0, high, 0))
                values.append(float(view.objective(x) + y @ view.violation(x) + np.sum(y * sides)))
            assert (np.diff(values) >= -1e-12).all()


def test_a_step_above_two_over_L_is_reported_as_divergence() -> None:
    equality = program(row_lower=B, row_upper=B, lower=None, upper=None)
    with jax.enable_x64(True):
        L = float(pdopt.DualAscent().view(equality).smoothness())
    assert pdopt.solve(equality, pdopt.DualAscent(stepsize=2.5 / L), max_iterations=5000).reason is Status.DIVERGED


def test_no_multiplier_falls_while_its_constraint_is_broken() -> None:
    """Rows `a'x >= b`: y >= 0 and y' >= y wherever a'x' < b (design, section 7)."""
    problem = program(row_lower=B + 1, row_upper=np.full(3, np.inf), lower=None, upper=None)
    with jax.enable_x64(True):
        method = pdopt.DualAscent()
        view = method.view(problem)
        state = method.init(view, view.start())
        for _ in range(30):
            state, visit = method.step(view, state)
            before, after = view.back(visit.before), view.back(visit.after)
            broken = np.asarray(A @ after.x < B + 1)
            assert (np.asarray(after.y - before.y)[broken] >= 0).all()
            assert (np.asarray(after.y) >= 0).all()


def test_signs_are_prices() -> None:
    """y = d value / d right-hand side: positive at a lower side; and the objective's gradient says the same."""
    base = {"lower": None, "upper": None, "row_lower": B, "row_upper": B}
    solution = pdopt.solve(program(**base), pdopt.DualAscent(), tolerance=1e-10)
    for i in range(3):
        shift = np.eye(3)[i] * 1e-4
        up = pdopt.solve(program(**{**base, "row_lower": B + shift, "row_upper": B + shift}), tolerance=1e-10)
        down = pdopt.solve(program(**{**base, "row_lower": B - shift, "row_upper": B - shift}), tolerance=1e-10)
        # A quadratic value function: the central difference is exact up to the tolerance over the step.
        assert abs((float(up.objective) - float(down.objective)) / 2e-4 - float(solution.y[i])) < 1e-5
    with jax.enable_x64(True):
        value = lambda b: pdopt.solve(program(**{**base, "row_lower": b, "row_upper": b}), tolerance=1e-10).objective
        np.testing.assert_allclose(jax.grad(value)(jnp.asarray(B)), solution.y, atol=1e-7)


def test_the_derivative_in_Q_is_half_the_outer_product() -> None:
    with jax.enable_x64(True):
        value = lambda S: pdopt.solve(program(Q=S), tolerance=1e-9).objective
        x = pdopt.solve(program(), tolerance=1e-9).x
        np.testing.assert_allclose(jax.grad(value)(jnp.asarray(Q)), np.outer(x, x) / 2, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_infeasible_rows_and_bounds_are_proved(dtype: Any) -> None:
    """Twice the same row with two right-hand sides; a row that no point of the box reaches."""
    rows = {"A": np.vstack([A, A[:1]]), "row_lower": np.r_[B, B[0] + 1], "row_upper": np.r_[B, B[0] + 1]}
    twice = program(dtype, **rows, lower=None, upper=None)
    solution = pdopt.solve(twice, pdopt.DualAscent(), max_iterations=20_000)
    assert solution.reason is Status.PRIMAL_INFEASIBLE
    outside = program(dtype, A=np.ones((1, 6)), row_lower=[10.0], row_upper=[np.inf], upper=np.full(6, 0.5))
    solution = pdopt.solve(outside, pdopt.DualAscent(), max_iterations=20_000)
    assert solution.reason is Status.PRIMAL_INFEASIBLE
    y = np.asarray(solution.certificate.ray.y, np.float64)
    # 10 y is more than the row can reach over the box, 6 times 0.5 y.
    assert 10 * y[0] > 6 * 0.5 * y[0]


def test_objectives_that_are_not_strictly_convex_are_refused() -> None:
    flat = np.diag([1.0, 1, 1, 1, 1, 0])
    with pytest.raises(UnsupportedProblem, match=r"Q is not definite \(smallest eigenvalue 0\)"):
        pdopt.solve(program(Q=flat), pdopt.DualAscent())
    # Traced data cannot be looked at: the run says so by its status.
    with jax.enable_x64(True):
        solve = lambda S: pdopt.solve(program(Q=S), pdopt.DualAscent(), gradient="none")
        assert jax.jit(solve)(jnp.asarray(flat)).reason is Status.NUMERICAL_ERROR


def test_a_sweep_over_steps_is_one_trace() -> None:
    problem = program()
    traces = 0
    with jax.enable_x64(True):
        L = pdopt.DualAscent().view(problem).smoothness()

        def count(step: Any) -> Any:
            nonlocal traces
            traces += 1
            return pdopt.solve(problem, pdopt.DualAscent(stepsize=step), gradient="none").iterations

        counts = jax.jit(jax.vmap(count))(jnp.array([0.25, 0.5, 1.0]) / L)
    assert traces == 1
    assert int(counts[0]) > int(counts[1]) > int(counts[2])


def test_settings_are_checked() -> None:
    for settings, words in (
        ({"stepsize": 0.0}, "stepsize"),
        ({"stepsize": float("nan")}, "stepsize"),
        ({"every": 0}, "every"),
        ({"acceleration": Halpern()}, "acceleration"),
        ({"acceleration": Relaxed(1.8)}, "Relaxed takes 1.8"),
    ):
        with pytest.raises(InvalidOption, match=words):
            pdopt.DualAscent(**settings)


def test_of_the_mean_and_the_latest_pair_the_one_that_moves_less_is_returned() -> None:
    """With a step of 2/L the pairs swing around their mean for ever; with 1/L the latest pair is far ahead."""
    equality = program(row_lower=B, row_upper=B, lower=None, upper=None)
    with jax.enable_x64(True):
        L = float(pdopt.DualAscent().view(equality).smoothness())
        for share, mean_wins in ((2.0, True), (1.0, False)):
            method = pdopt.DualAscent(stepsize=share / L, acceleration=Averaged())
            view = method.view(equality)
            state = method.init(view, view.start())
            seen = []
            for _ in range(60):
                state, visit = method.step(view, state)
                seen.append(np.asarray(visit.after.y))
            expected = np.mean(seen, 0) if mean_wins else seen[-1]
            np.testing.assert_allclose(method.pair(view, state, visit).y, expected, atol=1e-12)
