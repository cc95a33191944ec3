"""Inner products of changes, slice by slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.operators.sums import Change, dots, inner, mean
from pdopt.runtime.batching import minor


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 71, 1030])
def test_every_entry_counts_once(size: int) -> None:
    rng = np.random.default_rng(size)
    a, b, c, d = rng.integers(-9, 9, (4, size)).astype(np.float32)
    assert float(inner(Change(a, b), Change(c, d))) == (a - b) @ (c - d)  # small integers: exact in any order


@pytest.mark.parametrize("size", [8, 71])
def test_products_with_rows_are_those_of_numpy(size: int) -> None:
    rows = np.random.default_rng(size).integers(-9, 9, (3, size)).astype(np.float32)
    np.testing.assert_array_equal(dots(jnp.asarray(rows), jnp.asarray(rows[1])), rows @ rows[1])
    weights = np.array([1.0, -2.0, 3.0], np.float32)
    np.testing.assert_array_equal(mean(jnp.asarray(weights), jnp.asarray(rows)), weights @ rows)


def test_a_member_of_a_batch_rounds_as_it_does_alone() -> None:
    values = np.random.default_rng(0).standard_normal((5, 2, 300)).astype(np.float32)
    for function in (lambda v: inner(Change(v[0], v[1]), Change(v[0], v[1])), lambda v: mean(dots(v, v[1]), v)):
        together = jax.jit(jax.vmap(minor(function)))(jnp.asarray(values))
        alone = [jax.jit(function)(jnp.asarray(v)) for v in values]
        np.testing.assert_array_equal(together, np.stack(alone))
