"""How Sinkhorn runs end and go on: statuses, starts, checkpoints, batches, devices; refused settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.problems.costs import DenseCost
from pdopt.types import Pair, Status
from tests.methods.clouds import hard, true_error


def test_a_warm_start_needs_fewer_sweeps():
    problem = hard()
    rng = np.random.default_rng(5)
    nearby = problem.replace(cost=problem.cost.C * (1 + 0.01 * rng.uniform(-1, 1, problem.shape).astype(np.float32)))
    first, cold = pdopt.solve(problem), pdopt.solve(nearby)
    for start in (first, Pair(None, first.y)):
        warm = pdopt.solve(nearby, start=start)
        assert warm.reason is cold.reason is Status.OPTIMAL
        assert int(warm.iterations) < int(cold.iterations) / 2
    again = pdopt.solve(problem, start=first, tolerance=2e-4)
    assert int(again.iterations) == 0
    np.testing.assert_array_equal(again.y.f, first.y.f)


def test_statuses():
    limited = pdopt.solve(hard(), max_iterations=127)
    assert limited.reason is Status.ITERATION_LIMIT
    assert int(limited.iterations) == 127
    assert float(limited.residuals.primal) == pytest.approx(true_error(hard(), limited.y), rel=1e-4)
    with pytest.warns(UserWarning, match="below what float32 can reach"):
        floor = pdopt.solve(hard(), tolerance=1e-7, max_iterations=20000)
    assert floor.reason is Status.PRECISION_LIMIT
    assert int(floor.iterations) < 10000
    # The floor: potentials are rounded by eps_mach |f| / 2, magnified by 1 / epsilon, for two sides and potentials.
    bound = 2 * np.finfo(np.float32).eps * float(jnp.max(jnp.abs(floor.y.f))) / 0.002
    assert 1e-7 < float(floor.residuals.primal) < bound
    assert float(floor.residuals.primal) == pytest.approx(true_error(hard(), floor.y), rel=0.1)
    broken = hard().replace(cost=DenseCost(jnp.full((60, 60), jnp.nan, jnp.float32)), check=False)
    assert pdopt.solve(broken).reason is Status.NUMERICAL_ERROR


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-5])
def test_optimal_means_that_the_returned_potentials_reach_the_tolerance(tolerance):
    solution = pdopt.solve(hard(epsilon=0.01), tolerance=tolerance)
    assert solution.reason is Status.OPTIMAL
    assert float(solution.residuals.primal) <= tolerance
    assert true_error(hard(epsilon=0.01), solution.y) <= 1.01 * tolerance + 2e-7


def test_run_and_solve_agree_to_the_last_bit():
    problem, seen = hard(), []

    class Rows:
        start = lambda self, limit: None
        update = lambda self, row: seen.append(row)
        finish = lambda self, sentence: None

    ran, solved = pdopt.run(problem, progress=Rows()), pdopt.solve(problem, gradient="none")
    for one, other in zip(jax.tree.leaves(ran.y), jax.tree.leaves(solved.y)):
        np.testing.assert_array_equal(one, other)
    assert int(ran.status) == int(solved.status)
    assert int(ran.iterations) == int(solved.iterations)
    assert seen
    assert seen[-1]["iter"] == int(ran.iterations)


def test_a_checkpointed_run_goes_on_where_it_was(tmp_path):
    problem = hard()
    part = pdopt.run(problem, max_iterations=60, checkpoint=tmp_path / "run")
    assert part.reason is Status.ITERATION_LIMIT
    whole = pdopt.run(problem, checkpoint=tmp_path / "run", resume=True)
    assert whole.reason is Status.OPTIMAL
    assert int(whole.iterations) > 60
    np.testing.assert_allclose(whole.objective, pdopt.run(problem).objective, rtol=1e-4)


def test_vmap_equals_the_loop_and_jit_changes_nothing():
    """Members of very different epsilon stop at their own tolerance and sweep."""
    problem = hard(n=30)
    epsilons = jnp.array([0.5, 0.01, 0.003], jnp.float32)
    solve = lambda epsilon: pdopt.solve(problem.replace(regulariser=pdopt.Entropy(epsilon)), gradient="none")
    together = jax.jit(jax.vmap(solve))(epsilons)
    for k, epsilon in enumerate(epsilons):
        alone = solve(epsilon)
        assert int(together.status[k]) == int(alone.status) == Status.OPTIMAL
        assert abs(int(together.iterations[k]) - int(alone.iterations)) <= 10  # one check
        assert float(together.residuals.primal[k]) <= 1e-4
        np.testing.assert_allclose(together.objective[k], alone.objective, rtol=1e-4)
    assert len(set(np.asarray(together.iterations).tolist())) == 3


def test_steps_compiled_and_plain_are_the_same():
    method = pdopt.Sinkhorn()
    view = method.view(hard(n=8))

    def two():
        state, visit = method.step(view, method.init(view, view.start()))
        state, visit = method.step(view, method.check(view, state, visit))
        return method.pair(view, method.check(view, state, visit), visit).y

    compiled = jax.jit(two)()
    with jax.disable_jit():
        step_by_step = two()
    np.testing.assert_allclose(compiled.f, step_by_step.f, rtol=1e-5, atol=1e-6)


def test_eight_devices_give_the_answer_of_one():
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    mesh = jax.make_mesh((8,), ("row",), axis_types=(AxisType.Auto,))
    problem = hard(n=64)
    put = lambda v, *spec: jax.device_put(v, NamedSharding(mesh, P(*spec)))
    placed = problem.replace(
        cost=DenseCost(put(problem.cost.C, "row", None)), a=put(problem.a, "row"), b=put(problem.b)
    )
    one, eight = (pdopt.solve(p, gradient="none") for p in (problem, placed))
    assert one.reason is eight.reason is Status.OPTIMAL
    assert abs(int(one.iterations) - int(eight.iterations)) <= 10
    np.testing.assert_allclose(one.objective, eight.objective, rtol=1e-5)
    assert true_error(problem, eight.y) <= 1.01e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omega": 2.5}, "omega"), ({"omega": 0.5}, "omega"), ({"mode": "absorb"}, "did you mean 'absorbed'"),
        ({"every": 0}, "every"), ({"ratio": 1.5}, "ratio"), ({"anneal": 1}, "anneal"),
    ],
)  # fmt: skip
def test_settings_are_checked(settings, message):
    with pytest.raises(InvalidOption, match=message):
        pdopt.Sinkhorn(**settings)


def test_other_problems_are_refused():
    for problem in (pdopt.Transport(np.zeros((2, 2)), dtype=np.float32), pdopt.MatrixGame(np.eye(2), dtype=np.float32)):
        with pytest.raises(UnsupportedProblem, match="entropic view"):
            pdopt.solve(problem, pdopt.Sinkhorn())
