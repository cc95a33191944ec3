"""The three linear solvers against NumPy: answers, counts, budgets, keys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption
from pdopt.methods.newton_systems import System, coordinates, gaussian

pytestmark = pytest.mark.usefixtures("quick_compiles")

RNG = np.random.default_rng(0)
n, m = 6, 3
H, J = np.diag(RNG.uniform(1, 2, n)) - 0.5 * np.eye(n), np.linalg.qr(RNG.standard_normal((n, m)))[0].T
K = np.block([[H, J.T], [J, np.zeros((m, m))]])
B = RNG.standard_normal(n + m)
SOLVERS = {
    "direct": pdopt.Direct(),
    "minres": pdopt.MinRes(),
    "sketch": pdopt.BlockSketch(block=4),
    "whole sketch": pdopt.BlockSketch(block=50),
    "kaczmarz": pdopt.BlockSketch(block=3, draw=coordinates),
}

LONG = ("direct", "kaczmarz", "whole sketch")  # slow; the next test is a quick one of the direct solver


def system(matrix: Any, inverse: Any = None) -> System:
    matrix = jnp.asarray(matrix)
    return System(lambda z: matrix @ z, n, lambda _: lambda v: jnp.asarray(inverse) @ v)


def solve(solver: Any, matrix: Any, right: Any, tolerance: float = 1e-9, seed: int = 0, inverse: Any = None) -> Any:
    with jax.enable_x64(True):
        key = jax.random.PRNGKey(seed)
        go = jax.jit(lambda b: solver.solve(system(matrix, inverse), b, key, tolerance))
        return jax.tree.map(np.asarray, go(jnp.asarray(right)))


@pytest.mark.parametrize("name", [pytest.param(k, marks=[pytest.mark.slow] * (k in LONG)) for k in SOLVERS])
def test_all_solve_and_measure_what_they_leave(name: str) -> None:
    found = solve(SOLVERS[name], K, B)
    left = np.linalg.norm(K @ found.step - B)
    assert left <= 1e-9
    np.testing.assert_allclose(found.residual, left, atol=1e-14)
    np.testing.assert_allclose(found.step, np.linalg.solve(K, B), atol=1e-9 / np.abs(np.linalg.eigvalsh(K)).min())
    assert found.products > 0
    nothing = solve(SOLVERS[name], K, 0 * B)
    assert np.all(nothing.step == 0)
    assert nothing.products <= 1


def test_a_direct_solve_survives_dependent_rows() -> None:
    """With a row twice the multipliers are not unique and the step is; the corner is refined away."""
    twice = np.block([[H, J.T[:, [0, 0, 1]]], [J[[0, 0, 1]], np.zeros((3, 3))]])
    right = np.append(B[:n], [1.0, 1.0, 2.0])
    found = solve(pdopt.Direct(), twice, right, 1e-10)
    assert found.residual <= 1e-10
    once = np.block([[H, J[:2].T], [J[:2], np.zeros((2, 2))]])
    np.testing.assert_allclose(found.step[:n], np.linalg.solve(once, np.append(B[:n], [1.0, 2.0]))[:n], atol=1e-8)


@pytest.mark.slow
def test_krylov_steps_end_after_the_distinct_eigenvalues() -> None:
    """`diag(H, J H^-1 J')` leaves three eigenvalues: 1, (1 +- sqrt 5) / 2 (Murphy, Golub, Wathen 2000)."""
    ideal = np.zeros((n + m, n + m))
    ideal[:n, :n], ideal[n:, n:] = np.linalg.inv(H), np.linalg.inv(J @ np.linalg.inv(H) @ J.T)
    found = solve(pdopt.MinRes(preconditioner=lambda r: r), K, B, inverse=ideal)
    assert found.residual <= 1e-9
    assert found.products <= 4  # the last one measures
    assert solve(pdopt.MinRes(), K, B).products > 4
    # Its residual never grows, preconditioned or not: one more product is never worse.
    left = [float(solve(pdopt.MinRes(products=k), K, B).residual) for k in (1, 3)]
    assert left == sorted(left, reverse=True)


def test_one_block_is_the_projection_of_its_definition() -> None:
    """`z' = argmin |z'|` subject to `S'(K z' - b) = 0`, from 0; by NumPy's least squares."""
    sketch = pdopt.BlockSketch(block=4, products=5)
    found = solve(sketch, K, B, 1e-12, seed=3)
    with jax.enable_x64(True):
        S = np.asarray(gaussian(jax.random.fold_in(jax.random.PRNGKey(3), 0), n + m, 4, np.float64))
    np.testing.assert_allclose(found.step, np.linalg.lstsq(S @ K, S @ B, rcond=None)[0], atol=1e-12)
    assert found.products == 5
    again, other = solve(sketch, K, B, 1e-12, seed=3), solve(sketch, K, B, 1e-12, seed=4)
    np.testing.assert_array_equal(found.step, again.step)
    assert np.abs(found.step - other.step).max() > 1e-3


@pytest.mark.slow
def test_a_budget_ends_a_solve_that_says_so() -> None:
    for solver in (pdopt.MinRes(products=2), pdopt.BlockSketch(block=1, products=20)):
        found = solve(solver, K, B)
        assert found.products <= 21
        assert found.residual > 1e-6
        np.testing.assert_allclose(found.residual, np.linalg.norm(K @ found.step - B), rtol=1e-12)


def test_settings_are_looked_at() -> None:
    for make in (
        lambda: pdopt.MinRes(products=0),
        lambda: pdopt.BlockSketch(block=0),
        lambda: pdopt.BlockSketch(products=-1),
        lambda: pdopt.MinRes(preconditioner=1),  # pyright: ignore[reportArgumentType]
        lambda: pdopt.BlockSketch(draw="gaussian"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(InvalidOption):
            make()
