"""The three minimisers over a box, on a quadratic with a known answer and Rosenbrock's valley; their line search."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.methods.inner import residual, search
from pdopt.problems.nonlinear_view import Bent, Look
from pdopt.types import record

# Each program runs for milliseconds; compiling is all that it costs.
pytestmark = pytest.mark.usefixtures("quick_compiles")

RNG = np.random.default_rng(3)
M = RNG.standard_normal((5, 5))
Q, C = M @ M.T + 0.5 * np.eye(5), 3 * RNG.standard_normal(5)
MINIMISERS = {"newton": pdopt.ProjectedNewton(), "cg": pdopt.ProjectedNewtonCG(), "lbfgs": pdopt.ProjectedLBFGS()}


@record(static=("f",))
class Boxed:
    """A function in a box, with the derivatives that the minimisers ask for."""

    f: Any
    lower: Any
    upper: Any

    def value(self, z: Any) -> Any:
        return self.f(z)

    def expansion(self, z: Any) -> Look:
        return Look(self.f(z), jax.grad(self.f)(z), jax.hessian(self.f)(z), jnp.zeros((0, z.size)), jnp.zeros(0))

    def bent(self, rows: Any) -> Bent:
        return Bent(rows, rows, rows)


def quadratic(z: Any) -> Any:
    return z @ jnp.asarray(Q, z.dtype) @ z / 2 + jnp.asarray(C, z.dtype) @ z


def valley(z: Any) -> Any:
    return (1 - z[0]) ** 2 + 100 * (z[1] - z[0] ** 2) ** 2


def by_enumeration() -> np.ndarray:
    """The minimiser of the quadratic over [-1, 1]^5: every choice of free variables and sides is tried."""
    best, found = np.inf, np.zeros(5)
    for code in range(3**5):
        sides = np.array([code // 3**k % 3 for k in range(5)])
        x = np.where(sides == 1, -1.0, 1.0)
        free = sides == 0
        if free.any():
            right = -C[free] - Q[np.ix_(free, ~free)] @ x[~free]
            x[free] = np.linalg.solve(Q[np.ix_(free, free)], right)
        value = x @ Q @ x / 2 + C @ x
        if np.abs(x).max() <= 1 + 1e-12 and value < best:
            best, found = value, x
    return found


@pytest.mark.parametrize("name", MINIMISERS)
def test_a_quadratic_in_a_box(name: str) -> None:
    with jax.enable_x64(True):
        box = Boxed(quadratic, jnp.full(5, -1.0), jnp.full(5, 1.0))
        goal, plain = jnp.asarray(1e-9), jnp.asarray(False)
        found = jax.jit(MINIMISERS[name].minimise)(box, jnp.zeros(5), goal, plain)
        np.testing.assert_allclose(found.x, by_enumeration(), atol=1e-8)
        assert float(found.error) <= 1e-9
        assert int(found.work.iterations) <= {"newton": 8, "cg": 20, "lbfgs": 60}[name]
        assert float(residual(box, found.x, jax.grad(quadratic)(found.x))) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", MINIMISERS)
@pytest.mark.parametrize("upper", [np.inf, 0.5])
def test_the_valley(name: str, upper: float) -> None:
    with jax.enable_x64(True):
        box = Boxed(valley, jnp.full(2, -2.0), jnp.array([upper, np.inf]))
        found = jax.jit(MINIMISERS[name].minimise)(box, jnp.array([-1.2, 1.0]), jnp.asarray(1e-8), jnp.asarray(False))
        np.testing.assert_allclose(found.x, [1, 1] if upper > 1 else [0.5, 0.25], atol=1e-6)


def test_a_search_halves_stretches_and_refuses() -> None:
    box = Boxed(lambda z: z[0] ** 2, jnp.full(1, -jnp.inf), jnp.full(1, jnp.inf))
    no = jnp.asarray(False)
    x, g = jnp.array([1.0]), jnp.array([2.0])
    # Along -8 the full step climbs to 49, half of it to 9, a quarter to 1 (no fall), an eighth reaches 0.
    trial = search(box, x, jnp.float32(1), g, jnp.array([-8.0]), no, no, no)
    assert (float(trial.x[0]), float(trial.length), int(trial.tries)) == (0.0, 0.125, 4)
    # Against the slope no length is acceptable, until one moves x by less than its rounding.
    trial = search(box, x, jnp.float32(1), g, jnp.array([1.0]), no, no, no)
    assert float(trial.x[0]) == pytest.approx(1, abs=1e-5)
    # Without curvature the step is doubled as long as it falls: a line without end leaves every number behind.
    line = Boxed(lambda z: -z[0], box.lower, box.upper)
    trial = search(line, x, jnp.float32(-1), -jnp.ones(1), jnp.ones(1), ~no, no, no)
    assert float(trial.x[0]) > 1e15
    # A step taken as it comes, and none at all.
    assert float(search(box, x, jnp.float32(1), g, jnp.array([1.0]), no, no, ~no).x[0]) == 2
    assert int(search(box, x, jnp.float32(1), g, jnp.array([-1.0]), no, ~no, no).tries) == 0
    # A step may end above the value at x as long as it ends below the reference.
    assert float(search(box, x, jnp.float32(1), g, jnp.array([-2.5]), no, no, no).x[0]) == pytest.approx(-0.25)
    higher = search(box, x, jnp.float32(1), g, jnp.array([-2.5]), no, no, no, jnp.float32(4))
    assert float(higher.x[0]) == pytest.approx(-1.5)
