"""Mirror descent on games: the bound of its theory, the geometries, theta, and settings that are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.geometry import Entropic, Euclidean, Orthant, Sign
from pdopt.rules.acceleration import Halpern, Plain
from pdopt.types import Pair, Status


def game(seed: int = 0, shape: tuple[int, int] = (5, 7), dtype: Any = np.float64) -> pdopt.MatrixGame:
    return pdopt.MatrixGame(np.random.default_rng(seed).standard_normal(shape), dtype=dtype)


@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gap_of_the_entropic_mean_obeys_its_bound(seed: int, steps: int) -> None:
    """`gap <= (log m + log n) / (s k)` with s = 0.998 / max |A_ij|, from uniform strategies (Chambolle, Pock 2016)."""
    problem = game(seed)
    largest = np.abs(np.asarray(problem.payoff.matrix)).max()
    solution = pdopt.solve(problem, pdopt.MirrorDescent(every=steps), max_iterations=steps, tolerance=1e-12)
    assert int(solution.iterations) == steps
    assert float(solution.residuals.gap_absolute) <= (np.log(5) + np.log(7)) * largest / 0.998 / steps


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_the_gap_of_the_euclidean_mean_obeys_its_bound(steps: int) -> None:
    """`D = |z - start|^2 / 2 <= (1 - 1/n) / 2` on a simplex from its centre, s = 0.998 / |A|_2."""
    problem = game(1)
    norm = np.linalg.norm(np.asarray(problem.payoff.matrix), 2)
    method = pdopt.MirrorDescent(move=Euclidean(), every=steps)
    solution = pdopt.solve(problem, method, max_iterations=steps, tolerance=1e-12)
    bound = ((1 - 1 / 5) / 2 + (1 - 1 / 7) / 2) * norm / 0.998 / steps
    # Power iteration finds the norm to 1e-4, from below.
    assert float(solution.residuals.gap_absolute) <= bound * 1.001


def test_the_default_step_is_that_of_the_geometry() -> None:
    problem = game(3)
    A = np.asarray(problem.payoff.matrix)
    with jax.enable_x64(True):
        for move, norm, rtol in ((Entropic(), np.abs(A).max(), 1e-12), (Euclidean(), np.linalg.norm(A, 2), 1e-3)):
            method = pdopt.MirrorDescent(move=move)
            view = method.view(problem)
            np.testing.assert_allclose(method.init(view, view.start()).step, 0.998 / norm, rtol=rtol)


def test_extrapolation_makes_the_last_pair_converge() -> None:
    """Rock, paper, scissors from a lopsided start: theta = 1 goes to the middle, 0 circles, -1 drifts outwards."""
    payoff = [[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]
    problem = pdopt.MatrixGame(payoff, dtype=np.float64)
    start = Pair(np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3]))
    gaps = {}
    for theta in (1.0, 0.0, -1.0):
        method = pdopt.MirrorDescent(0.3, theta=theta, acceleration=Plain())
        with jax.enable_x64(True):
            view = method.view(problem)
            state = method.init(view, view.into(start))
            step = jax.jit(lambda s, method=method, view=view: method.step(view, s))
            for _ in range(600):
                state, visit = step(state)
            gaps[theta] = float(problem.residuals(visit.after).gap_absolute)
    first = float(problem.residuals(start).gap_absolute)
    assert gaps[1.0] < 1e-3 * first
    assert 0.1 * first < gaps[0.0] < 3 * first
    assert gaps[-1.0] > gaps[0.0]


def test_best_responses_are_pure_and_their_mean_converges() -> None:
    problem = game(4, (4, 3))
    method = pdopt.MirrorDescent.best_response()
    with jax.enable_x64(True):
        view = method.view(problem)
        state = method.init(view, view.start())
        for _ in range(5):
            state, visit = method.step(view, state)
            assert sorted(np.asarray(visit.after.x)) == [0, 0, 0, 1]
    early = pdopt.solve(problem, method, max_iterations=64, tolerance=1e-9)
    late = pdopt.solve(problem, method, max_iterations=6400, tolerance=1e-9)
    # 1/sqrt(k): a hundred times the steps, about a tenth of the gap.
    assert float(late.residuals.gap_absolute) < 0.3 * float(early.residuals.gap_absolute)


def test_an_entropic_start_on_the_boundary_can_leave_it() -> None:
    """A pure strategy is raised off the faces; otherwise multiplicative weights would never move."""
    problem = pdopt.MatrixGame([[1.0, -1.0], [-1.0, 1.0]], dtype=np.float64)
    pure = Pair(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    solution = pdopt.solve(problem, pdopt.MirrorDescent(), start=pure, tolerance=1e-2, max_iterations=20_000)
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(solution.x, 0.5, atol=0.05)


def test_steps_fall_as_asked() -> None:
    method = pdopt.MirrorDescent(0.5, decay=1.0)
    problem = game()
    with jax.enable_x64(True):
        view = method.view(problem)
        state = method.init(view, view.start())
        for k in range(4):
            before = state.track.point
            state, visit = method.step(view, state)
            expected = view.descend(before.x, view.gradient(before.x, before.y), 0.5 / (1 + k))
            np.testing.assert_allclose(visit.after.x, expected, rtol=1e-14)


@pytest.mark.slow
def test_the_zero_game_and_games_with_one_action() -> None:
    for payoff, value in (([[0.0, 0.0]], 0.0), ([[3.0]], 3.0), ([[1.0, 4.0]], 4.0), ([[1.0], [4.0]], 1.0)):
        for dtype in (np.float64, np.float32):
            solution = pdopt.solve(pdopt.MatrixGame(payoff, dtype=dtype), pdopt.MirrorDescent(), tolerance=1e-3)
            assert solution.reason is Status.OPTIMAL
            assert abs(float(solution.objective) - value) <= 1e-3 * (1 + 2 * value)


@pytest.mark.parametrize("method", [pdopt.MirrorDescent(), pdopt.MirrorDescent.best_response()])
def test_a_pure_equilibrium_that_the_pairs_reach_is_returned(method: pdopt.MirrorDescent) -> None:
    """Row 1 and column 0 dominate: the pairs stop there long before their mean does."""
    problem = pdopt.MatrixGame([[8.0, 1.0], [2.0, -4.0]], dtype=np.float32)
    solution = pdopt.solve(problem, method, tolerance=1e-5, max_iterations=100_000)
    assert solution.reason is Status.OPTIMAL
    assert int(solution.iterations) < 20_000
    np.testing.assert_allclose(solution.x, [0, 1], atol=1e-5)
    np.testing.assert_allclose(solution.y, [1, 0], atol=1e-5)


def test_settings_and_problems_are_checked() -> None:
    for settings, words in (
        ({"stepsize": -1.0}, "stepsize"),
        ({"theta": -2.0}, "theta"),
        ({"decay": -1.0}, "decay"),
        ({"primal": "bets"}, "did you mean 'best'"),
        ({"acceleration": Halpern()}, "acceleration"),
        ({"every": 0}, "every"),
    ):
        with pytest.raises(InvalidOption, match=words):
            pdopt.MirrorDescent(**settings)
    with pytest.raises(InvalidOption, match="move"):  # signs move the prices of streams, not strategies
        pdopt.solve(game(), pdopt.MirrorDescent(move=Sign()))
    lp = pdopt.LinearProgram([1.0], [[1.0]], [0.0], [1.0], dtype=np.float64)
    with pytest.raises(UnsupportedProblem, match="LinearProgram has no mirrored saddle view"):
        pdopt.solve(lp, pdopt.MirrorDescent())


def test_the_set_of_the_move_is_the_problems() -> None:
    """`Entropic()` names a geometry; its orthant is replaced by the simplices of the game."""
    problem = game()
    one = pdopt.solve(problem, pdopt.MirrorDescent(move=Entropic(Orthant())), tolerance=1e-2)
    with jax.enable_x64(True):
        assert abs(float(jnp.sum(one.x)) - 1) < 1e-12
