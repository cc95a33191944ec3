"""Inner products of changes, slice by slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.operators.sums import Change, inner
from pdopt.runtime.batching import minor


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 71, 1030])
def test_every_entry_counts_once(size: int) -> None:
    rng = np.random.default_rng(size)
    a, b, c, d = rng.integers(-9, 9, (4, size)).astype(np.float32)
    assert float(inner(Change(a, b), Change(c, d))) == (a - b) @ (c - d)  # small integers: exact in any order


def test_a_member_of_a_batch_rounds_as_it_does_alone() -> None:
    values = np.random.default_rng(0).standard_normal((5, 2, 300)).astype(np.float32)
    square = lambda v: inner(Change(v[0], v[1]), Change(v[0], v[1]))
    together = jax.jit(jax.vmap(minor(square)))(jnp.asarray(values))
    alone = [jax.jit(square)(jnp.asarray(v)) for v in values]
    np.testing.assert_array_equal(together, np.stack(alone))
