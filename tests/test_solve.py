"""`solve` end to end: against HiGHS, under `jit`, `vmap` and `grad`, from starts, on edge cases, and its options."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.operators.sparse import Sparse
from pdopt.problems.mps import read_mps
from pdopt.types import Pair, Status

INF = np.inf
CORE = Path(__file__).parents[2] / "shared" / "data" / "lp" / "core"
SHAPE = (4, 6)  # one shape, one compilation


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def bounded_lp(seed, m=SHAPE[0], n=SHAPE[1]):
    """Feasible (a point is drawn first) and bounded (a box); rows of every kind."""
    rng = np.random.default_rng(seed)
    A, x = rng.normal(size=(m, n)), rng.uniform(-1, 1, n)
    kind, row = rng.integers(0, 5, m), A @ x
    rl = np.where(kind == 1, -INF, row - rng.uniform(0, 0.5, m) * (kind != 4))
    ru = np.where(kind == 2, INF, row + rng.uniform(0, 0.5, m) * (kind != 4))
    return {
        "c": rng.normal(size=n),
        "A": A,
        "row_lower": rl,
        "row_upper": ru,
        "lower": np.full(n, -1.0),
        "upper": np.full(n, 1.0),
    }


def make(data, **options):
    return pdopt.LinearProgram(**data, **options)


def embed(data):
    """The same program in the common shape: rows without sides, columns fixed at 0."""
    A = np.zeros(SHAPE)
    m, n = np.shape(data["A"])
    A[:m, :n] = data["A"]
    pad = lambda name, size, value, default=None: np.concatenate(
        [np.asarray(data.get(name, np.full(n, default)), float), np.full(size - (m if "row" in name else n), value)]
    )
    return {
        "c": pad("c", 6, 0.0), "A": A, "row_lower": pad("row_lower", 4, -INF), "row_upper": pad("row_upper", 4, INF),
        "lower": pad("lower", 6, 0.0, -INF), "upper": pad("upper", 6, 0.0, INF),
    }  # fmt: skip


def highs(data):
    A, rl, ru = (np.asarray(data[k]) for k in ("A", "row_lower", "row_upper"))
    G = np.vstack([A[np.isfinite(ru)], -A[np.isfinite(rl)]])
    h = np.concatenate([ru[np.isfinite(ru)], -rl[np.isfinite(rl)]])
    n = A.shape[1]
    box = list(zip(data.get("lower", np.full(n, -INF)), data.get("upper", np.full(n, INF))))
    return linprog(data["c"], G if G.size else None, h if G.size else None, bounds=box)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_random_programs_equal_highs(seed):
    data = bounded_lp(seed)
    best, found = highs(data), pdopt.solve(make(data), max_iterations=100_000)
    assert found.reason is Status.OPTIMAL
    assert found.reason.converged
    # The objective errs by the gap, and by the primal residual times the multipliers: both near 1e-6 in relative terms.
    slack = 1e-5 * (1 + abs(best.fun)) * (1 + np.linalg.norm(np.asarray(found.y)))
    assert float(found.objective) == pytest.approx(best.fun, abs=slack)
    assert float(found.dual_objective) == pytest.approx(best.fun, abs=slack)
    assert float(found.residuals.error) <= 1e-6
    again = make(data).residuals(found.pair)
    np.testing.assert_allclose(np.array(again), np.array(found.residuals), rtol=1e-9, atol=1e-15)


def plus(v):
    return np.maximum(v, 0)


def assert_proves_infeasible(data, ray):
    """The dual ray in NumPy: signs, value, and what is dropped from z."""
    rl, ru, l, u = (np.asarray(data[k]) for k in ("row_lower", "row_upper", "lower", "upper"))
    dy = np.asarray(ray.y)
    assert np.all(dy[rl == -INF] <= 0)
    assert np.all(dy[ru == INF] >= 0)
    z = -data["A"].T @ dy
    kept = np.where(np.isfinite(l), plus(z), 0) - np.where(np.isfinite(u), plus(-z), 0)
    finite = lambda v: np.where(np.isfinite(v), v, 0)
    q = finite(rl) @ plus(dy) - finite(ru) @ plus(-dy) + finite(l) @ plus(kept) - finite(u) @ plus(-kept)
    assert q > 0
    assert abs(z - kept).max() <= 2e-8 * q


def assert_proves_unbounded(data, ray):
    rl, ru, l, u = (np.asarray(data[k]) for k in ("row_lower", "row_upper", "lower", "upper"))
    dx = np.asarray(ray.x)
    assert np.all(dx[np.isfinite(l)] >= 0)
    assert np.all(dx[np.isfinite(u)] <= 0)
    change, descent = data["A"] @ dx, -data["c"] @ dx
    assert descent > 0
    assert np.all(-change[np.isfinite(rl)] <= 2e-8 * descent)
    assert np.all(change[np.isfinite(ru)] <= 2e-8 * descent)


def contradictory(seed, lower, upper):
    """The last row is a combination of the others, asked to be above what they allow."""
    data = bounded_lp(seed)
    weights = np.random.default_rng(seed).uniform(0.5, 1, SHAPE[0] - 1)
    data["A"][-1] = weights @ data["A"][:-1]
    data["row_lower"], data["row_upper"] = np.array([-INF, -INF, -INF, 1.0]), np.array([0.0, 0.0, 0.0, INF])
    return data | {"lower": np.full(6, lower), "upper": np.full(6, upper)}


@pytest.mark.parametrize("seed", range(4))
def test_infeasible_programs_get_a_certificate(seed):
    data = contradictory(seed, -100.0, 100.0)
    found = pdopt.solve(make(data), max_iterations=100_000)
    assert found.reason is Status.PRIMAL_INFEASIBLE
    assert found.reason.proved
    assert_proves_infeasible(data, found.certificate.ray)


@pytest.mark.parametrize("seed", range(4))
def test_free_variables_and_no_feasible_point_on_either_side(seed):
    data = contradictory(seed, -INF, INF)
    found = pdopt.solve(make(data), max_iterations=100_000)
    assert found.reason.proved
    prove = assert_proves_infeasible if found.reason is Status.PRIMAL_INFEASIBLE else assert_proves_unbounded
    prove(data, found.certificate.ray)


@pytest.mark.parametrize("seed", range(6))
def test_unbounded_programs_get_a_certificate(seed):
    data = bounded_lp(seed)
    rng = np.random.default_rng(seed)
    d = rng.uniform(0.5, 1, SHAPE[1])  # a direction along which rows do not grow and the objective falls
    data["A"] -= np.outer(data["A"] @ d, d) / (d @ d)
    x = rng.normal(size=SHAPE[1])
    data["row_lower"], data["row_upper"] = np.full(4, -INF), data["A"] @ x + 0.1
    data["lower"], data["upper"] = x - 1, np.full(6, INF)
    data["c"] = -d
    assert highs(data).status == 3
    found = pdopt.solve(make(data), max_iterations=100_000)
    assert found.reason is Status.DUAL_INFEASIBLE
    assert_proves_unbounded(data, found.certificate.ray)


@pytest.mark.parametrize("seed", range(40))
def test_a_feasible_program_without_interior_is_never_called_infeasible(seed):
    rng = np.random.default_rng(seed)
    A = rng.uniform(size=SHAPE)
    b = A @ np.ones(6)  # at its largest value over the box, up to rounding: x = 1 is the only feasible point
    data = {
        "c": rng.normal(size=6),
        "A": A,
        "row_lower": b,
        "row_upper": b + 1,
        "lower": np.zeros(6),
        "upper": np.ones(6),
    }
    found = pdopt.solve(make(data), max_iterations=100_000)
    assert found.reason is Status.OPTIMAL
    np.testing.assert_allclose(found.x, 1.0, atol=1e-4)


# --- transforms ------------------------------------------------------------------------------------------------------


def test_jit_of_solve_equals_solve():
    lp = make(bounded_lp(1))
    # XLA fuses, and so rounds, the two programs differently: equal to the tolerance, not to the bit.
    assert_batch_equals_loop(jax.tree.map(lambda leaf: leaf[None], jax.jit(pdopt.solve)(lp)), [pdopt.solve(lp)])


def assert_batch_equals_loop(batch, alone):
    """Equal status; counts within one check, values within the tolerance: a batched product may sum otherwise."""
    for k, single in enumerate(alone):
        assert int(batch.status[k]) == int(single.status) == Status.OPTIMAL
        assert abs(int(batch.iterations[k]) - int(single.iterations)) <= 64
        np.testing.assert_allclose(batch.objective[k], single.objective, rtol=1e-5, atol=1e-5)
        assert float(batch.residuals.error[k]) <= 1e-6


@pytest.mark.parametrize("field", ["row_upper", "c", "A"])
def test_vmap_equals_a_loop(field):
    data = bounded_lp(2)
    data["row_lower"], data["row_upper"] = np.full(4, -INF), data["A"] @ np.zeros(6) + 0.3
    rng = np.random.default_rng(2)
    values = jnp.asarray(np.asarray(data[field]) + 0.1 * rng.uniform(size=(4, *np.shape(data[field]))))
    lp = make(data)
    one = lambda value: pdopt.solve(lp.replace(**{field: value}))
    assert_batch_equals_loop(jax.jit(jax.vmap(one))(values), [one(v) for v in values])


def sparse_lp(seed, values=None):
    data = bounded_lp(seed)
    row, column = np.nonzero(np.random.default_rng(seed).uniform(size=SHAPE) < 0.6)
    data["A"] = np.where(np.isin(np.arange(24).reshape(SHAPE), row * 6 + column), data["A"], 0.0)
    data["row_lower"], data["row_upper"] = np.full(4, -INF), np.full(4, 0.3)
    A = Sparse.from_entries(row, column, data["A"][row, column], SHAPE, jnp.float64)
    return make(data | {"A": A}), data


@pytest.mark.slow
def test_vmap_over_the_values_of_a_sparse_matrix_equals_a_loop_and_the_dense_twin():
    lp, data = sparse_lp(3)
    values = lp.A.values * jnp.asarray(np.random.default_rng(3).uniform(0.8, 1.2, size=(3, lp.A.values.size)))
    one = lambda v: pdopt.solve(lp.replace(A=lp.A.replace(values=v)))
    batch = jax.jit(jax.vmap(one))(values)
    assert_batch_equals_loop(batch, [one(v) for v in values])
    for k in range(3):
        dense = np.asarray(lp.A.replace(values=values[k]).toarray())
        assert float(batch.objective[k]) == pytest.approx(highs(data | {"A": dense}).fun, abs=1e-5)


def test_whole_problems_may_be_stacked():
    lps = [make(bounded_lp(seed)) for seed in (4, 5, 6)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lps)
    assert_batch_equals_loop(jax.vmap(pdopt.solve)(stacked), [pdopt.solve(lp) for lp in lps])


def optimum(data, maximise):
    sign = -1.0 if maximise else 1.0
    return sign * highs(data | {"c": sign * np.asarray(data["c"])}).fun


@pytest.mark.parametrize("maximise", [False, True])
def test_the_gradient_of_the_objective_equals_finite_differences(maximise):
    data = bounded_lp(8)
    lp = make(data, maximise=maximise)
    value = lambda lp: pdopt.solve(lp, tolerance=1e-10, max_iterations=200_000).objective
    slope = jax.jit(jax.grad(value))(lp)
    rng = np.random.default_rng(8)
    step = 1e-6
    # HiGHS is exact at the vertex; a vertex that stays optimal makes the value bilinear, so the differences err by
    # step^2 and 1e-9 / step; ours by the tolerance.
    for name in ("c", "row_lower", "row_upper", "lower", "upper", "A"):
        d = rng.normal(size=np.shape(data[name])) * np.isfinite(data[name])
        if name == "row_lower":
            equal = data["row_lower"] == data["row_upper"]
            d = np.where(equal, 0, d)
        if name == "row_upper":
            d = np.where(data["row_lower"] == data["row_upper"], 0, d)
        moved = [optimum(data | {name: data[name] + s * step * d}, maximise) for s in (1, -1)]
        expected = (moved[0] - moved[1]) / (2 * step)
        got = float(
            np.sum(np.where(d != 0, np.asarray(slope.A.matrix if name == "A" else getattr(slope, name)), 0) * d)
        )
        assert got == pytest.approx(expected, abs=2e-5 * (1 + abs(expected))), name
    assert float(slope.offset) == 1.0


def test_the_gradient_in_sparse_values_equals_finite_differences():
    lp, data = sparse_lp(9)
    value = lambda v: (
        pdopt.solve(lp.replace(A=lp.A.replace(values=v)), tolerance=1e-10, max_iterations=200_000).objective
    )
    slope = jax.grad(value)(lp.A.values)
    d = np.random.default_rng(9).normal(size=slope.shape)
    dense = lambda v: data | {"A": np.asarray(lp.A.replace(values=v).toarray())}
    moved = [highs(dense(lp.A.values + s * 1e-6 * d)).fun for s in (1, -1)]
    assert float(slope @ d) == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=2e-5)


def test_prices_are_the_multipliers():
    data = embed({"c": [-1.0], "A": [[1.0]], "row_lower": [-INF], "row_upper": [4.0]})
    lp = make(data)
    prices = jax.grad(lambda b: pdopt.solve(lp.replace(row_upper=b)).objective)(lp.row_upper)
    assert float(prices[0]) == pytest.approx(-1.0, abs=1e-5)  # one more unit of the limit lowers the cost by one
    most = make(data | {"c": -data["c"]}, maximise=True)
    found = pdopt.solve(most)
    assert float(found.objective) == pytest.approx(4.0, abs=1e-5)
    assert float(found.y[0]) == pytest.approx(1.0, abs=1e-5)  # HiGHS's sign for a maximum


def test_forward_mode_gives_the_value_its_slope_and_the_pair_nan():
    lp = make(bounded_lp(8))
    run = lambda c: pdopt.solve(lp.replace(c=c), tolerance=1e-8)
    d = jnp.ones(6)
    found, tangent = jax.jvp(run, (lp.c,), (d,))
    assert float(tangent.objective) == pytest.approx(float(found.x @ d), abs=1e-12)
    assert np.all(np.isnan(tangent.x))
    assert np.all(np.isnan(tangent.y))


def test_a_gradient_through_the_pair_raises_and_gradient_none_is_a_constant():
    lp = make(bounded_lp(8))
    with pytest.raises(UnsupportedProblem, match=r"differentiate solution\.objective"):
        jax.grad(lambda c: jnp.sum(pdopt.solve(lp.replace(c=c)).x))(lp.c)
    constant = jax.grad(lambda c: pdopt.solve(lp.replace(c=c), gradient="none").objective)(lp.c)
    np.testing.assert_array_equal(constant, 0.0)


# --- starts ----------------------------------------------------------------------------------------------------------


def start_problem(name):
    if name == "generated":
        return make(bounded_lp(11, 40, 60))
    path = CORE / f"{name}.mps.gz"
    if not path.exists():
        pytest.skip(f"{name} is not here: the shared data folder is absent")
    return read_mps(path)


@pytest.mark.parametrize("name", [pytest.param("generated", marks=pytest.mark.slow), "adlittle"])
def test_a_warm_start_saves_nine_tenths(name):
    lp = start_problem(name)
    cold = pdopt.solve(lp)
    assert cold.reason is Status.OPTIMAL
    assert int(cold.iterations) > 320
    same = pdopt.solve(lp, start=cold)
    assert int(same.iterations) == 0
    assert same.reason is Status.OPTIMAL
    np.testing.assert_allclose(same.x, cold.x, rtol=1e-12, atol=1e-9)
    assert int(pdopt.solve(lp, start=cold.pair).iterations) == 0
    finer = np.random.default_rng(0).uniform(-1, 1, lp.c.size)
    warm = pdopt.solve(lp.replace(c=lp.c * (1 + 1e-6 * finer)), start=cold)
    assert warm.reason is Status.OPTIMAL
    assert int(warm.iterations) < int(cold.iterations) / 10


def test_a_start_outside_the_sets_is_moved_inside():
    lp = make(bounded_lp(1))
    found = pdopt.solve(lp, start=Pair(jnp.full(6, 50.0), jnp.full(4, -30.0)), max_iterations=100_000)
    assert found.reason is Status.OPTIMAL
    assert float(found.objective) == pytest.approx(highs(bounded_lp(1)).fun, abs=1e-4)
    assert np.all(np.abs(found.x) <= 1)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (Pair(np.zeros(5), np.zeros(4)), InvalidProblem, r"start.x has shape \(5,\); expected \(6,\)"),
        (Pair(np.zeros(6), np.zeros(6)), InvalidProblem, r"start.y has shape \(6,\); expected \(4,\)"),
        (Pair(np.zeros(6), np.full(4, np.nan)), InvalidProblem, "start.y has NaN"),
        (Pair((np.zeros(6),), np.zeros(4)), InvalidProblem, "start.x has structure"),
        (np.zeros(6), InvalidOption, "expected a Pair or a Solution"),
    ],
)
def test_a_start_that_cannot_be_is_refused(start, error, message):
    with pytest.raises(error, match=message):
        pdopt.solve(make(bounded_lp(1)), start=start)
