"""Newton steps under the exact merit: its gradient, the rule of acceptance, answers, failures, batches, resuming."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.methods.exact_merit import Linearised, Merit, Weights
from pdopt.types import Pair, Status
from tests.nonlinear_programs import KNOWN, Family, family, family_sums, of

pytestmark = pytest.mark.usefixtures("quick_compiles")

SOLVERS = {"direct": pdopt.Direct(), "minres": pdopt.MinRes(), "sketch": pdopt.BlockSketch(block=2)}
CASES = {
    "regular": (Family(), Status.OPTIMAL),  # its row comes twice: dependent
    "contradictory": (Family(sums=(1.0, 2.0)), Status.LOCALLY_INFEASIBLE),
    "unbounded": (Family(curve=0.0), Status.DIVERGED),
    "broken": (Family(wall=-9.0), Status.NUMERICAL_ERROR),
}


def curved_rows(x: Any) -> Any:
    """Rows with curvature: with affine ones the authors' gradient is right too."""
    return jnp.stack([jnp.sum(x**2) - 2, x[0] * x[1] - x[2]])


def program(rescale: bool = False) -> tuple[pdopt.NonlinearProgram, Any]:
    problem = pdopt.NonlinearProgram(lambda x: jnp.sum(jnp.sin(x)), jnp.array([0.3, -0.8, 1.1]), equality=curved_rows)
    return problem, pdopt.ExactAugmentedLagrangian(rescale=rescale).view(problem)


def test_the_gradient_of_the_merit_is_its_slope() -> None:
    """Against central differences of M in float64, error O(h^2) + eps / h; and the authors' version is not."""
    with jax.enable_x64(True):
        problem, view = program()
        pair = Pair(jnp.array([0.3, -0.8, 1.1]), jnp.array([0.7, -1.3]))
        weights, h = Weights(3.0, 0.4, 0.1, 0.0), 1e-6
        merit = Merit(view, 3.0, 0.4)

        @jax.jit
        def measured(pair: Pair) -> tuple[Any, ...]:
            here, z = Linearised.at(view, pair), jnp.concatenate(pair)
            steps = h * jnp.eye(5)
            differences = jax.vmap(lambda d: (merit.value(z + d) - merit.value(z - d)) / (2 * h))(steps)
            # The authors multiply by the Hessian of f where that of L belongs.
            bend = jax.hessian(problem.objective)(pair.x) @ here.residual[:3]
            jacobian = jax.jacfwd(curved_rows)(pair.x)
            theirs = here.residual[:3] + 0.4 * bend + 3.0 * jacobian.T @ here.residual[3:]
            return here.merit_slope(weights), differences, jax.grad(merit.value)(z), theirs

        slope, differences, direct, theirs = map(np.asarray, measured(pair))
    np.testing.assert_allclose(slope, differences, atol=1e-8)
    np.testing.assert_allclose(slope, direct, atol=1e-13)
    assert np.abs(theirs - differences[:3]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_known_solutions(name: str) -> None:
    """HS7, by each linear solver and both rules; the accepted steps fall as the rule says."""
    known = KNOWN["HS7"]
    for forcing in (0.0, 0.1):
        method = pdopt.ExactAugmentedLagrangian(linear=SOLVERS[name], forcing=forcing)
        with jax.enable_x64(True):
            problem = pdopt.NonlinearProgram(known.f, jnp.asarray(known.start), equality=known.equality)
            found = pdopt.solve(problem, method, tolerance=1e-9, max_iterations=100, gradient="none")
        assert found.reason is Status.OPTIMAL
        np.testing.assert_allclose(found.objective, known.value, rtol=1e-8)
        np.testing.assert_allclose(found.x, [0, np.sqrt(3)], atol=1e-5)
        np.testing.assert_allclose(found.y.equality, 1 / (2 * np.sqrt(3)), rtol=1e-6)
        assert int(found.work.products) > int(found.iterations)


def test_failures_have_a_status_each_and_leave_their_neighbours_alone() -> None:
    """One compiled batch: dependent rows solved, contradictory ones, an unbounded ray, NaN; each as if alone."""
    method = pdopt.ExactAugmentedLagrangian()
    with jax.enable_x64(True):
        members = [of(**data._asdict()) for data, _ in CASES.values()]
        start = jnp.array([3.0, -1.0])

        def one(data: Any) -> pdopt.Solution:
            return pdopt.minimise(family, start, args=(data,), equality=family_sums, method=method, gradient="none")

        together, rows = jax.jit(jax.vmap(one)), lambda *leaves: jnp.stack(leaves)
        batch = jax.tree.map(np.asarray, together(jax.tree.map(rows, *members)))
        alone = jax.tree.map(np.asarray, together(jax.tree.map(rows, *members[:1] * len(members))))
    reasons = {name: Status(int(code)) for name, code in zip(CASES, batch.status)}
    assert reasons == {name: status for name, (_, status) in CASES.items()}
    np.testing.assert_allclose(batch.x[0], [0.5, 1.5], atol=1e-6)
    np.testing.assert_allclose(np.sum(batch.y.equality[0]), -1.5, atol=1e-6)
    np.testing.assert_allclose(batch.x[0], alone.x[0], atol=1e-9)
    assert int(batch.iterations[0]) == int(alone.iterations[0])
    assert np.isfinite(batch.x[3]).all()


@pytest.mark.slow
def test_float32_and_derivatives() -> None:
    """The solution moves with `args` as the optimality conditions say; float32 reaches 1e-4."""
    method = pdopt.ExactAugmentedLagrangian()

    def point(total: Any, dtype: Any) -> Any:
        data = Family(jnp.stack([total, total]), *(jnp.asarray(v, dtype) for v in (1.0, 1.0, np.inf)))
        start = jnp.array([3.0, -1.0], dtype)
        return pdopt.minimise(family, start, args=(data,), equality=family_sums, method=method)

    found = point(jnp.float32(2.0), np.float32)
    assert found.reason is Status.OPTIMAL
    assert found.x.dtype == np.float32
    np.testing.assert_allclose(found.x, [0.5, 1.5], atol=1e-3)
    with jax.enable_x64(True):
        slope = jax.grad(lambda total: point(total, np.float64).x[0])(jnp.asarray(2.0, jnp.float64))
    np.testing.assert_allclose(slope, 0.5, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_is_cut_and_resumed_ends_with_the_same_bits(tmp_path: Any) -> None:
    """The key of the sketches is part of the state."""
    method = pdopt.ExactAugmentedLagrangian(linear=SOLVERS["sketch"])
    with jax.enable_x64(True):
        known = KNOWN["HS7"]
        problem = pdopt.NonlinearProgram(known.f, jnp.asarray(known.start), equality=known.equality)
        whole = pdopt.run(problem, method, tolerance=1e-9)
        pdopt.run(problem, method, tolerance=1e-9, max_iterations=5, checkpoint=tmp_path)
        resumed = pdopt.run(problem, method, tolerance=1e-9, checkpoint=tmp_path, resume=True)
        other = pdopt.solve(problem, method.replace(seed=1), tolerance=1e-9)
    assert whole.reason is Status.OPTIMAL
    np.testing.assert_array_equal(whole.x, resumed.x)
    assert int(whole.iterations) == int(resumed.iterations)
    np.testing.assert_allclose(other.x, whole.x, atol=1e-6)


def test_what_is_outside_is_refused_before_compiling() -> None:
    method = pdopt.ExactAugmentedLagrangian()
    with pytest.raises(UnsupportedProblem, match="equality constraints only"):
        pdopt.minimise(jnp.sum, jnp.ones(2), inequality=lambda x: x, method=method)
    with pytest.raises(UnsupportedProblem, match="free variables only; upper"):
        pdopt.minimise(jnp.sum, jnp.ones(2), upper=3.0, method=method)
    for settings in ({"forcing": 2.0}, {"stationary": 0.0}, {"growth": 1.0}, {"every": 2}, {"linear": "minres"}):
        with pytest.raises(InvalidOption):
            pdopt.ExactAugmentedLagrangian(**settings)
