"""The least squares behind mending: its minimum is that of a slow twin, bounds hold, and what nothing charges stays."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize

from pdopt.problems.hinge_squares import least_outside


def case(seed):
    """`min sum below (low - s)_+^2 + above (s - high)_+^2` with intervals, points and one-sided ends; its value."""
    rng = np.random.default_rng(seed)
    B, start = sp.csr_matrix(rng.normal(size=(30, 6))), 3 * rng.normal(size=30)
    below, above = rng.uniform(size=(2, 30)) ** 4
    low, high = np.sort(rng.normal(size=(2, 30)), axis=0)
    high[:5] = low[:5]
    low[5:10], high[10:15] = -np.inf, np.inf

    def value(v):
        s = start + B @ v
        return below @ np.maximum(low - s, 0) ** 2 + above @ np.maximum(s - high, 0) ** 2

    return (B, start, below, above, low, high), value


@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_that_of_a_slow_twin(seed):
    given, value = case(seed)
    for box in (np.inf, 0.3):
        twin = minimize(value, np.zeros(6), bounds=[(-box, box)] * 6, method="L-BFGS-B", tol=1e-14)
        v, products = least_outside(*given, lower=np.full(6, -box), upper=np.full(6, box))
        assert value(v) == pytest.approx(twin.fun, rel=1e-5)
        assert np.all(np.abs(v) <= box)
        assert products > 0
    assert value(v) > 1.01 * value(least_outside(*given)[0])  # the box of 0.3 does hold


def test_a_value_that_will_do_and_a_bound_on_the_work_end_it():
    given, value = case(0)
    begun, least = value(np.zeros(6)), value(least_outside(*given)[0])
    will_do = (begun + least) / 2
    assert least < value(least_outside(*given, enough=will_do)[0]) <= will_do
    v, products = least_outside(*given, products=1)
    assert value(v) <= begun
    assert products < 10
    np.testing.assert_array_equal(least_outside(*given, products=0)[0], 0)


def test_what_nothing_charges_stays():
    B = sp.csr_matrix([[1.0, 0.0], [1.0, 0.0]])
    v, _ = least_outside(B, np.array([1.0, 3.0]), np.ones(2), np.ones(2))
    np.testing.assert_allclose(v, [-2.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(least_outside(B, np.ones(2), np.zeros(2), np.zeros(2))[0], [0.0, 0.0])
    assert least_outside(sp.csr_matrix((0, 0)), np.zeros(0), np.zeros(0), np.zeros(0))[0].shape == (0,)
