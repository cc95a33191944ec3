"""`minimise`: known solutions, statuses of what cannot be solved, gradients, batches, errors before compilation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.methods.augmented_lagrangian import WIDTH
from pdopt.rules.penalty import nocedal_wright
from pdopt.types import Status
from tests.nonlinear_programs import KNOWN, Family, family, family_sums, of

# Each program runs for milliseconds; compiling is all that it costs.
pytestmark = pytest.mark.usefixtures("quick_compiles")

TIGHT = 1e-8


def solve(name: str, dtype: Any = jnp.float64, **options: Any) -> pdopt.Solution:
    known = KNOWN[name]
    start = jnp.asarray(np.array(known.start), dtype)
    return pdopt.minimise(known.f, start, **known.constraints, **{"gradient": "none", **options})


def solve_family(start: Any = (3.0, -1.0), **changes: Any) -> pdopt.Solution:
    with jax.enable_x64(True):
        data = of(**changes)
        return pdopt.minimise(
            family, jnp.asarray(start, jnp.float64), args=(data,), equality=family_sums, tolerance=TIGHT,
            gradient="none",
        )  # fmt: skip


def test_hs71_by_its_numbers() -> None:
    """Value, point and multipliers of the textbook; a warm start at the solution takes no step and changes nothing."""
    with jax.enable_x64(True):
        found = solve("HS71", tolerance=TIGHT)
        assert found.reason is Status.OPTIMAL
        np.testing.assert_allclose(found.x, [1, 4.7429994, 3.8211503, 1.3794082], atol=1e-6)
        np.testing.assert_allclose(found.objective, 17.0140173, atol=1e-6)
        np.testing.assert_allclose(found.y.equality, 0.1614686, atol=1e-6)
        np.testing.assert_allclose(found.y.inequality, 0.5522937, atol=1e-6)
        np.testing.assert_allclose(found.certificate.slope, [1.0878712, 0, 0, 0], atol=1e-5)
        assert not found.certificate.degenerate
        assert float(found.residuals.error) <= TIGHT
        assert int(found.work.iterations) < 60
        assert int(found.work.values) >= int(found.work.hessians)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, Status.OPTIMAL),
        ({"sums": (2.0, 3.0)}, Status.LOCALLY_INFEASIBLE),
        ({"curve": 0.0}, Status.DIVERGED),
        ({"wall": -5.0}, Status.NUMERICAL_ERROR),
    ],
)
def test_what_a_run_ends_as(changes: dict[str, Any], status: Status) -> None:
    """One compiled program: dependent rows are solved, contradictory ones told apart, unbounded ones and NaN too."""
    found = solve_family(**changes)
    assert found.reason is status
    assert np.isfinite(np.asarray(found.x)).all()
    if status is Status.OPTIMAL:  # min |x|^2/2 + x0 on x0 + x1 = 2: x = (1/2, 3/2), both multipliers together -3/2
        np.testing.assert_allclose(found.x, [0.5, 1.5], atol=1e-7)
        np.testing.assert_allclose(np.sum(np.asarray(found.y.equality)), -1.5, atol=1e-7)
    if status is Status.LOCALLY_INFEASIBLE:  # the least violation is half a unit on each side
        np.testing.assert_allclose(np.asarray(found.residuals.worst), 0.5, atol=1e-3)
    if status is Status.NUMERICAL_ERROR:  # f is NaN at the start already, which is the last pair there is
        np.testing.assert_array_equal(found.x, [3, -1])


@pytest.mark.slow
def test_a_function_that_fails_on_the_way_is_walked_around() -> None:
    """NaN beyond a wall between start and solution's side: the line search stays on the finite side."""
    found = solve_family(start=(-3.0, 5.0), wall=0.6)
    assert found.reason is Status.OPTIMAL
    np.testing.assert_allclose(found.x, [0.5, 1.5], atol=1e-7)
    held = solve_family(start=(-3.0, 5.0), wall=0.4)  # the solution itself is beyond
    assert held.reason is not Status.OPTIMAL
    assert np.isfinite(np.asarray(held.x)).all()
    assert float(held.x[0]) <= 0.4


def ball(x: Any, centre: Any, radius: Any) -> Any:
    return jnp.sum(x["a"] ** 2) + x["b"] ** 2 - radius


def distance(x: Any, centre: Any, radius: Any) -> Any:
    return jnp.sum((x["a"] - centre) ** 2) + (x["b"] - 1) ** 2


def nearest(centre: Any, radius: Any) -> pdopt.Solution:
    start = {"a": jnp.zeros(2, jnp.float64), "b": jnp.zeros((), jnp.float64)}
    return pdopt.minimise(distance, start, args=(centre, radius), inequality=ball, upper={"a": None, "b": 0.25},
                          tolerance=1e-10)  # fmt: skip


def test_solution_and_value_are_differentiable_both_ways() -> None:
    """Against finite differences, in a centre and a radius; the bound on b is active as well."""
    with jax.enable_x64(True):
        point = jnp.array([1.0, 2.0, 2.0], jnp.float64)

        def answer(p: Any) -> Any:
            found = nearest(p[:2], p[2])
            return jnp.concatenate([found.x["a"], found.x["b"][None], found.y.inequality[None], found.objective[None]])

        both = jax.jit(lambda p: (answer(p), jax.jacfwd(answer)(p), jax.jacrev(answer)(p)))
        plain = jax.jit(answer)
        value, forward, reverse = both(point)
        np.testing.assert_allclose(value[2], 0.25)
        h = 1e-5
        columns = [(plain(point + h * e) - plain(point - h * e)) / (2 * h) for e in jnp.eye(3)]
        np.testing.assert_allclose(forward, np.stack(columns, 1), atol=1e-6)
        np.testing.assert_allclose(reverse, forward, atol=1e-9)


def test_errors_come_before_compilation() -> None:
    f, x = lambda x: jnp.sum(x**2), jnp.ones(3)
    for words, call in {
        r"f returns an array of shape \(3,\); expected a scalar": lambda: pdopt.minimise(lambda x: x, x),
        r"f cannot be traced by JAX .*numpy": lambda: pdopt.minimise(lambda x: np.sin(x).sum(), x),
        "equality cannot be traced": lambda: pdopt.minimise(f, x, equality=lambda x: x[0] if x[0] > 0 else x[1]),
        "inequality has type int": lambda: pdopt.minimise(f, x, inequality=3),
        "equality returns no arrays": lambda: pdopt.minimise(f, x, equality=lambda x: ()),
        "f cannot be called with x and 1 further": lambda: pdopt.minimise(f, x, args=(1.0,)),
        r"lower has shape \(2,\); expected \(3,\)": lambda: pdopt.minimise(f, x, lower=jnp.zeros(2)),
        "upper has structure": lambda: pdopt.minimise(f, x, upper={"a": 1.0}),
        "start has 1 NaN": lambda: pdopt.minimise(f, jnp.array([1.0, jnp.nan])),
        "start has no arrays": lambda: pdopt.minimise(f, ()),
        "start.y has s": lambda: pdopt.minimise(f, x, multipliers=pdopt.Multipliers(jnp.ones(2))),
    }.items():
        with pytest.raises(InvalidProblem, match=words):
            call()
    for words, settings in {"gradient": {"gradient": "unrolled"}, "tolerance": {"tolerance": 0.0}}.items():
        with pytest.raises(InvalidOption, match=words):
            pdopt.minimise(f, x, **settings)
    for words, make in {
        "budget": lambda: pdopt.ProjectedNewton(budget=0),
        "memory": lambda: pdopt.ProjectedLBFGS(memory=0),
        "inner": lambda: pdopt.AugmentedLagrangian(inner=jnp.sum),
        "rule": lambda: pdopt.AugmentedLagrangian(rule="algencan"),
    }.items():
        with pytest.raises(InvalidOption, match=words):
            make()


# --- slow: a compilation each ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_known_solutions(name: str) -> None:
    known = KNOWN[name]
    with jax.enable_x64(True):
        found = solve(name, tolerance=TIGHT)
        assert found.reason is Status.OPTIMAL, (found.reason, found.residuals)
        np.testing.assert_allclose(found.objective, known.value, atol=2e-6 * max(1, abs(known.value)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HS7", "HS43", "HS71"])
@pytest.mark.parametrize(
    ("inner", "tolerance"), [(pdopt.ProjectedNewtonCG(), 1e-7), (pdopt.ProjectedLBFGS(), 1e-5)], ids=["cg", "lbfgs"]
)
def test_the_other_minimisers(name: str, inner: Any, tolerance: float) -> None:
    with jax.enable_x64(True):
        found = solve(name, method=pdopt.AugmentedLagrangian(inner=inner), tolerance=tolerance)
        assert found.reason is Status.OPTIMAL, (found.reason, found.residuals)
        np.testing.assert_allclose(found.objective, KNOWN[name].value, atol=100 * tolerance * abs(KNOWN[name].value))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HS7", "HS71"])
def test_the_other_penalty_rule(name: str) -> None:
    with jax.enable_x64(True):
        found = solve(name, method=pdopt.AugmentedLagrangian(rule=nocedal_wright), tolerance=TIGHT)
        assert found.reason is Status.OPTIMAL
        np.testing.assert_allclose(found.objective, KNOWN[name].value, rtol=1e-6)


@pytest.mark.slow
def test_a_batch_of_starts_is_a_loop_over_starts() -> None:
    with jax.enable_x64(True):
        known = KNOWN["HS71"]
        alone = lambda start: pdopt.minimise(known.f, start, **known.constraints, tolerance=TIGHT, gradient="none")
        starts = jnp.asarray(np.random.default_rng(0).uniform(1, 5, (2 * WIDTH + 1, 4)))  # three groups on a CPU
        together, single = jax.jit(jax.vmap(alone))(starts), jax.jit(alone)
        for k, start in enumerate(starts):
            one = single(start)
            assert int(one.status) == int(together.status[k]) == Status.OPTIMAL
            np.testing.assert_allclose(together.x[k], one.x, atol=1e-9)


@pytest.mark.slow
def test_warm_starts_and_single_precision() -> None:
    with jax.enable_x64(True):
        found = solve("HS71", tolerance=TIGHT)
        known = KNOWN["HS71"]
        again = pdopt.minimise(known.f, found, **known.constraints, tolerance=2 * TIGHT, gradient="none")
        assert int(again.iterations) == 0
        np.testing.assert_allclose(again.x, found.x, rtol=1e-14)
    narrow = solve("HS71", jnp.float32)
    assert narrow.reason is Status.OPTIMAL
    assert narrow.x.dtype == jnp.float32
    np.testing.assert_allclose(narrow.x, found.x, atol=1e-2)
    # Rows of HS106 have terms of 1e6, of which float32 keeps 0.1: the tolerance of 1e-4 is out of reach.
    assert solve("HS106", jnp.float32).reason in (Status.PRECISION_LIMIT, Status.PENALTY_LIMIT, Status.ITERATION_LIMIT)


@pytest.mark.slow
def test_dependent_rows_keep_a_gradient() -> None:
    """x = ((s - 1)/2 , (s + 1)/2) moves by 1/2 with the common right-hand side of two equal rows."""
    with jax.enable_x64(True):

        def first(s: Any) -> Any:
            data = of()._replace(sums=jnp.stack([s, s]))
            start = jnp.zeros(2, jnp.float64)
            return pdopt.minimise(family, start, args=(data,), equality=family_sums, tolerance=TIGHT).x

        np.testing.assert_allclose(jax.jacfwd(first)(jnp.float64(2.0)), [0.5, 0.5], atol=1e-5)
        assert isinstance(of(), Family)
