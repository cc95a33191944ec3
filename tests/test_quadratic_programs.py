"""Quadratic programs by PDHG, whole: random ones against Clarabel, edges, certificates, transformations, resuming."""

from typing import Any

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import pdopt
from pdopt.errors import InvalidProblem, UnsupportedProblem
from pdopt.types import Pair, Status

INFINITE = np.inf
N, M, COUNT = 8, 6, 30


def random_data(seed: int) -> dict[str, np.ndarray]:
    """Q of any rank; all kinds of rows and bounds, an empty row and a fixed variable among them; feasible, bounded."""
    rng = np.random.default_rng(seed)
    rank = seed % (N + 1)
    R, A, inside = rng.standard_normal((N, rank)), rng.standard_normal((M, N)), rng.uniform(-1, 1, N)
    A[5] = 0 if seed % 3 == 0 else A[5]
    row = A @ inside
    low, high = row - rng.uniform(0, 1, M), row + rng.uniform(0, 1, M)
    low[0] = high[0] = row[0]
    low[1], high[2], low[3], high[3] = -INFINITE, INFINITE, -INFINITE, INFINITE
    lower, upper = inside - rng.uniform(0, 2, N), inside + rng.uniform(0, 2, N)
    if rank == N:  # curved everywhere: no bound is needed
        lower[:3], upper[2:5] = -INFINITE, INFINITE
    upper[7] = lower[7] = inside[7]
    return {
        "Q": R @ R.T, "c": rng.standard_normal(N), "A": A, "row_lower": low, "row_upper": high, "lower": lower,
        "upper": upper, "offset": np.float64(rng.standard_normal()),
    }  # fmt: skip


def by_clarabel(d: dict[str, Any]) -> float:
    n = d["c"].size
    A = np.vstack([d["A"], np.eye(n)])
    low, high = np.r_[d["row_lower"], d["lower"]], np.r_[d["row_upper"], d["upper"]]
    up, down = np.isfinite(high), np.isfinite(low)
    G, h = np.vstack([A[up], -A[down]]), np.r_[high[up], -low[down]]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = [clarabel.NonnegativeConeT(h.size)]
    found = clarabel.DefaultSolver(sp.csc_matrix(np.triu(d["Q"])), d["c"], sp.csc_matrix(G), h, cones, settings).solve()
    assert str(found.status) == "Solved"
    return found.obj_val + d["offset"]


@pytest.fixture(scope="module")
def batch() -> tuple[list[dict[str, Any]], Any, Any]:
    """Data, problems and solutions of thirty programs, solved together."""
    data = [random_data(seed) for seed in range(COUNT)]
    with jax.enable_x64(True):
        stacked = {name: jnp.stack([d[name] for d in data]) for name in data[0]}
        problems = jax.vmap(lambda d: pdopt.QuadraticProgram(**d))(stacked)
        options = {"tolerance": 1e-8, "max_iterations": 200_000}
        together = jax.jit(jax.vmap(lambda problem: pdopt.solve(problem, **options)))(problems)
    return data, problems, together


def test_random_programs_have_clarabels_value(batch: tuple[list[dict[str, Any]], Any, Any]) -> None:
    data, _, found = batch
    assert {Status(int(status)) for status in found.status} == {Status.OPTIMAL}
    for k, d in enumerate(data):
        value = by_clarabel(d)
        assert float(found.objective[k]) == pytest.approx(value, rel=2e-7, abs=2e-7), k
        assert float(found.dual_objective[k]) == pytest.approx(value, rel=2e-7, abs=2e-7), k


def test_a_member_of_the_batch_is_what_it_is_alone(batch: tuple[list[dict[str, Any]], Any, Any]) -> None:
    data, _, together = batch
    alone = solve(data[5], tolerance=1e-8)
    assert alone.reason is Status.OPTIMAL
    np.testing.assert_allclose(alone.x, together.pair.x[5], atol=1e-4)
    assert float(alone.objective) == pytest.approx(float(together.objective[5]), rel=1e-7, abs=1e-7)
    again = solve(data[5], tolerance=1e-7, start=alone)
    assert int(again.iterations) == 0


def solve(d: dict[str, Any], **options: Any) -> Any:
    """One program of the same shapes as all of this file: compiled once."""
    options = {"max_iterations": 50_000, "start": Pair(np.zeros(N), np.zeros(M)), **options}
    return pdopt.solve(pdopt.QuadraticProgram(**d, dtype=np.float64), **options)


def test_descent_along_a_flat_direction_is_certified() -> None:
    """Q is flat along x8 alone, where there is neither row nor bound: c8 decides between unbounded and solved."""
    d = random_data(8)
    d["Q"][7], d["Q"][:, 7], d["A"][:, 7], d["lower"][7], d["upper"][7] = 0, 0, 0, -INFINITE, INFINITE
    d["c"][7] = 0.5
    found = solve(d)
    assert found.reason is Status.DUAL_INFEASIBLE
    ray = np.asarray(found.certificate.ray.x)
    assert ray[7] == -1.0
    assert np.abs(d["Q"] @ ray).max() <= 1e-8 * abs(d["c"] @ ray) * 1.001
    d["c"][7] = 0.0
    assert solve(d).reason is Status.OPTIMAL


def test_infeasible_rows_are_certified_whatever_the_curvature() -> None:
    """Rows 4 and 5 say that one sum is at most -1 and at least 1."""
    for seed in (0, 4, 8):
        d = random_data(seed)
        d["A"][3], d["A"][4], d["row_upper"][3], d["row_lower"][4], d["row_upper"][4] = 1, 1, -1, 1, INFINITE
        found = solve(d)
        assert found.reason is Status.PRIMAL_INFEASIBLE
        y = np.asarray(found.certificate.ray.y)
        low, high = (np.where(np.isfinite(d[name]), d[name], 0) for name in ("row_lower", "row_upper"))
        z = -d["A"].T @ y
        bounds = np.maximum(z, 0) @ np.where(np.isfinite(d["lower"]), d["lower"], 0)
        bounds -= np.maximum(-z, 0) @ np.where(np.isfinite(d["upper"]), d["upper"], 0)
        assert np.maximum(y, 0) @ low - np.maximum(-y, 0) @ high + bounds > 0


@pytest.mark.slow
def test_the_value_has_the_derivative_of_the_optimal_value() -> None:
    """By the envelope theorem, against central differences of Clarabel's values."""
    d = random_data(8)  # full rank
    names = ("Q", "c", "row_lower")
    with jax.enable_x64(True):

        def value(*changed: Any) -> Any:
            return pdopt.solve(pdopt.QuadraticProgram(**{**d, **dict(zip(names, changed))}), tolerance=1e-9).objective

        slopes = jax.grad(value, argnums=(0, 1, 2))(*(jnp.asarray(d[name]) for name in names))
    rng = np.random.default_rng(0)
    for name, slope in zip(names, slopes):
        way = rng.standard_normal(np.shape(d[name]))
        way = way @ way.T if name == "Q" else way
        if name == "row_lower":  # an equality has two sides that would cross
            way = np.where(np.isfinite(d[name]) & (d[name] < d["row_upper"]), way, 0)
        step = 1e-4
        up, down = (by_clarabel({**d, name: d[name] + s * way}) for s in (step, -step))
        slope = np.where(way == 0, 0, slope)
        assert float(np.vdot(slope, way)) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-5), name


def test_no_rows_one_variable() -> None:
    """min q x^2/2 - x over x in [0, 9]: 1/q, or the bound."""
    for q, expected in ((0.5, 2.0), (0.0, 9.0), (100.0, 0.01)):
        qp = pdopt.QuadraticProgram([q], [-1.0], np.zeros((0, 1)), [], [], [0.0], [9.0], dtype=np.float64)
        found = pdopt.solve(qp, tolerance=1e-8)
        assert found.reason is Status.OPTIMAL
        assert float(found.x[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_maximisation_is_the_negated_minimisation() -> None:
    d = random_data(7)
    low = solve(d, tolerance=1e-8)
    flipped = {**d, "Q": -d["Q"], "c": -d["c"], "offset": -d["offset"], "maximise": True}
    high = solve(flipped, tolerance=1e-8)
    assert int(low.iterations) == int(high.iterations)
    np.testing.assert_array_equal(np.asarray(low.objective), -np.asarray(high.objective))
    np.testing.assert_array_equal(np.asarray(low.y), -np.asarray(high.y))


NONCONVEX = {
    "diagonal": [1.0, -1.0],
    "dense": [[1.0, 2.0], [2.0, 1.0]],
    "sparse": sp.csr_matrix([[1.0, 2.0], [2.0, 1.0]]),
    "large, negative entry": sp.diags([np.r_[np.ones(799), -1e-3], np.full(799, 1e-4), np.full(799, 1e-4)], [0, 1, -1]),
    "large, minor": sp.block_diag([sp.identity(798), [[1.0, 1.1], [1.1, 1.0]]]).tocsr(),
    "large, only its Ritz values show it": sp.diags([np.full(799, 0.6), np.ones(800), np.full(799, 0.6)], [-1, 0, 1]),
}


@pytest.mark.parametrize("kind", NONCONVEX)
def test_a_nonconvex_objective_is_refused(kind: str) -> None:
    Q = NONCONVEX[kind]
    n = len(Q) if isinstance(Q, list) else Q.shape[0]
    with pytest.raises(InvalidProblem, match=r"not positive semidefinite.*not convex"):
        pdopt.QuadraticProgram(Q, np.zeros(n), np.zeros((0, n)), [], [], dtype=np.float64)


def test_a_large_semidefinite_objective_is_not_refused() -> None:
    R = sp.random(600, 900, 0.01, rng=np.random.default_rng(0))
    pdopt.QuadraticProgram(R.T @ R, np.zeros(900), np.zeros((0, 900)), [], [], dtype=np.float64)


@pytest.mark.slow
def test_a_run_resumes(tmp_path: Any) -> None:
    qp = pdopt.QuadraticProgram(**random_data(4), dtype=np.float64)
    first = pdopt.run(qp, tolerance=1e-10, max_iterations=128, checkpoint=tmp_path)
    assert first.reason is Status.ITERATION_LIMIT
    rest = pdopt.run(qp, tolerance=1e-10, checkpoint=tmp_path, resume=True)
    assert rest.reason is Status.OPTIMAL
    assert int(rest.iterations) > 128
    assert float(rest.objective) == pytest.approx(by_clarabel(random_data(4)), rel=1e-7, abs=1e-7)


def test_methods_without_curvature_refuse_it() -> None:
    qp = pdopt.QuadraticProgram([1.0], [0.0], [[1.0]], [1.0], [1.0], dtype=np.float64)
    for method in (pdopt.AverageSpectrum(), pdopt.MirrorDescent()):
        with pytest.raises(UnsupportedProblem, match="view"):
            pdopt.solve(qp, method)
