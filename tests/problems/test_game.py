"""Matrix games: best replies, residuals by the definition, and data that cannot be a game."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import pdopt
from pdopt.errors import InvalidProblem
from pdopt.types import Pair

A = np.array([[3.0, 0.0, -1.0], [1.0, 2.0, 0.5]])


def test_values_and_replies_by_hand() -> None:
    game = pdopt.MatrixGame(A, dtype=np.float64)
    pair = Pair(np.array([0.25, 0.75]), np.array([0.5, 0.5, 0.0]))
    assert float(game.value(pair)) == 1.5
    found = game.optimality(pair)
    # A'x = (1.5, 1.5, 0.125), A y = (1.5, 1.5): an equilibrium of value 1.5.
    assert (float(found.objective), float(found.dual_objective)) == (1.5, 1.5)
    assert float(found.residuals.error) == 0
    off = Pair(np.array([1.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    replies = game.best_responses(off)
    np.testing.assert_array_equal(replies.x, [1, 0])
    np.testing.assert_array_equal(replies.y, [1, 0, 0])
    worse = game.residuals(off)
    assert float(worse.gap_absolute) == 3.0
    assert float(worse.gap) == pytest.approx(3 / (1 + 3 + 0))


def test_points_outside_the_simplices_are_measured() -> None:
    game = pdopt.MatrixGame(A, dtype=np.float64)
    residuals = game.residuals(Pair(np.array([1.0, 1.0]), np.array([1.25, -0.25, 0.0])))
    # (1, 1) projects to (1/2, 1/2); (1.25, -0.25, 0) to (1, 0, 0).
    assert float(residuals.primal) == pytest.approx(np.sqrt(0.5))
    assert float(residuals.dual) == pytest.approx(np.sqrt(2) * 0.25)
    assert float(residuals.worst) == pytest.approx(1.0)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_gap_is_never_negative_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 6, 2)
    game = pdopt.MatrixGame(rng.standard_normal((m, n)), dtype=np.float64)
    pair = Pair(rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(n)))
    found = game.optimality(pair)
    assert float(found.objective) >= float(game.value(pair)) - 1e-12
    assert float(game.value(pair)) >= float(found.dual_objective) - 1e-12
    with jax.enable_x64(True):
        replies = game.best_responses(pair)
        assert float(game.value(Pair(pair.x, replies.y))) == pytest.approx(float(found.objective))
        assert float(game.value(Pair(replies.x, pair.y))) == pytest.approx(float(found.dual_objective))


def test_the_value_has_the_derivative_of_the_envelope_theorem() -> None:
    """`d value / d A = x y'`, against central differences."""
    with jax.enable_x64(True):
        payoff = jnp.asarray(A)
        value = lambda P: pdopt.solve(pdopt.MatrixGame(P), tolerance=1e-10).objective
        slope = jax.grad(value)(payoff)
        pair = pdopt.solve(pdopt.MatrixGame(payoff), tolerance=1e-10).pair
        np.testing.assert_allclose(slope, np.outer(pair.x, pair.y), atol=1e-8)
        bump = jnp.zeros_like(payoff).at[0, 1].set(1e-3)
        difference = (value(payoff + bump) - value(payoff - bump)) / 2e-3
        assert abs(float(difference - slope[0, 1])) < 1e-5


def test_sparse_payoffs() -> None:
    large = sp.random_array((90, 80), density=0.1, rng=np.random.default_rng(0))
    sparse, dense = pdopt.MatrixGame(large, dtype=np.float64), pdopt.MatrixGame(large.toarray(), dtype=np.float64)
    a, b = pdopt.solve(sparse, tolerance=1e-6), pdopt.solve(dense, tolerance=1e-6)
    assert str(a.reason) == str(b.reason) == "optimal"
    assert abs(float(a.objective) - float(b.objective)) < 4e-6


def test_data_that_cannot_be_a_game() -> None:
    with pytest.raises(InvalidProblem, match="at least one action"):
        pdopt.MatrixGame(np.zeros((0, 3), np.float32))
    with pytest.raises(InvalidProblem, match=r"payoff has 1 NaN at index \(0, 1\)"):
        pdopt.MatrixGame([[1.0, float("nan")]])
    with pytest.raises(InvalidProblem, match="two dimensions"):
        pdopt.MatrixGame(np.zeros(3, np.float32))
    traced = jax.jit(lambda P: pdopt.solve(pdopt.MatrixGame(P), gradient="none").status)
    assert int(traced(jnp.full((2, 2), jnp.nan))) == pdopt.Status.INVALID_PROBLEM
