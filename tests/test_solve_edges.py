"""`solve` on edge cases (reliability rows 4 to 11, 19, 22, 23) and its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.operators.sparse import Sparse
from pdopt.types import Status
from tests.test_solve import (
    INF,
    SHAPE,
    assert_proves_infeasible,
    assert_proves_unbounded,
    bounded_lp,
    embed,
    highs,
    make,
)


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


# --- edge cases: reliability rows 4 to 11, 19, 22, 23 ----------------------------------------------------------------


def test_crossed_bounds_are_infeasible_before_any_iteration():
    data = bounded_lp(1)
    for name in ("lower", "row_lower"):
        high = np.where(np.isfinite(data[name.replace("lower", "upper")]), data[name.replace("lower", "upper")], 5.0)
        crossed = data | {name: high + 1, name.replace("lower", "upper"): high}
        found = pdopt.solve(make(crossed))
        assert found.reason is Status.PRIMAL_INFEASIBLE
        assert int(found.iterations) == 0


def test_fixed_variables_and_free_rows():
    data = bounded_lp(2)
    data["lower"][:2] = data["upper"][:2] = [0.25, -0.5]
    data["row_lower"][0], data["row_upper"][0] = -INF, INF
    data["row_lower"][1:] -= 3
    data["row_upper"][1:] += 3
    found = pdopt.solve(make(data), max_iterations=100_000)
    assert found.reason is Status.OPTIMAL
    assert float(found.objective) == pytest.approx(highs(data).fun, abs=1e-5)
    np.testing.assert_array_equal(found.x[:2], [0.25, -0.5])
    assert float(found.y[0]) == 0


def test_no_rows():
    data = {
        "c": np.array([1.0, -1.0, 0.0]),
        "A": np.zeros((0, 3)),
        "row_lower": [],
        "row_upper": [],
        "lower": [-1.0, 0.0, 2.0],
        "upper": [1.0, 3.0, INF],
    }
    found = pdopt.solve(make(data))
    assert found.reason is Status.OPTIMAL
    assert float(found.objective) == pytest.approx(-4.0)
    assert found.y.shape == (0,)
    unbounded = data | {"upper": [1.0, INF, INF]}
    found = pdopt.solve(make(unbounded))
    assert found.reason is Status.DUAL_INFEASIBLE
    np.testing.assert_allclose(found.certificate.ray.x, [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize(("row", "reason"), [((-1.0, 1.0), Status.OPTIMAL), ((1.0, 2.0), Status.PRIMAL_INFEASIBLE)])
def test_no_columns(row, reason):
    found = pdopt.solve(pdopt.LinearProgram(np.zeros(0), np.zeros((1, 0)), [row[0]], [row[1]], offset=3.0))
    assert found.reason is reason
    assert found.x.shape == (0,)
    assert reason is not Status.OPTIMAL or float(found.objective) == 3.0


@pytest.mark.parametrize(
    ("storage", "method"), [("dense", pdopt.PDHG()), ("sparse", pdopt.PDHG()), ("dense", pdopt.PDHG.constant())]
)
def test_a_zero_matrix(storage, method):
    data = embed(
        {
            "c": [1.0, -1.0],
            "A": np.zeros((2, 2)),
            "row_lower": [-1.0, 0.0],
            "row_upper": [1.0, 2.0],
            "lower": [0, 0],
            "upper": [1, 2],
        }
    )
    if storage == "sparse":
        data["A"] = Sparse.from_entries([], [], [], SHAPE, jnp.float64)
    run = lambda **changes: pdopt.solve(make(data | changes), method, max_iterations=10_000)
    found = run()
    assert found.reason is Status.OPTIMAL
    np.testing.assert_allclose(found.x[:2], [0.0, 2.0], atol=1e-5)
    np.testing.assert_array_equal(found.y, 0)
    assert run(row_lower=np.array([-1.0, 0.5, -INF, -INF])).reason is Status.PRIMAL_INFEASIBLE
    assert run(upper=np.array([1.0, INF, 0, 0, 0, 0])).reason is Status.DUAL_INFEASIBLE


def test_an_empty_row_and_an_empty_column():
    data = bounded_lp(3)
    data["A"][1], data["A"][:, 2] = 0, 0
    data["row_lower"] = np.full(4, -INF)
    data["row_upper"] = np.full(4, 0.5)
    data["c"][2] = 1.0
    found = pdopt.solve(make(data), max_iterations=100_000)
    assert found.reason is Status.OPTIMAL
    assert float(found.y[1]) == 0
    assert float(found.x[2]) == pytest.approx(-1.0, abs=1e-5)
    assert float(found.objective) == pytest.approx(highs(data).fun, abs=1e-5)
    data["lower"][2] = -INF
    assert pdopt.solve(make(data), max_iterations=100_000).reason is Status.DUAL_INFEASIBLE
    data["row_lower"][1] = 0.1
    found = pdopt.solve(make(data), max_iterations=100_000)  # both infeasible: either proof will do
    assert found.reason.proved
    prove = assert_proves_infeasible if found.reason is Status.PRIMAL_INFEASIBLE else assert_proves_unbounded
    prove(data, found.certificate.ray)


def test_coefficients_over_many_magnitudes_never_give_a_false_optimum():
    rng = np.random.default_rng(4)
    data = bounded_lp(4)
    data["A"] = data["A"] * 10.0 ** rng.uniform(-12, 12, SHAPE)
    data["row_lower"], data["row_upper"] = np.full(4, -INF), np.full(4, 1.0)
    found = pdopt.solve(make(data), max_iterations=20_000)
    assert found.reason in (Status.OPTIMAL, Status.ITERATION_LIMIT)
    again = make(data).residuals(found.pair)
    np.testing.assert_allclose(again.error, found.residuals.error, rtol=1e-6)
    assert (float(again.error) <= 1e-6) == (found.reason is Status.OPTIMAL)


def test_one_feasible_point_and_many_optima():
    point = {
        "c": np.array([1.0, 2.0]),
        "A": np.array([[1.0, 1.0], [1.0, -1.0]]),
        "row_lower": [1.0, 0.0],
        "row_upper": [1.0, 0.0],
    }
    found = pdopt.solve(make(embed(point)))
    np.testing.assert_allclose(found.x[:2], 0.5, atol=1e-5)
    face = {
        "c": np.array([1.0, 1.0]),
        "A": np.array([[1.0, 1.0]]),
        "row_lower": [1.0],
        "row_upper": [INF],
        "lower": [0.0, 0.0],
    }
    found = pdopt.solve(make(embed(face)))
    assert found.reason is Status.OPTIMAL
    assert float(found.objective) == pytest.approx(1.0, abs=1e-5)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tolerance": 0.0}, r"tolerance is 0.0; expected a number in \(0"),
        ({"tolerance": -1e-6}, "tolerance is"),
        ({"tolerance": np.nan}, "tolerance is nan"),
        ({"max_iterations": 0}, r"max_iterations is 0; expected a number in \[1"),
        ({"max_iterations": 2**40}, "max_iterations is"),
        ({"gradient": "unroled"}, "gradient is 'unroled'; expected one of"),
        ({"history": -1}, "history is -1"),
        ({"history": 2.5}, "history is 2.5"),
    ],
)
def test_an_option_outside_its_range_is_refused(option, message):
    with pytest.raises(InvalidOption, match=message):
        pdopt.solve(make(bounded_lp(1)), **option)


def test_a_problem_or_method_that_does_not_fit_is_refused():
    with pytest.raises(UnsupportedProblem, match="expected a pdopt problem"):
        pdopt.solve("afiro")


def test_a_tolerance_below_the_dtype_is_announced_and_never_met_falsely():
    data = {k: np.asarray(v, np.float32) for k, v in bounded_lp(1).items()}
    lp = make(data, dtype=jnp.float32)
    with pytest.warns(UserWarning, match="tolerance 1e-10 is below what float32 can reach, about 1.2e-06"):
        found = pdopt.solve(lp, tolerance=1e-10, max_iterations=640)
    assert found.reason is not Status.OPTIMAL or float(found.residuals.error) <= 1e-10


def test_the_history_is_a_table_of_checks():
    found = pdopt.solve(make(bounded_lp(1)), history=32)
    used = int(found.history.used)
    rows = np.asarray(found.history.rows)[:used]
    assert rows.shape[1] == len(pdopt.HISTORY)
    assert used >= 1
    assert np.all(np.diff(rows[:, 0]) > 0)
    assert rows[-1, 0] <= int(found.iterations)
    assert pdopt.solve(make(bounded_lp(1))).history is None
