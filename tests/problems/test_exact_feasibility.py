"""Small programs decided exactly: what no point meets has a ray that is verified, and nothing else has one."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import pdopt
from pdopt.operators.convert import to_scipy
from pdopt.operators.implicit import Implicit
from pdopt.problems import exact_feasibility
from pdopt.problems.exact_feasibility import infeasibility


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def margin(lp, y):
    """`min over rows of y'r  -  max over the box of y'A x`, exactly: positive proves that there is no point."""
    exact = lambda v: [Fraction(float(e)) for e in np.asarray(v)]
    y, total = exact(y), Fraction(0)
    for value, low, high in zip(y, np.asarray(lp.row_lower), np.asarray(lp.row_upper)):
        side = low if value > 0 else high
        assert value == 0 or np.isfinite(side)
        total += value * Fraction(float(side)) if value else 0
    for j, column in enumerate(to_scipy(lp.A).toarray().T):
        z = sum((a * b for a, b in zip(exact(column), y)), Fraction(0))
        bound = float(np.asarray(lp.upper if z > 0 else lp.lower)[j])
        total -= z * Fraction(bound) if z else 0
    return total


def program(seed, gap, sparse=False):
    """Rows and bounds of all kinds, tight at one point; with `gap` > 0 every point breaks them.

    A ray y and reduced costs z = -A'y decide what is tight: rows and bounds that y and z push to hold at x0, the others
    are slack there. Then x0 is feasible and y'r = max over the box of y'A x; a row moved by `gap` makes it infeasible.
    """
    rng = np.random.default_rng(seed)
    m, n = 12, 15
    A = rng.integers(-3, 4, (m, n)) * (rng.random((m, n)) < 0.5)
    y = rng.integers(-2, 3, m)
    y[0] = 1
    kind = rng.integers(0, 3, n)  # free, a lower or an upper bound, besides what z needs
    z = -(y @ A)
    x = rng.integers(-5, 6, n).astype(float)
    row, slack = A @ x, rng.integers(1, 4, m)
    low = np.where(y > 0, row, np.where(rng.random(m) < 0.5, row - slack, -np.inf))
    high = np.where(y < 0, row, np.where(rng.random(m) < 0.5, row + slack, np.inf))
    lower = np.where(z > 0, x, np.where(kind == 1, x - 1, -np.inf))
    upper = np.where(z < 0, x, np.where(kind == 2, x + 2, np.inf))
    low[0] += gap
    high[0] = max(high[0], low[0])
    A = sp.csr_matrix(A) if sparse else A
    return pdopt.LinearProgram(np.zeros(n), A, low, high, lower, upper, dtype=jnp.float64), x


def proves(lp, y):
    return y is not None and bool(lp.rays(pdopt.Pair(jnp.zeros_like(lp.c), jnp.asarray(y))).primal_infeasible)


@pytest.mark.parametrize("seed", range(20))
def test_what_one_point_meets_has_no_ray(seed):
    lp, x = program(seed, 0.0)
    assert infeasibility(lp, x) is None
    for start in (x + 1e-3 * np.random.default_rng(seed).normal(size=x.size), np.zeros(x.size)):
        assert not proves(lp, infeasibility(lp, start))


@pytest.mark.parametrize("gap", [1.0, 1e-5])
@pytest.mark.parametrize("seed", range(10))
def test_what_no_point_meets_has_a_verified_one(seed, gap):
    lp, x = program(seed, gap, sparse=seed % 2 == 1)
    assert proves(lp, infeasibility(lp, x))


def test_a_box_of_nearly_contradicting_rows_is_proved_exactly():
    """Every column has bounds, so the ray must hold with nothing dropped: in rational arithmetic."""
    rng = np.random.default_rng(3)
    A = rng.random((6, 8))
    rows, high = np.vstack([A, A.sum(axis=0)]), A @ np.full(8, 0.5)
    low = np.append(np.full(6, -np.inf), high.sum() + 1e-10)
    lp = pdopt.LinearProgram(np.zeros(8), rows, low, np.append(high, np.inf), np.zeros(8), np.ones(8),
                             dtype=jnp.float64)  # fmt: skip
    y = infeasibility(lp, np.full(8, 0.5))
    assert y is not None
    assert float(margin(lp, y)) == pytest.approx(1e-10 * y[-1], rel=1e-4)
    met = lp.replace(row_lower=lp.row_lower.at[-1].add(-2e-10))
    assert infeasibility(met, np.full(8, 0.5)) is None


def test_large_and_implicit_programs_are_left(monkeypatch):
    lp, x = program(0, 1.0)
    monkeypatch.setattr(exact_feasibility, "LARGEST", 10)
    assert infeasibility(lp, x) is None
    monkeypatch.undo()
    A = Implicit((), lambda _, x: x[:1] + x[1:], lambda _, y: jnp.concatenate([y, y]), (1, 2))
    implicit = pdopt.LinearProgram([1.0, 1.0], A, [3.0], [3.0], [0.0, 0.0], [1.0, 1.0], dtype=jnp.float64)
    assert infeasibility(implicit, np.ones(2)) is None
