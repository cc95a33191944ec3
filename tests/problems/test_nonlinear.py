"""The nonlinear program's measure by hand, and its flat view: round trips, penalties, what the move makes of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import UnsupportedProblem
from pdopt.problems.nonlinear_view import NonlinearView, Penalised
from pdopt.types import Pair

# Each program runs for milliseconds; compiling is all that it costs.
pytestmark = pytest.mark.usefixtures("quick_compiles")


def objective(x: Any, scale: Any) -> Any:
    return scale * (x["a"][0] ** 2 + 3 * x["a"][1]) + x["b"] ** 4


def equal(x: Any, scale: Any) -> Any:
    return {"sum": 200 * (x["a"][0] + x["b"]) - 100}


def unequal(x: Any, scale: Any) -> Any:
    return [x["a"] ** 2 - 4, x["a"][0] * x["b"] - 1]


def program(dtype: Any = jnp.float64) -> pdopt.NonlinearProgram:
    start = {"a": jnp.array([3.0, -1.0], dtype), "b": jnp.asarray(0.5, dtype)}
    return pdopt.NonlinearProgram(objective, start, (2.0,), equal, unequal, lower={"a": -5.0, "b": None}, upper=4.0)


def multipliers() -> pdopt.Multipliers:
    return pdopt.Multipliers({"sum": jnp.asarray(0.5)}, [jnp.array([0.25, 0.0]), jnp.asarray(2.0)])


def test_residuals_by_hand() -> None:
    with jax.enable_x64(True):
        found = program().optimality(Pair(program().start, multipliers()))
        # h = 600, g = (5, -3, 0.5); grad L = (12 + 100 + 1.5 + 1, 6, 0.5 + 100 + 6), with a0 - 114.5 clipped to -5.
        np.testing.assert_allclose(found.objective, 2 * (9 - 3) + 0.0625)
        np.testing.assert_allclose(found.residuals.primal, 600)
        np.testing.assert_allclose(found.proof.slope["a"], [114.5, 6])
        np.testing.assert_allclose(found.proof.slope["b"], 106.5)
        np.testing.assert_allclose(found.residuals.dual_absolute, 106.5)
        np.testing.assert_allclose(found.residuals.dual, 106.5 / 12)
        np.testing.assert_allclose(found.residuals.gap, 5)
        np.testing.assert_allclose(found.dual_objective, found.objective + 300 + 1.25 + 1)


def test_the_view_carries_pairs_both_ways() -> None:
    with jax.enable_x64(True):
        view = NonlinearView.make(program())
        pair = Pair(program().start, multipliers())
        back = view.back(view.into(pair))
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(pair)):
            np.testing.assert_allclose(a, b, rtol=1e-14)
        # Gradients at the start are at most 100 in the view's units.
        slopes = jax.jacfwd(view.measured)(view.start().x)
        assert max(float(jnp.max(jnp.abs(s))) for s in slopes) <= 100 * (1 + 1e-12)
        assert float(view.units.rows[0]) < 1
        scaled = view.units.objective * program().objective(program().start)
        np.testing.assert_allclose(view.measured(view.start().x)[0], scaled)


@pytest.mark.parametrize("rho", [0.1, 100.0])
def test_the_penalised_slope_is_that_of_the_lagrangian_at_the_moved_multipliers(rho: float) -> None:
    with jax.enable_x64(True):
        view = NonlinearView.make(program())
        z, y = view.into(Pair(program().start, multipliers()))
        model = Penalised(view, y, jnp.asarray(rho), jnp.asarray(False))
        moved = view.move(y, view.violation(z), rho)
        lagrangian = lambda z: view.measured(z)[0] + moved @ view.measured(z)[1]
        look = model.expansion(z)
        value, slope = look.value, look.gradient
        hessian = look.curvature + look.jacobian.T @ (model.bent(look.rows).bend[:, None] * look.jacobian)
        np.testing.assert_allclose(slope, jax.grad(lagrangian)(z), rtol=1e-12)
        np.testing.assert_allclose(value, model.value(z), rtol=1e-14)
        np.testing.assert_allclose(slope, jax.grad(model.value)(z), rtol=1e-12)
        np.testing.assert_allclose(hessian, jax.hessian(model.value)(z), rtol=1e-10, atol=1e-12)
        assert float(moved[1:].min()) >= 0


def test_a_lagrangian_knows_the_bounds_that_hold_x() -> None:
    """min x on x >= l: the value is l, and its derivative in l is 1, which only the bound's multiplier can say."""
    with jax.enable_x64(True):
        line = pdopt.NonlinearProgram(jnp.sum, jnp.array([2.0]), lower=jnp.array([2.0]))
        pair = Pair(line.start, pdopt.Multipliers())
        slope = jax.grad(lambda p: p.lagrangian(pair, line.optimality(pair).proof))(line)
        np.testing.assert_allclose(slope.lower, [1.0])
        np.testing.assert_allclose(slope.upper, [0.0])


def test_only_the_method_of_multipliers_takes_it() -> None:
    for method in (pdopt.PDHG(), pdopt.DualAscent(), pdopt.Sinkhorn()):
        with pytest.raises(UnsupportedProblem):
            pdopt.solve(program(jnp.float32), method)
