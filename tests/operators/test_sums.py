"""Inner products of changes, slice by slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.operators.sums import Change, dots, inner, mean, totals
from pdopt.runtime.batching import minor


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 71, 1030])
def test_every_entry_counts_once(size: int) -> None:
    rng = np.random.default_rng(size)
    a, b, c, d = rng.integers(-9, 9, (4, size)).astype(np.float32)
    assert float(inner(Change(a, b), Change(c, d))) == (a - b) @ (c - d)  # small integers: exact in any order


@pytest.mark.parametrize("size", [8, 71])
def test_products_with_rows_are_those_of_numpy(size: int) -> None:
    rows = np.random.default_rng(size).integers(-9, 9, (3, size)).astype(np.float32)
    for last in (rows, rows[:, 5:]):
        np.testing.assert_array_equal(dots(jnp.asarray(rows), jnp.asarray(last[1])), last @ last[1])
    weights = np.array([1.0, -2.0, 3.0], np.float32)
    np.testing.assert_array_equal(mean(jnp.asarray(weights), jnp.asarray(rows)), weights @ rows)


def test_a_member_of_a_batch_rounds_as_it_does_alone() -> None:
    values = np.random.default_rng(0).standard_normal((5, 2, 300)).astype(np.float32)
    for function in (lambda v: inner(Change(v[0], v[1]), Change(v[0], v[1])), lambda v: mean(dots(v, v[1, 9:]), v)):
        together = jax.jit(jax.vmap(minor(function)))(jnp.asarray(values))
        alone = [jax.jit(function)(jnp.asarray(v)) for v in values]
        np.testing.assert_array_equal(together, np.stack(alone))


def _totals(v: jax.Array) -> list[jax.Array]:
    return totals([v[0], v[0] * v[1]], [v[1] - v[0]])


@pytest.mark.parametrize("size", [0, 1, 9, 300])
def test_totals_are_sums_and_largest_entries(size: int) -> None:
    v = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    expected = [v[0].sum(), v[0] @ v[1], max((v[1] - v[0]).max(initial=0), 0)]
    np.testing.assert_allclose(_totals(jnp.asarray(v)), expected, rtol=1e-4, atol=1e-5)


def test_totals_pass_a_nan_on_and_have_a_derivative() -> None:
    v = jnp.array([[1.0, 2.0], [4.0, 9.0]], jnp.float32)
    assert all(np.isnan(total) for total in _totals(v.at[0, 1].set(jnp.nan)))
    slope = jax.grad(lambda v: jnp.stack(_totals(v)).sum())(v)
    np.testing.assert_array_equal(slope, [[5.0, 9.0], [1.0, 3.0]])  # 1 + v_1 and v_0, -1 and 1 at the largest


def test_totals_of_a_member_round_as_they_do_alone() -> None:
    values = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2, 300)).astype(np.float32))
    together = jax.jit(jax.vmap(minor(_totals)))(values)
    alone = [jax.jit(_totals)(v) for v in values]
    np.testing.assert_array_equal(jnp.stack(together), np.stack(alone, 1))
