"""Multipliers of removed rows: those of an exact pair come back, and spoilt ones of rows that were left too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.operators.convert import to_scipy
from pdopt.problems.dual_repair import repaired_multipliers
from pdopt.problems.presolve import presolve
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
    found = next(repaired_multipliers(to_scipy(lp.A), lp, x, spoilt, lost))
    np.testing.assert_array_equal(np.delete(found, lost), np.delete(y, lost))
    with jax.enable_x64(True):
        errors = [float(lp.residuals(Pair(jnp.asarray(x), jnp.asarray(v))).error) for v in (spoilt, found)]
    assert errors[0] > 1e-3
    assert errors[1] < 1e-6
    kept = next(repaired_multipliers(to_scipy(lp.A), lp, x, y, np.zeros(0, np.int64)))
    np.testing.assert_allclose(kept, y, atol=1e-9)


def test_multipliers_of_rows_that_were_left_are_freed_in_turn():
    """Those that meet what is charged: one wrong multiplier far from the lost ones, as parallel rows leave it."""
    lp = random_program(2)
    (x, y), _ = exact(lp)
    spoilt = y.copy()
    wrong = int(np.argmax(np.abs(y)))
    spoilt[wrong] = 0
    lost = np.array([i for i in range(y.size) if i != wrong][:1])
    found = list(repaired_multipliers(to_scipy(lp.A), lp, x, spoilt, lost))
    with jax.enable_x64(True):
        errors = [float(lp.residuals(Pair(jnp.asarray(x), jnp.asarray(v))).error) for v in (found[0], found[-1])]
    assert len(found) > 1
    assert errors[0] > 1e-3
    assert errors[1] < 1e-6


@pytest.mark.parametrize("maximise", [False, True])
def test_mending_keeps_what_is_left_and_takes_the_users_sense(maximise):
    lp = random_program(1, maximise)
    made = presolve(lp)
    inner = exact(made.problem)[0]
    pair = made.postsolve(inner)
    worse = Pair(pair.x, pair.y + 1.0)
    with jax.enable_x64(True):
        errors = [
            float(lp.residuals(Pair(*map(jnp.asarray, p))).error) for p in (worse, next(made.mended(inner, worse)))
        ]
    assert errors[0] > 1e-2
    assert errors[1] < 1e-6
