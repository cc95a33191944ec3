"""A point that postsolve spoilt: its rows close again within its bounds, and the gap with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.operators.convert import to_scipy
from pdopt.problems.presolve import presolve
from pdopt.problems.primal_repair import repaired_point
from pdopt.types import Pair
from tests.problems.test_presolve import exact, random_program


@pytest.mark.parametrize("seed", range(3))
def test_a_spoilt_point_is_mended_within_its_bounds(seed):
    lp = random_program(seed)
    (x, y), value = exact(lp)
    rng = np.random.default_rng(seed)
    spoilt = x + 0.01 * rng.normal(size=x.size)
    found, products = repaired_point(to_scipy(lp.A), lp, spoilt, value)
    assert np.all((found >= np.asarray(lp.lower)) & (found <= np.asarray(lp.upper)))
    assert products > 0
    with jax.enable_x64(True):
        before, after = (lp.residuals(Pair(jnp.asarray(v), jnp.asarray(y))) for v in (spoilt, found))
    assert float(before.error) > 1e-3
    assert float(after.error) < 1e-6
    assert np.linalg.norm(found - x) < 3 * np.linalg.norm(spoilt - x)


@pytest.mark.parametrize("maximise", [False, True])
def test_moving_takes_the_users_sense(maximise):
    lp = random_program(1, maximise)
    made = presolve(lp)
    pair = made.postsolve(exact(made.problem)[0])
    worse = Pair(pair.x + 1e-2, pair.y)
    with jax.enable_x64(True):
        dual = float(lp.optimality(Pair(*map(jnp.asarray, pair))).dual_objective)
        errors = [float(lp.residuals(Pair(*map(jnp.asarray, p))).error) for p in (worse, made.moved(worse, dual))]
    assert errors[0] > 1e-3
    assert errors[1] < 1e-6
