"""The guard raises or gives NaN, never a silent zero; the envelope has the value of one and the slope of the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import UnsupportedProblem
from pdopt.rules.implicit import envelope, guard
from pdopt.types import Pair

C = jnp.array([1.0, 2.0, 3.0])


def pair(c):
    return guard(Pair(jax.lax.stop_gradient(2 * c), jnp.int32(4)), (c, jnp.arange(3)))


def test_the_guard_changes_no_value():
    for run in (pair, jax.jit(pair)):
        np.testing.assert_array_equal(run(C).x, 2 * C)
        assert int(run(C).y) == 4
    np.testing.assert_array_equal(jax.vmap(pair)(jnp.stack([C, C])).x, jnp.stack([2 * C, 2 * C]))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: lambda c: jax.jit(jax.vmap(f))(c[None])[0]])
def test_reverse_mode_raises(wrap):
    with pytest.raises(UnsupportedProblem, match=r"differentiate solution\.objective"):
        jax.grad(lambda c: jnp.sum(wrap(lambda c: pair(c).x)(c)))(C)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_forward_mode_is_nan(wrap):
    value, slope = jax.jvp(wrap(lambda c: pair(c).x), (C,), (jnp.ones(3),))
    np.testing.assert_array_equal(value, 2 * C)
    assert np.all(np.isnan(slope))
    assert np.all(np.isnan(jax.jacfwd(lambda c: pair(c).x)(C)))


def test_a_gradient_that_does_not_use_the_pair_passes():
    slope = jax.grad(lambda c: jnp.sum(c * c) + 0 * jax.lax.stop_gradient(pair(c).x[0]))(C)
    np.testing.assert_array_equal(slope, 2 * C)


def test_the_envelope_has_the_value_of_one_and_the_slope_of_the_other():
    f = lambda c: envelope(jnp.float32(7.0), lambda d: jnp.sum(d**3), c)
    assert float(f(C)) == 7.0
    np.testing.assert_allclose(jax.grad(f)(C), 3 * C**2)
    np.testing.assert_allclose(jax.jvp(f, (C,), (jnp.ones(3),))[1], 3 * float(jnp.sum(C**2)))
    assert np.isnan(np.asarray(jax.hessian(f)(C))).all()
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(jnp.stack([C, -C])), 3 * np.stack([C**2, C**2]))
