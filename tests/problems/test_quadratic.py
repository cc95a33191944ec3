"""Quadratic programs: residuals from the definition, agreement with linear programs where Q = 0, and bad data."""

from typing import Any

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


def data(seed: int, m: int = 3, n: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((n, n))
    low = np.where(rng.uniform(size=m) < 0.3, -np.inf, rng.standard_normal(m))
    high = np.where(rng.uniform(size=m) < 0.3, np.inf, np.where(np.isfinite(low), low, 0) + rng.uniform(0, 1, m))
    lower = np.where(rng.uniform(size=n) < 0.5, -np.inf, -rng.uniform(0, 1, n))
    upper = np.where(rng.uniform(size=n) < 0.5, np.inf, rng.uniform(0, 1, n))
    return {
        "Q": M @ M.T, "c": rng.standard_normal(n), "A": rng.standard_normal((m, n)), "row_lower": low,
        "row_upper": high, "lower": lower, "upper": upper, "offset": 0.7,
    }  # fmt: skip


def by_definition(d: dict[str, Any], x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[float, ...]:
    """Primal and dual residual and both objectives for given reduced costs (linear spec, sections 1 and 7)."""
    finite = lambda v: np.where(np.isfinite(v), v, 0)
    plus = lambda v: np.maximum(v, 0)
    row = d["A"] @ x
    primal = np.r_[row - np.clip(row, d["row_lower"], d["row_upper"]), x - np.clip(x, d["lower"], d["upper"])]
    y_valid = np.clip(
        y, np.where(np.isfinite(d["row_upper"]), -np.inf, 0), np.where(np.isfinite(d["row_lower"]), np.inf, 0)
    )
    dual = np.r_[d["c"] + d["Q"] @ x - d["A"].T @ y - z, y - y_valid]
    curve = x @ d["Q"] @ x / 2
    rows = np.sum(finite(d["row_lower"]) * plus(y_valid) - finite(d["row_upper"]) * plus(-y_valid))
    bounds = np.sum(finite(d["lower"]) * plus(z) - finite(d["upper"]) * plus(-z))
    upper = curve + d["c"] @ x + d["offset"]
    return float(np.linalg.norm(primal)), float(np.linalg.norm(dual)), upper, rows + bounds - curve + d["offset"]


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_optimality_is_the_definition(seed: int) -> None:
    d = data(seed)
    rng = np.random.default_rng(seed + 1)
    x, y = rng.standard_normal(5), rng.standard_normal(3)
    qp = pdopt.QuadraticProgram(**d, dtype=np.float64)
    found = qp.optimality(Pair(x, y))
    z = np.asarray(found.proof)
    assert (z[~np.isfinite(d["lower"])] <= 0).all()
    assert (z[~np.isfinite(d["upper"])] >= 0).all()
    primal, dual, upper, lower = by_definition(d, x, y, z)
    residuals = found.residuals
    np.testing.assert_allclose(
        [residuals.primal_absolute, residuals.dual_absolute, found.objective, found.dual_objective],
        [primal, dual, upper, lower], rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    sides = np.maximum(*(np.abs(np.where(np.isfinite(d[name]), d[name], 0)) for name in ("row_lower", "row_upper")))
    assert float(residuals.primal) == pytest.approx(primal / (1 + np.linalg.norm(sides)))
    assert float(residuals.dual) == pytest.approx(dual / (1 + np.linalg.norm(d["c"])))
    assert float(residuals.gap) == pytest.approx(abs(upper - lower) / (1 + abs(upper) + abs(lower)), abs=1e-12)
    assert float(qp.objective(x)) == pytest.approx(upper)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_without_curvature_it_is_the_linear_program(seed: int) -> None:
    d = {**data(seed), "Q": np.zeros((5, 5))}
    rng = np.random.default_rng(seed + 1)
    pair = Pair(rng.standard_normal(5), rng.standard_normal(3))
    qp = pdopt.QuadraticProgram(**d, dtype=np.float64)
    lp = pdopt.LinearProgram(**{k: v for k, v in d.items() if k != "Q"}, dtype=np.float64)
    for a, b in zip(jax.tree.leaves(qp.optimality(pair)), jax.tree.leaves(lp.optimality(pair))):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_maximisation_is_the_negated_minimisation() -> None:
    """Objectives, multipliers and reduced costs change sign; residuals do not."""
    d = data(3)
    pair = Pair(np.linspace(-1, 1, 5), np.array([0.5, -1.0, 2.0]))
    low = pdopt.QuadraticProgram(**d, dtype=np.float64)
    high = pdopt.QuadraticProgram(**{**d, "Q": -d["Q"], "c": -d["c"], "offset": -0.7}, maximise=True, dtype=np.float64)
    a, b = low.optimality(pair), high.optimality(Pair(pair.x, -pair.y))
    for p, q in zip(a.residuals, b.residuals):
        assert float(p) == pytest.approx(float(q))
    assert float(a.objective) == -float(b.objective)
    assert float(a.dual_objective) == -float(b.dual_objective)
    np.testing.assert_allclose(a.proof, -b.proof)
    for p, q in zip(jax.tree.leaves(high.minimised()), jax.tree.leaves(low)):
        np.testing.assert_array_equal(p, q)


def test_the_lagrangian_is_the_objective_at_a_kkt_point() -> None:
    qp = pdopt.QuadraticProgram(np.eye(2), [0.0, 0.0], [[1.0, 1.0]], [2.0], [2.0], dtype=np.float64)
    with jax.enable_x64(True):
        pair, z = Pair(jnp.ones(2), jnp.ones(1)), jnp.zeros(2)
        assert float(qp.lagrangian(pair, z)) == 1.0
        assert float(qp.residuals(pair).error) == 0
        # Stationary in x.
        np.testing.assert_allclose(jax.grad(lambda x: qp.lagrangian(Pair(x, pair.y), z))(pair.x), 0, atol=1e-15)


def test_a_dual_ray_must_be_flat() -> None:
    """min -x + q x^2 / 2 over x >= 0 is unbounded for q = 0 only."""
    for q, unbounded in ((0.0, True), (1.0, False)):
        qp = pdopt.QuadraticProgram([[q]], [-1.0], np.zeros((0, 1)), [], [], [0.0], [np.inf], dtype=np.float64)
        with jax.enable_x64(True):
            rays = qp.rays(Pair(jnp.ones(1), jnp.zeros(0)))
        assert bool(rays.dual_infeasible) is unbounded


def test_sparse_data_are_the_same_problem() -> None:
    d = data(4)
    A, Q = (sp.csr_array(np.kron(np.eye(30), d[name])) for name in ("A", "Q"))
    wide = {name: np.tile(d[name], 30) for name in ("c", "row_lower", "row_upper", "lower", "upper")}
    stored = pdopt.QuadraticProgram(Q=Q, A=A, **wide, dtype=np.float64)
    whole = pdopt.QuadraticProgram(Q=Q.toarray(), A=A.toarray(), **wide, dtype=np.float64)
    assert type(stored.Q).__name__ == "Sparse"
    rng = np.random.default_rng(0)
    pair = Pair(rng.standard_normal(150), rng.standard_normal(90))
    for a, b in zip(jax.tree.leaves(stored.optimality(pair)), jax.tree.leaves(whole.optimality(pair))):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    with jax.enable_x64(True):
        a, b = pdopt.DualAscent().view(stored), pdopt.DualAscent().view(whole)
        np.testing.assert_allclose(a.rows, b.rows)
        np.testing.assert_allclose(a.Q, b.Q)
    upper = sp.triu(Q).tocsr()
    with pytest.raises(InvalidProblem, match="Q is not symmetric"):
        pdopt.QuadraticProgram(Q=upper, A=A, **wide, dtype=np.float64)


def test_bad_data_are_named() -> None:
    rows = {"c": [0.0, 0.0], "A": [[1.0, 0.0]], "row_lower": [0.0], "row_upper": [1.0], "dtype": np.float64}
    for Q, extra, words in (
        ([[1.0, 2.0], [0.0, 1.0]], {}, r"Q is not symmetric: .* differ by 2 at index \(0, 1\)"),
        ([[1.0, 2.0], [2.0, 1.0]], {}, "Q is not positive semidefinite: its smallest eigenvalue is -1"),
        ([[1.0, 0.0], [0.0, -1.0]], {"maximise": True}, "Q is not negative semidefinite: its largest eigenvalue is 1"),
        ([[1.0]], {}, r"Q has shape \(1, 1\); expected \(2, 2\) because A has 2 columns"),
        ([[1.0, float("nan")], [float("nan"), 1.0]], {}, "Q has 2 NaN"),
        (np.eye(2), {"c": [0.0]}, r"c has shape \(1,\)"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            pdopt.QuadraticProgram(Q, **{**rows, **extra})
    # Semidefinite up to rounding passes: a Gram matrix of rank one.
    v = np.array([[0.1], [0.7]])
    pdopt.QuadraticProgram(v @ v.T, **rows)
    with pytest.warns(UserWarning, match="Q.*float64"):
        pdopt.QuadraticProgram(np.eye(2), [0.0, 0.0], [[1.0, 0.0]], [0.0], [1.0])


def test_crossed_bounds_and_traced_numbers_reach_the_status() -> None:
    crossed = pdopt.QuadraticProgram([[1.0]], [0.0], [[1.0]], [2.0], [1.0], dtype=np.float64)
    assert pdopt.solve(crossed, pdopt.DualAscent()).reason is pdopt.Status.PRIMAL_INFEASIBLE
    with jax.enable_x64(True):
        solve = lambda q: pdopt.solve(pdopt.QuadraticProgram(q, [0.0], [[1.0]], [0.0], [1.0]), gradient="none").status
        assert int(jax.jit(solve)(jnp.array([[jnp.nan]]))) == pdopt.Status.INVALID_PROBLEM
