"""Richardson extrapolation: exact on polynomials in 1/c, and silent where there is nothing to extrapolate."""

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.rules.richardson import richardson


def points(function, count, ratio=2.0):
    return tuple({"u": jnp.asarray(function(5.0 * ratio**k), jnp.float32)} for k in range(count))


def test_it_is_exact_on_a_polynomial_of_its_order():
    found = richardson(points(lambda c: [1 + 3 / c - 2 / c**2], 3), 2.0)
    assert int(found.order) == 2
    np.testing.assert_allclose(found.point["u"], 1.0, atol=1e-5)


def test_another_ratio_needs_another_table():
    found = richardson(points(lambda c: [1 + 3 / c - 2 / c**2], 3, 3.0), 3.0)
    np.testing.assert_allclose(found.point["u"], 1.0, atol=1e-5)
    wrong = richardson(points(lambda c: [1 + 3 / c - 2 / c**2], 3, 3.0), 2.0)
    assert abs(float(wrong.point["u"][0]) - 1) > 1e-2


def test_two_points_are_not_enough_and_missing_ones_are_nan():
    newest = points(lambda c: [1 + 3 / c], 2)
    assert int(richardson(newest, 2.0).order) == 0
    nothing = {"u": jnp.full(1, jnp.nan)}
    found = richardson((nothing, nothing, *newest), 2.0)
    assert int(found.order) == 0
    np.testing.assert_array_equal(found.point["u"], newest[-1]["u"])


def test_a_kink_in_the_path_falls_back_to_the_newest_point():
    bent = points(lambda c: [1.0 if c < 15 else 2.0], 4)  # the active set changed: differences grow
    found = richardson(bent[:3], 2.0)
    assert int(found.order) == 0
    np.testing.assert_array_equal(found.point["u"], bent[2]["u"])


def test_it_is_traceable():
    batch = jax.vmap(lambda a: richardson(points(lambda c: a / c, 3), 2.0).point["u"])(jnp.ones((4, 1)))
    np.testing.assert_allclose(batch, 0, atol=1e-6)
