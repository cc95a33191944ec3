"""Every cost operator against the matrix it stands for, in blocks that do and do not divide the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidProblem
from pdopt.problems import costs
from pdopt.problems.costs import DenseCost, as_cost
from pdopt.problems.grid_cost import Grid
from pdopt.problems.point_costs import LowRank, SqEuclidean


def made(kind, dtype):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    if kind == "dense":
        return DenseCost(draw(12, 6))
    if kind == "points":
        return SqEuclidean(draw(12, 3), draw(6, 3))
    if kind == "low rank":
        return LowRank(draw(12, 2), draw(6, 2))
    return Grid((draw(3, 2), draw(4, 3)))


KINDS = ("dense", "points", "low rank", "grid")


@pytest.mark.parametrize("rows", [1, 5, 4, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_verbs_are_those_of_the_matrix(kind, rows, monkeypatch):
    """Blocks of 5 rows leave a remainder of 2, blocks of 4 none."""
    monkeypatch.setattr(costs, "WHOLE_ENTRIES", 0)
    monkeypatch.setattr(costs, "BLOCK_ENTRIES", 6 * rows)
    with jax.enable_x64(True):
        cost = made(kind, jnp.float64)
        C = np.asarray(cost.block(0, 12))
        assert cost.block_rows == (12 if kind == "dense" else rows)
        g, f = jnp.arange(6.0), jnp.arange(12.0)
        np.testing.assert_allclose(cost.todense(), C, rtol=1e-13)
        np.testing.assert_allclose(cost.block(3, 2), C[3:5], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(cost.transpose().todense(), C.T, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(cost.min_rows(g), (C - np.arange(6.0)).min(1), rtol=1e-12, atol=1e-13)
        h = jnp.where(g == 2, -jnp.inf, g)
        kept = np.delete(np.arange(6), 2)
        expected = -0.5 * np.log(np.exp(kept - C[:, kept] / 0.5).sum(1))
        np.testing.assert_allclose(cost.softmin_rows(h, 0.5), expected, rtol=1e-12)
        np.testing.assert_allclose(cost.largest(), np.abs(C).max(), rtol=1e-12)
        np.testing.assert_allclose(cost.mean(), C.mean(), rtol=1e-11, atol=1e-14)
        rows_and_f = cost.rows(lambda block, part: jnp.sum(block, axis=1) * part, f)
        np.testing.assert_allclose(rows_and_f, C.sum(1) * np.arange(12), rtol=1e-12, atol=1e-12)
        columns = cost.sums(lambda block, part, present: (block * (part * present)[:, None]).sum(0), f)
        np.testing.assert_allclose(columns, np.arange(12) @ C, rtol=1e-12, atol=1e-12)


def test_squared_distances_survive_a_far_origin():
    """float32: points near (1000, 1000) whose distances are about 1; the error is relative to those distances."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((30, 2)) + 1000, rng.standard_normal((20, 2)) + 1000
    x, y = x.astype(np.float32), y.astype(np.float32)
    exact = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(2)
    found = SqEuclidean(jnp.asarray(x), jnp.asarray(y)).todense()
    # The mean is rounded to 1e-7 of 1000; both sides share that shift, the differences do not see it.
    np.testing.assert_allclose(found, exact, atol=40 * np.finfo(np.float32).eps * exact.max())


def test_bad_costs_are_refused():
    with pytest.raises(InvalidProblem, match=r"y has points of 3 dimensions; expected 2"):
        SqEuclidean(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(InvalidProblem, match=r"x has shape \(4,\); expected \(points, dimensions\)"):
        SqEuclidean(np.zeros(4), np.zeros((4, 3)))
    with pytest.raises(InvalidProblem, match=r"U has shape \(4, 2\) and V \(3, 1\)"):
        LowRank(np.zeros((4, 2)), np.zeros((3, 1)))
    with pytest.raises(InvalidProblem, match=r"axes have shapes \[\(4,\)\]"):
        Grid([np.zeros(4)])
    with pytest.raises(InvalidProblem, match=r"cost has shape \(4,\); expected \(n, m\)"):
        as_cost(np.zeros(4), jnp.float32)
