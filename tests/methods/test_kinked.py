"""A Newton step with the kinks kept, against SciPy on the same model, and what it does without curvature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from pdopt.methods.kinked import newton_step
from pdopt.problems.nonlinear_view import Bent, Look

# Each program runs for milliseconds; compiling is all that it costs.
pytestmark = pytest.mark.usefixtures("quick_compiles")


class Hinges(NamedTuple):
    """`rho / 2 max(0, rows)^2` in a box."""

    lower: Any
    upper: Any
    rho: float = 50.0

    def bent(self, rows: Any) -> Bent:
        broken = jnp.maximum(rows, 0)
        return Bent(self.rho * broken**2 / 2, self.rho * broken, jnp.where(rows > 0, self.rho, 0))


def looked(model: Hinges, B: np.ndarray, b: np.ndarray, J: np.ndarray, v: np.ndarray) -> Look:
    """What a function with the gradient b and the Hessian B, without its penalty, shows at 0."""
    bent = model.bent(jnp.asarray(v))
    return Look(jnp.sum(bent.value), b + J.T @ bent.slope, jnp.asarray(B), jnp.asarray(J), jnp.asarray(v))


step = jax.jit(newton_step, static_argnames="bends")


@pytest.mark.parametrize("seed", range(6))
def test_the_step_is_the_minimiser_of_the_model(seed: int) -> None:
    """Rows and bounds change sides on the way: one Newton step with those of the start would end elsewhere."""
    rng = np.random.default_rng(seed)
    M, b = rng.standard_normal((5, 5)), 3 * rng.standard_normal(5)
    B, J, v = M @ M.T + 0.1 * np.eye(5), rng.standard_normal((7, 5)), rng.standard_normal(7)
    low, high = -rng.uniform(0, 1, 5), rng.uniform(0, 1, 5)
    hinge = lambda d: np.maximum(v + J @ d, 0)
    value = lambda d: (b @ d + d @ B @ d / 2 + 25 * hinge(d) @ hinge(d), b + B @ d + 50 * J.T @ hinge(d))
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000, "maxfun": 50_000}
    best = minimize(value, np.zeros(5), jac=True, method="L-BFGS-B", bounds=list(zip(low, high)), options=options)
    with jax.enable_x64(True):
        model = Hinges(jnp.asarray(low), jnp.asarray(high))
        found, flat = step(model, jnp.zeros(5), looked(model, B, b, J, v), jnp.asarray(1e-5), bends=40)
    assert not flat
    np.testing.assert_allclose(found, best.x, atol=1e-6)
    assert value(np.asarray(found))[0] <= best.fun + 1e-10


def test_without_a_bend_on_the_way_it_is_newtons_step() -> None:
    with jax.enable_x64(True):
        model = Hinges(jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf))
        B, b, J, v = np.array([[2.0, 1], [1, 3]]), np.array([1.0, -1]), np.array([[1.0, 1]]), np.array([5.0])
        found, _ = step(model, jnp.zeros(2), looked(model, B, b, J, v), jnp.asarray(1.0))
        whole = B + 50 * J.T @ J
        np.testing.assert_allclose(found, -np.linalg.solve(whole, b + 250 * J[0]), rtol=1e-12)


def test_negative_and_missing_curvature_still_go_down() -> None:
    with jax.enable_x64(True):
        free = Hinges(jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf))
        b, J, v = np.array([1.0, -2.0]), np.zeros((1, 2)), -np.ones(1)
        indefinite = np.array([[1.0, 2.0], [2.0, -1.0]])
        for B in (indefinite, np.zeros((2, 2)), np.full((2, 2), np.nan)):
            found, flat = step(free, jnp.zeros(2), looked(free, B, b, J, v), jnp.asarray(1.0))
            assert flat
            assert np.isfinite(np.asarray(found)).all()
            assert b @ np.asarray(found) < 0
