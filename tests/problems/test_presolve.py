"""Presolve and the way back: exact where the reduced pair is exact, and honest about what it decided."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog

import pdopt
from pdopt.errors import UnsupportedProblem
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.implicit import Implicit
from pdopt.problems.presolve import presolve
from pdopt.types import Pair

INF = np.inf


def random_program(seed, maximise=False):
    """A feasible, bounded program with everything that presolve removes: fixed and empty columns, single rows."""
    rng = np.random.default_rng(seed)
    m, n = 12, 16
    A = rng.integers(-3, 4, (m, n)) * (rng.random((m, n)) < 0.3)
    A[0], A[1] = 0, 0
    A[1, 2], A[:, 5] = 2, 0
    point = rng.integers(0, 4, n).astype(float)
    activity = A @ point
    low = np.where(rng.random(m) < 0.7, activity - rng.integers(0, 2, m), -INF)
    high = np.where(rng.random(m) < 0.5, activity + rng.integers(0, 2, m), INF)
    lower, upper = np.zeros(n), np.full(n, 6.0)
    lower[3] = upper[3] = point[3]
    c = rng.integers(-5, 6, n).astype(float)
    with jax.enable_x64(True):
        return pdopt.LinearProgram(c, sp.csr_matrix(A), low, high, lower, upper, 1.5, maximise, dtype=jnp.float64)


def exact(lp):
    """The optimal pair of a minimisation by HiGHS's simplex, `y` the signed row dual."""
    A = np.asarray(lp.A.todense() if hasattr(lp.A, "todense") else lp.A.toarray())
    low, high = np.asarray(lp.row_lower), np.asarray(lp.row_upper)
    below, above = np.isfinite(low), np.isfinite(high)
    found = linprog(
        np.asarray(lp.c), np.vstack([A[above], -A[below]]), np.concatenate([high[above], -low[below]]),
        bounds=np.column_stack([lp.lower, lp.upper]),
    )  # fmt: skip
    assert found.status == 0
    y = np.zeros(low.size)
    y[above] += found.ineqlin.marginals[: above.sum()]
    y[below] -= found.ineqlin.marginals[above.sum() :]
    return Pair(found.x, y), found.fun + float(lp.offset)


@pytest.mark.parametrize("maximise", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_an_exact_reduced_pair_comes_back_exact(seed, maximise):
    lp = random_program(seed, maximise)
    made = presolve(lp)
    assert made.found in ("reduced", "empty")
    assert sum(made.removed) > 0
    pair = Pair([], []) if made.found == "empty" else exact(made.problem)[0]
    back = made.postsolve(pair)
    with jax.enable_x64(True):
        found = lp.optimality(Pair(*map(jnp.asarray, back)))
        assert float(found.residuals.error) < 1e-9
        assert float(found.objective) == pytest.approx(lp.sense * exact(lp.minimised())[1], abs=1e-8)


def test_what_is_left_keeps_its_place():
    lp = random_program(0)
    made = presolve(lp)
    assert made.found == "reduced"
    assert made.problem.shape == (made.rows.size, made.columns.size)
    assert 0 not in made.rows
    assert not {3, 5} & set(made.columns)
    pair = made.into(Pair(np.arange(16.0), np.arange(12.0)))
    np.testing.assert_array_equal(pair.x, made.columns)
    np.testing.assert_array_equal(pair.y, made.rows)


def test_the_dtype_stays():
    lp = pdopt.LinearProgram([1.0, 2.0, 1.0], [[1.0, 1.0, 0.0], [1.0, -1.0, 1.0]], [1.0, 0.5], [INF, 4.0],
                             [0.0] * 3, [5.0] * 3, dtype=jnp.float32)  # fmt: skip
    made = presolve(lp)
    pair = made.postsolve(Pair([], []) if made.problem is None else exact(made.problem)[0])
    assert pair.x.dtype == pair.y.dtype == np.float32


def test_what_it_decides_and_what_it_leaves_open():
    make = lambda low, high, c=(1.0, 1.0), upper=9.0: pdopt.LinearProgram(
        list(c), [[1.0, 1.0], [1.0, -1.0]], low, high, [0.0, 0.0], [upper, upper], dtype=jnp.float32
    )
    assert presolve(make([50.0, 0.0], [60.0, 0.0])).found == "infeasible"
    assert presolve(make([2.0, 1.0], [3.0, 0.0])).found == "unchanged"  # crossed bounds: the solver's to say
    open_ = presolve(make([2.0, -INF], [INF, INF], (-1.0, 0.0), INF))
    assert open_.found == "undecided"
    assert open_.problem.shape == (2, 2)
    assert open_.removed == (0, 0)


def test_a_diagonal_matrix_is_looked_at():
    A = Diagonal(jnp.array([1.0, 2.0], jnp.float32))
    lp = pdopt.LinearProgram([1.0, 2.0], A, [1.0, 2.0], [9.0, 9.0], [0.0, 0.0], [5.0, 5.0], dtype=jnp.float32)
    made = presolve(lp)
    assert made.found == "empty"
    np.testing.assert_array_equal(made.postsolve(Pair([], [])).x, [1.0, 1.0])


def test_what_it_cannot_look_at_is_refused():
    qp = pdopt.QuadraticProgram([[1.0]], [0.0], [[1.0]], [1.0], [1.0], dtype=jnp.float32)
    with pytest.raises(UnsupportedProblem, match="QuadraticProgram; presolve takes a LinearProgram"):
        presolve(qp)
    A = Implicit((), lambda _, x: x, lambda _, y: y, (4, 4))
    lp = pdopt.LinearProgram(jnp.ones(4), A, jnp.ones(4), jnp.ones(4), jnp.zeros(4), dtype=jnp.float32)
    with pytest.raises(UnsupportedProblem, match="without entries"):
        presolve(lp)


def test_postsolve_says_when_it_cannot(monkeypatch):
    made = presolve(random_program(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ArithmeticError, match="postsolve"):
            made.postsolve(Pair(np.full(made.columns.size, np.nan), np.zeros(made.rows.size)))


def test_an_equation_that_depends_on_others_stays():
    """Of a transport problem's: HiGHS would take one out, and iterates are the better for it."""
    size = 12
    rows, columns = np.divmod(np.arange(size * size), size)
    entry = np.arange(size * size)
    A = sp.csr_matrix(
        (np.ones(2 * size * size), (np.concatenate([rows, size + columns]), np.concatenate([entry, entry]))),
        shape=(2 * size, size * size),
    )
    costs = np.random.default_rng(0).integers(1, 50, size * size).astype(float)
    with jax.enable_x64(True):
        lp = pdopt.LinearProgram(costs, A, *(np.ones(2 * size),) * 2, np.zeros(size * size), dtype=jnp.float64)
        assert presolve(lp).removed[0] == 0
