"""Second-order cone programs: against Clarabel, by closed forms, and what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidProblem, UnsupportedProblem
from pdopt.types import Status
from tests.problems.conic_family import INF, by_clarabel
from tests.problems.conic_family import conic as data

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("seed", range(2))
def test_small_programs_have_clarabels_optimum(seed):
    d = data(seed)
    solution = pdopt.solve(pdopt.ConicProgram(**d), tolerance=1e-8)
    value, *_ = by_clarabel(d)
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(solution.objective, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(solution.dual_objective, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(d["c"] @ solution.x + d["offset"], value, rtol=1e-6, atol=1e-6)
    slack = d["A"] @ solution.x - d["row_lower"]
    for cone in d["cone_rows"]:
        for v in (slack[jnp.array(cone)], solution.y[jnp.array(cone)]):
            assert v[0] >= jnp.linalg.norm(v[1:]) - 1e-6
    again = pdopt.solve(pdopt.ConicProgram(**d), start=solution, tolerance=1e-8)
    assert again.reason is Status.OPTIMAL
    assert again.iterations == 0, "a start at the optimum takes no step"


@pytest.mark.slow
def test_a_sparse_program_in_the_layouts_own_order():
    rng = np.random.default_rng(7)
    m, n = 120, 90
    rows = rng.permutation(np.arange(3, m))[:60].reshape(-1, 4)
    columns = rng.permutation(np.arange(4, n))[:30].reshape(-1, 3)
    d = data(7, m, n, rows.tolist(), columns.tolist(), dense=False)
    program = pdopt.ConicProgram(**d)
    assert hasattr(program.A, "row"), "large enough for the sparse layout"
    solution = pdopt.solve(program, tolerance=1e-7)
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(solution.objective, by_clarabel(d)[0], rtol=1e-5)


@pytest.mark.slow
def test_maximisation_negates_objective_and_multipliers():
    d = data(1)
    least = pdopt.solve(pdopt.ConicProgram(**d), tolerance=1e-8)
    most = pdopt.solve(pdopt.ConicProgram(**d | {"c": -d["c"], "offset": -0.5, "maximise": True}), tolerance=1e-8)
    np.testing.assert_allclose(most.objective, -least.objective, rtol=1e-12)
    np.testing.assert_allclose(most.y, -least.y, rtol=1e-12)


def test_the_value_has_the_multipliers_as_derivative_in_a_batch():
    d = data(2)
    k = d["cone_rows"][0]

    def value(shift):
        low = jnp.asarray(d["row_lower"]).at[jnp.array(k)].add(shift)
        return pdopt.solve(pdopt.ConicProgram(**d | {"row_lower": low}), tolerance=1e-10)

    step = 1e-4
    shifts = jnp.array([[0.0, 0, 0], [step, 0, 0], [-step, 0, 0], [0, 0, step], [0, 0, -step]])
    batch = jax.vmap(value)(shifts)
    assert (batch.status == Status.OPTIMAL).all()
    slope = jax.grad(lambda s: value(s).objective)(shifts[0])
    np.testing.assert_allclose(slope, batch.y[0, jnp.array(k)], atol=1e-7)
    numeric = (batch.objective[1::2] - batch.objective[2::2]) / (2 * step)
    np.testing.assert_allclose(numeric, slope[jnp.array([0, 2])], atol=1e-4)


def test_infeasible_and_unbounded_programs_are_proved():
    # |x| <= t, t <= 1, x1 >= 2.
    infeasible = pdopt.ConicProgram(
        [0.0, 0, 0], [[0.0, 1, 0]], [2.0], [INF], [-INF, -INF, -INF], [INF, INF, INF], cone_columns=[[0, 1, 2]]
    )
    blocked = infeasible.replace(A=[[0.0, 1, 0], [1.0, 0, 0]], row_lower=[2.0, -INF], row_upper=[INF, 1.0])
    found = pdopt.solve(blocked)
    assert found.reason is Status.PRIMAL_INFEASIBLE
    y = found.certificate.ray.y
    z = -np.array([[0.0, 1, 0], [1, 0, 0]]).T @ y
    assert 2 * y[0] + y[1] > 0
    assert z[0] >= np.linalg.norm(z[1:]) - 1e-8
    falling = blocked.replace(c=[-1.0, 0, 0], row_upper=[INF, INF], row_lower=[2.0, -5.0])
    found = pdopt.solve(falling)
    assert found.reason is Status.DUAL_INFEASIBLE
    assert found.certificate.ray.x[0] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cone_rows": [[]]}, r"cone_rows\[0\] is \[\]; expected a list"),
        ({"cone_rows": [[3, 4], [4, 5]]}, "cone_rows names place 4 twice"),
        ({"cone_columns": [[7, 8]]}, r"cone_columns\[0\] has a place outside 0 to 7"),
        ({"cone_columns": [[0.5, 1]]}, r"cone_columns\[0\] is .*; expected a list of at least one integer"),
        ({"cone_rows": [[1, 2]]}, r"row_lower\[1\] is -inf in a cone; expected a finite value"),
        ({"cone_rows": [[0, 2]]}, r"row_upper\[0\] is .* in a cone; expected an infinite value"),
        ({"cone_columns": [[0, 1]]}, r"lower\[0\] is .* in a cone; expected an infinite value"),
    ],
)
def test_cones_that_cannot_be_are_refused(change, words):
    with pytest.raises(InvalidProblem, match=words):
        pdopt.ConicProgram(**data(0) | change)


def test_presolve_refuses_what_it_does_not_know():
    with pytest.raises(UnsupportedProblem, match="ConicProgram"):
        pdopt.run(pdopt.ConicProgram(**data(0)), presolve=True)
