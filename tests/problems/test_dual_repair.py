"""Multipliers of removed rows: those of an exact pair come back, and the minimum is that of a slow twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize

from pdopt.problems.dual_repair import _least, repaired_multipliers
from pdopt.problems.presolve import _matrix, presolve
from pdopt.types import Pair
from tests.problems.test_presolve import exact, random_program


@pytest.mark.parametrize("seed", range(3))
def test_lost_multipliers_of_an_exact_pair_are_found_again(seed):
    lp = random_program(seed)
    x, y = exact(lp)[0]
    rng = np.random.default_rng(seed)
    lost = np.sort(rng.choice(y.size, 4, replace=False))
    spoilt = y.copy()
    spoilt[lost] += rng.normal(size=4)
    found = repaired_multipliers(_matrix(lp), lp, x, spoilt, lost)
    np.testing.assert_array_equal(np.delete(found, lost), np.delete(y, lost))
    with jax.enable_x64(True):
        errors = [float(lp.residuals(Pair(jnp.asarray(x), jnp.asarray(v))).error) for v in (spoilt, found)]
    assert errors[0] > 1e-3
    assert errors[1] < 1e-6
    assert repaired_multipliers(_matrix(lp), lp, x, spoilt, np.zeros(0, np.int64)) is spoilt


def test_the_minimum_is_that_of_a_slow_twin():
    rng = np.random.default_rng(0)
    B, start = sp.csr_matrix(rng.normal(size=(30, 6))), rng.normal(size=30)
    negative, positive = rng.uniform(size=(2, 30)) ** 2

    def value(v):
        s = start + B @ v
        return np.where(s > 0, positive, negative) @ (s * s)

    twin = minimize(value, np.zeros(6), tol=1e-12)
    assert value(_least(B, start, negative, positive)) == pytest.approx(twin.fun, rel=1e-6)


def test_what_nothing_charges_stays():
    B = sp.csr_matrix([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(_least(B, np.array([1.0, 3.0]), np.ones(2), np.ones(2)), [-2.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(_least(B, np.ones(2), np.zeros(2), np.zeros(2)), [0.0, 0.0])


@pytest.mark.parametrize("maximise", [False, True])
def test_mending_keeps_what_is_left_and_takes_the_users_sense(maximise):
    lp = random_program(1, maximise)
    made = presolve(lp)
    inner = exact(made.problem)[0]
    pair = made.postsolve(inner)
    worse = Pair(pair.x, pair.y + 1.0)
    with jax.enable_x64(True):
        errors = [float(lp.residuals(Pair(*map(jnp.asarray, p))).error) for p in (worse, made.mended(inner, worse))]
    assert errors[0] > 1e-2
    assert errors[1] < 1e-6
