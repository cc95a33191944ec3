"""The reliability table, rows 1 to 39, as far as linear programs and `solve` go: one case a row.

Each row ends in one of three ways: an error before compilation that names the argument, a status with a proof or true
residuals, or a right answer. Rows whose whole table of inputs is elsewhere (`tests/problems/test_linear.py` for the
constructor, `tests/test_solve.py` for solved edge cases) have their one representative here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.operators.sparse import Sparse
from pdopt.types import Pair, Status

INF = np.inf
M, N = 3, 4  # one shape: one compilation a storage


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def data(**changes):
    """min -x0 - x1 over the box [0, 1]^4 with x0 + x1 <= 1.5: value -1.5."""
    A = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, -1.0]])
    good = {
        "c": np.array([-1.0, -1.0, 0.0, 0.0]),
        "A": A,
        "row_lower": np.full(M, -INF),
        "row_upper": np.array([1.5, 5.0, 5.0]),
        "lower": np.zeros(N),
        "upper": np.ones(N),
    }
    return good | changes


def lp(**changes):
    return pdopt.LinearProgram(**data(**changes))


def solve(**changes):
    return pdopt.solve(lp(**changes), max_iterations=20_000)


def optimal(found, objective):
    return found.reason is Status.OPTIMAL and float(found.objective) == pytest.approx(objective, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["c", "A", "row_lower", "row_upper", "lower", "upper"])
def test_row_1_nan_at_a_random_place(name, seed):
    array = np.array(data()[name])
    place = tuple(np.random.default_rng(seed).integers(0, size) for size in array.shape)
    array[place] = np.nan
    where = str(int(place[0])) if len(place) == 1 else str(tuple(int(k) for k in place))
    with pytest.raises(InvalidProblem) as caught:
        lp(**{name: array})
    assert str(caught.value) == f"{name} has 1 NaN at index {where}"


def test_row_2_infinity_is_only_a_side():
    for changes in (
        {"c": [INF, 0, 0, 0]},
        {"A": np.full((M, N), INF)},
        {"row_lower": np.full(M, INF), "row_upper": np.full(M, INF)},
    ):
        with pytest.raises(InvalidProblem, match="infinity"):
            lp(**changes)


def test_row_3_bounds_infinite_on_the_wrong_side():
    with pytest.raises(InvalidProblem, match=r"lower has 1 \+infinity at index 2"):
        lp(lower=[0, 0, INF, 0])
    with pytest.raises(InvalidProblem, match="upper has 1 -infinity at index 0"):
        lp(upper=[-INF, 1, 1, 1])


def test_row_4_crossed_bounds_are_a_status_before_iterating():
    for changes in ({"lower": [2.0, 0, 0, 0]}, {"row_lower": np.array([-INF, 6.0, -INF])}):
        found = solve(**changes)
        assert found.reason is Status.PRIMAL_INFEASIBLE
        assert int(found.iterations) == 0


def test_row_5_fixed_variables_and_free_rows():
    assert optimal(solve(lower=[0.25, 0, 0, 0], upper=[0.25, 1, 1, 1], row_upper=[INF] * M), -1.25)


@pytest.mark.parametrize("name", ["c", "row_lower", "row_upper", "lower", "upper"])
def test_row_6_shapes(name):
    size = data()[name].size
    with pytest.raises(InvalidProblem, match=rf"{name} has shape \({size + 1},\); expected \({size},\) because A has"):
        lp(**{name: np.zeros(size + 1)})
    with pytest.raises(InvalidProblem, match=rf"{name} has shape \({size}, 1\)"):
        lp(**{name: np.zeros((size, 1))})


def test_row_9_an_empty_row():
    A = data()["A"]
    A[1] = 0
    assert optimal(solve(A=A), -1.5)
    assert float(solve(A=A).y[1]) == 0
    found = solve(A=A, row_lower=np.array([-INF, 1.0, -INF]))
    assert found.reason is Status.PRIMAL_INFEASIBLE
    assert abs(float(found.certificate.ray.y[1])) == 1.0


def test_row_10_an_empty_column():
    A = data()["A"]
    A[:, 2] = 0
    found = solve(A=A, c=np.array([-1.0, -1.0, 2.0, 0.0]), lower=[0, 0, -3.0, 0])
    assert optimal(found, -7.5)
    assert float(found.x[2]) == pytest.approx(-3)
    found = solve(A=A, c=np.array([-1.0, -1.0, 2.0, 0.0]), lower=[0, 0, -INF, 0])
    assert found.reason is Status.DUAL_INFEASIBLE


def test_row_11_a_zero_matrix():
    assert optimal(solve(A=np.zeros((M, N))), -2.0)
    assert solve(A=np.zeros((M, N)), row_upper=[-1.0, 5, 5]).reason is Status.PRIMAL_INFEASIBLE


def test_row_12_integers_give_the_answer_of_floats():
    whole = lp(
        c=np.array([-1, -1, 0, 0]), A=data()["A"].astype(np.int8), lower=np.zeros(N, bool), upper=np.ones(N, np.uint8)
    )
    assert whole.c.dtype == np.float64
    assert float(pdopt.solve(whole).objective) == float(pdopt.solve(lp()).objective)


def test_row_13_low_precision():
    with pytest.raises(InvalidProblem, match="c is float16"):
        lp(c=data()["c"].astype(np.float16))


def test_row_14_float64_without_x64():
    with jax.enable_x64(False), pytest.warns(UserWarning, match=r"pass dtype=jnp\.float64 to keep float64"):
        assert lp().c.dtype == np.float32
    with jax.enable_x64(False):
        kept = pdopt.LinearProgram(**data(), dtype=jnp.float64)
        assert optimal(pdopt.solve(kept), -1.5)


def test_row_15_mixed_types_take_the_widest():
    mixed = lp(c=jnp.asarray(data()["c"], jnp.float32), upper=jnp.ones(N, jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed)} == {np.dtype(np.float64)}


def stored(row, column, values):
    return Sparse.from_entries(row, column, values, (M, N), jnp.float64)


def test_row_16_and_18_duplicates_zeros_and_order():
    row, column = np.nonzero(data()["A"])
    values = data()["A"][row, column]
    messy = stored([*row, 0, 0, 2], [*column, 0, 3, 1], [*values - [1, 0, 0, 0, 0, 0][: values.size], 1.0, 0.0, 0.0])
    shuffled = np.random.default_rng(0).permutation(values.size)
    tidy = stored(row[shuffled], column[shuffled], values[shuffled])
    np.testing.assert_array_equal(messy.toarray(), data()["A"])
    np.testing.assert_array_equal(tidy.toarray(), data()["A"])
    one, other = pdopt.solve(lp(A=messy)), pdopt.solve(lp(A=tidy))
    assert optimal(one, -1.5)
    np.testing.assert_array_equal(one.x, other.x)


def test_row_17_an_index_out_of_range():
    for row, column in (([3], [0]), ([-1], [0]), ([0], [4]), ([0], [-1])):
        with pytest.raises(InvalidProblem, match=r"index .* at entry 0; expected 0 to"):
            stored(row, column, [1.0])
    with pytest.raises(ValueError, match=r"exceeds|range"):  # SciPy's own matrices cannot even be made so
        sp.coo_matrix(([1.0], ([3], [0])), shape=(M, N))


def test_row_19_many_magnitudes():
    A = data()["A"] * np.array([[1e-12], [1.0], [1e12]])
    found = solve(A=A)
    again = lp(A=A).residuals(found.pair)
    assert found.reason in (Status.OPTIMAL, Status.ITERATION_LIMIT)
    assert (float(again.error) <= 1e-6) == (found.reason is Status.OPTIMAL)


CAUSES = {
    "a row beyond its columns": {"row_lower": np.array([2.5, -INF, -INF])},
    "two rows": {
        "row_lower": np.array([-INF, -INF, 0.9]),
        "row_upper": np.array([0.2, 5.0, 5.0]),
        "lower": np.full(N, -5.0),
        "upper": np.full(N, 5.0),
    },
    "an empty row": {"A": np.diag([1.0, 1, 0])[:, [0, 1, 2, 2]], "row_lower": np.array([-INF, -INF, 0.5])},
    "an equality": {"row_lower": np.array([-INF, 2.25, -INF]), "row_upper": np.array([1.5, 2.25, 5.0])},
}
CAUSES["two rows"]["A"] = np.array([[1.0, 1, 1, 1], [0, 0, 1, 1], [1.0, 1, 1, 1]])


@pytest.mark.parametrize("cause", CAUSES)
def test_row_20_infeasible(cause):
    problem = data(**CAUSES[cause])
    found = solve(**CAUSES[cause])
    if cause == "a row beyond its columns":  # crossed with its own upper side: decided before any iteration
        assert found.reason is Status.PRIMAL_INFEASIBLE
        assert int(found.iterations) == 0
        problem["row_upper"] = np.array([3.0, 5.0, 5.0])
        found = solve(**(CAUSES[cause] | {"row_upper": problem["row_upper"]}))
    assert found.reason is Status.PRIMAL_INFEASIBLE
    dy = np.asarray(found.certificate.ray.y)
    rl, ru = problem["row_lower"], problem["row_upper"]
    assert np.all(dy[np.isinf(rl)] <= 0)
    assert np.all(dy[np.isinf(ru)] >= 0)
    z = -problem["A"].T @ dy
    # Every column has two bounds, so nothing is dropped from z and q > 0 alone is the proof.
    q = np.where(dy > 0, np.where(np.isfinite(rl), rl, 0), np.where(np.isfinite(ru), ru, 0)) @ dy
    q += np.where(z > 0, problem["lower"], problem["upper"]) @ z
    assert q > 1e-9


def test_row_21_unbounded():
    found = solve(upper=np.full(N, INF), row_upper=np.array([INF, 5.0, 5.0]))
    assert found.reason is Status.DUAL_INFEASIBLE
    d = np.asarray(found.certificate.ray.x)
    assert np.all(d >= 0)
    assert data()["c"] @ d < 0
    assert np.all((data()["A"] @ d)[1:] <= 2e-8 * -(data()["c"] @ d))


def test_row_22_both_infeasible():
    found = solve(upper=[INF, INF, 1, 1], row_lower=np.array([-INF, 3.0, -INF]), row_upper=np.array([INF, 5.0, INF]))
    assert found.reason.proved


def test_row_23_no_interior():
    found = solve(row_lower=np.array([2.0, -INF, -INF]), row_upper=np.array([2.0, 5, 5]))
    assert optimal(found, -2.0)


@pytest.mark.parametrize(
    "option",
    [
        {"tolerance": 0},
        {"tolerance": -1.0},
        {"tolerance": np.nan},
        {"max_iterations": -1},
        {"history": -3},
        {"gradient": "x"},
    ],
)
def test_row_25_options_out_of_range(option):
    with pytest.raises(InvalidOption, match=next(iter(option))):
        pdopt.solve(lp(), **option)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pdopt.PDHG(every=0),
        lambda: pdopt.PDHG(every=1.5),
        lambda: pdopt.PDHG("halpen"),
        lambda: pdopt.PDHG(pdopt.PDHG().acceleration.replace(reflection=1.5)),
        lambda: pdopt.PDHG(acceleration=3),
        lambda: pdopt.PDHG(stepsize=pdopt.PDHG().stepsize.replace(factor=np.nan)),
    ],
)
def test_row_25_settings_out_of_range(make):
    with pytest.raises(InvalidOption):
        make()


def test_row_26_a_misspelt_name():
    with pytest.raises(InvalidOption, match="did you mean 'halpern'"):
        pdopt.PDHG("halpen")
    with pytest.raises(TypeError, match="tolerence"):
        pdopt.solve(lp(), tolerence=1e-3)


def test_row_27_a_tolerance_below_the_dtype():
    low = pdopt.LinearProgram(**data(c=np.array([-0.3, -0.7, 0.1, 0.2])), dtype=jnp.float32)
    with pytest.warns(UserWarning, match="below what float32 can reach"):
        found = pdopt.solve(low, tolerance=1e-10, max_iterations=256)
    limits = (Status.ITERATION_LIMIT, Status.PRECISION_LIMIT)
    assert found.reason in limits or float(found.residuals.error) <= 1e-10


def test_row_28_starts_outside_or_nan():
    far = Pair(np.full(N, 9.0), np.full(M, 9.0))
    assert optimal(pdopt.solve(lp(), start=far), -1.5)
    with pytest.raises(InvalidProblem, match=r"start\.x has NaN"):
        pdopt.solve(lp(), start=Pair(np.full(N, np.nan), np.zeros(M)))


def test_row_29_and_30_an_optimal_start():
    best = Pair(np.array([0.5, 1.0, 0.5, 0.5]), np.array([-1.0, 0.0, 0.0]))
    found = pdopt.solve(lp(), start=best)
    assert int(found.iterations) == 0
    assert optimal(found, -1.5)
    # A step that does not move (c = 0, the start is optimal for every y): no endless loop.
    assert optimal(pdopt.solve(lp(c=np.zeros(N)), max_iterations=64), 0.0)


def test_row_35_a_bad_member_of_a_batch():
    costs = np.tile(data()["c"], (8, 1)) * np.linspace(0.5, 2, 8)[:, None]
    run = jax.jit(jax.vmap(lambda c: pdopt.solve(lp().replace(c=c))))
    clean = run(jnp.asarray(costs))
    costs[5, 2] = np.nan
    hurt = run(jnp.asarray(costs))
    assert int(hurt.status[5]) == Status.INVALID_PROBLEM
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(hurt)):
        np.testing.assert_array_equal(np.delete(np.asarray(a), 5, 0), np.delete(np.asarray(b), 5, 0))


def test_row_39_the_same_call_twice_gives_the_same_bits():
    one, two = pdopt.solve(lp(), history=4), pdopt.solve(lp(), history=4)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        np.testing.assert_array_equal(a, b)
