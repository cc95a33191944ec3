"""LV-HBA: its step against the published formulas, its solutions against a slow twin, statuses, batches, resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import pdopt
from benchmarks.bilevel_problems import error_one, reference_two, toy_one, toy_two
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.geometry.sets import Box
from pdopt.methods.projection import project
from pdopt.problems.polyhedron import Polyhedron
from pdopt.types import Pair, Status
from tests.problems import bilevel_family as family

pytestmark = pytest.mark.usefixtures("quick_compiles")
METHOD = pdopt.LVHBA(penalty=pdopt.Stages(steps=3000), every=50)
OPTIONS = {"tolerance": 1e-4, "max_iterations": 20_000}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def feasible(x, y, data):
    return max(abs(float(data["a"] @ y - 1 - x[0])), float(np.max(data["D"] @ y + data["E"] @ x - data["e"])))


@pytest.mark.parametrize("seed", [1, 4])
def test_solutions_are_those_of_the_slow_twin(seed):
    data = family.draw(seed)
    solution = pdopt.solve(family.program(data), METHOD, **OPTIONS)
    assert solution.reason is Status.OPTIMAL
    x = np.asarray(solution.x.upper)
    best = minimize(
        lambda p: family.value(data, p), x + 0.3, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    np.testing.assert_allclose(x, best.x, atol=2e-3)
    y, lam, mu = family.answer(data, x)
    np.testing.assert_allclose(solution.x.lower, y, atol=2e-3)
    np.testing.assert_allclose(solution.y.inequality, mu, atol=2e-2)
    np.testing.assert_allclose(solution.y.equality, lam, atol=2e-2)
    assert feasible(x, np.asarray(solution.x.lower), data) < 1e-3


@pytest.mark.slow
def test_a_batch_equals_the_loop():
    draws = [family.draw(seed) for seed in (1, 4)]
    program = family.program(draws[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *draws)

    def one(data):
        return pdopt.solve(program.replace(args=(data,), check=False), METHOD, **OPTIONS)

    batch = jax.vmap(one)(stacked)
    for place, data in enumerate(draws):
        single = pdopt.solve(family.program(data), METHOD, **OPTIONS)
        assert int(single.iterations) == int(batch.iterations[place])
        np.testing.assert_allclose(batch.x.upper[place], single.x.upper, atol=1e-8)


def test_each_way_to_stop_has_its_status():
    data = family.draw(1)
    run = lambda **changes: pdopt.solve(family.program({**data, **changes}), METHOD, **OPTIONS)
    assert run(s=np.full(3, np.nan)).reason is Status.NUMERICAL_ERROR
    assert run(curve=np.array(-50.0)).reason is Status.DIVERGED
    short = pdopt.solve(family.program(data), METHOD, tolerance=1e-9, max_iterations=50)
    assert short.reason is Status.ITERATION_LIMIT
    assert int(short.iterations) == 50


def view_and_pairs(method, seed=1):
    program = family.program(family.draw(seed))
    view = method.view(program)
    rng = np.random.default_rng(seed)
    draw = lambda like: jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), like)
    outer = view.inside(draw(view.start()))
    return program, view, outer, view.inside(Pair(draw(outer.x.lower), draw(outer.y)))


def test_the_published_step_is_the_saddle_step_at_the_old_point():
    method = pdopt.LVHBA(inner=-1.0, gamma1=3.0, gamma2=2.0)
    _, view, outer, inner = view_and_pairs(method)
    (x, y), z = outer
    theta, lam = inner
    eta = 1e-3
    found = jax.jit(method.inner_step)(view, outer, inner, eta)
    slope = jax.grad(view.lagrangian, argnums=1)(x, theta, lam) + (theta - y) / 3
    np.testing.assert_allclose(found.x, theta - eta * slope, rtol=1e-12)
    rows = view.violation(x, theta)
    explicit = jnp.clip(lam + eta * (rows - (lam - z) / 2), view.lowest, None)
    implicit = jnp.clip((lam + eta * rows + eta / 2 * z) / (1 + eta / 2), view.lowest, None)
    np.testing.assert_allclose(found.y, implicit, rtol=1e-12)
    np.testing.assert_allclose(found.y, explicit, atol=10 * eta**2)  # the two forms agree to first order
    later = pdopt.LVHBA(inner=0.0, gamma1=3.0, gamma2=2.0).inner_step(view, outer, inner, eta)
    rows = view.violation(x, found.x)  # theta = 0 sees the new point
    np.testing.assert_allclose(later.y, jnp.clip((lam + eta * rows + eta / 2 * z) / (1 + eta / 2), view.lowest, None))


def test_the_slopes_are_those_of_the_value_function():
    method = pdopt.LVHBA(gamma1=2.0, gamma2=1.0)
    _, view, outer, inner = view_and_pairs(method)
    eta = method.largest_eta(view.norms(outer))

    @jax.jit
    def settled(outer):
        return jax.lax.fori_loop(0, 3000, lambda _, pair: method.inner_step(view, outer, pair, eta), inner)

    def gap(point):
        return view.penalised(point, 5.0) - view.value(point, outer.y, settled(Pair(point, outer.y)), (2.0, 1.0))

    slopes = view.slopes(outer.x, settled(outer), 5.0, 2.0)
    step = 1e-5
    for place in range(2):
        way = jnp.zeros(2).at[place].set(step)
        moved = [gap(outer.x._replace(upper=outer.x.upper + sign * way)) for sign in (1, -1)]
        np.testing.assert_allclose((moved[0] - moved[1]) / (2 * step), slopes.upper[place], atol=1e-6)
    for place in range(3):
        way = jnp.zeros(3).at[place].set(step)
        moved = [gap(outer.x._replace(lower=outer.x.lower + sign * way)) for sign in (1, -1)]
        np.testing.assert_allclose((moved[0] - moved[1]) / (2 * step), slopes.lower[place], atol=1e-6)
    point, _ = method.project(view, outer.x, jnp.zeros(3))
    assert float(view.gap(point, outer.y, settled(Pair(point, outer.y)), (2.0, 1.0))) > 0  # f - v >= 0 on C


def test_rows_are_equilibrated_and_multipliers_go_there_and_back():
    _, view, outer, _ = view_and_pairs(pdopt.LVHBA())
    by_y = jax.jacfwd(lambda y: view.violation(outer.x.upper, y))(outer.x.lower)
    np.testing.assert_allclose(jnp.linalg.norm(by_y, axis=1), 1.0, rtol=1e-10)
    again = view.into(view.back(outer))
    np.testing.assert_allclose(again.y, outer.y, rtol=1e-12)
    program, (x, y) = view.program, outer.x
    user = view.back(outer).y
    np.testing.assert_allclose(program.lower_lagrangian(x, y, user), view.lagrangian(x, y, outer.y), rtol=1e-12)


@pytest.mark.parametrize("kind", ["rows", "planes", "boxed"])
def test_projections_against_scipy(kind):
    rng = np.random.default_rng(0)
    A, b, target = rng.standard_normal((4, 6)), rng.standard_normal(4), 2 * rng.standard_normal(6)
    equality = np.array([True] * 4 if kind == "planes" else [True, False, False, False])
    box = Box(-1.0, 1.0)
    extra = {"set": box} if kind == "boxed" else {}
    rows = Polyhedron.make(jnp.asarray(A), jnp.asarray(b), jnp.asarray(equality), planes=kind == "planes", **extra)
    found = jax.jit(project)(rows, jnp.asarray(target), jnp.zeros(4))
    limits = [
        {"type": "eq", "fun": lambda u: A[equality] @ u + b[equality]},
        {"type": "ineq", "fun": lambda u: -(A[~equality] @ u + b[~equality])},
    ]
    bounds = [(-1, 1)] * 6 if kind == "boxed" else None
    expected = minimize(
        lambda u: np.sum((u - target) ** 2) / 2, np.zeros(6), constraints=limits, bounds=bounds, tol=1e-14
    )
    assert expected.success
    np.testing.assert_allclose(found.x, expected.x, atol=1e-5)
    assert float(rows.error(found)) < 1e-6


def test_settings_and_problems_are_checked():
    for settings, match in (
        ({"inner": "theta"}, "inner is 'theta'"),
        ({"inner": -2.0}, "inner is -2"),
        ({"penalty": 3}, "penalty is 3"),
        ({"penalty": pdopt.Growing(power=0.7)}, "power is 0.7"),
        ({"penalty": pdopt.Stages(ratio=1.0)}, "ratio is 1"),
        ({"gamma1": 0.0}, "gamma1 is 0"),
        ({"every": 0}, "every is 0"),
    ):
        with pytest.raises(InvalidOption, match=match):
            pdopt.LVHBA(**settings)
    with pytest.raises(InvalidOption, match="inner_steps is 0"):
        pdopt.ValuePenalty(inner_steps=0)
    with pytest.raises(UnsupportedProblem, match="without equality or inequality"):
        pdopt.solve(family.program(family.draw(0)), pdopt.ValuePenalty())
    bent = pdopt.BilevelProgram(
        lambda x, y: x + y, lambda x, y: (y - x) ** 2, (1.0, 1.0), inequality=lambda x, y: y**2 - 1, dtype=jnp.float64
    )
    with pytest.raises(InvalidProblem, match=r"row 0 .* not affine"):
        pdopt.solve(bent, pdopt.LVHBA())


def test_a_step_above_its_bound_draws_a_warning():
    with pytest.warns(RuntimeWarning, match="eta is 5, above its bound"):
        pdopt.LVHBA(eta=5.0).admit(family.program(family.draw(0)))


# --- slow: every inner mode, resuming, the user's own projection, the published toys -------------------------------


@pytest.mark.slow
def test_rows_that_cannot_be_met_are_proved_so():
    data = family.draw(1)
    clash = {"D": np.stack([data["D"][0], -data["D"][0]]), "E": np.zeros((2, 2)), "e": np.array([-1.0, -1.0])}
    empty = pdopt.solve(family.program({**data, **clash}), METHOD, **OPTIONS)
    assert empty.reason is Status.PRIMAL_INFEASIBLE
    ray = empty.certificate["ray"].y.inequality  # d >= 0 with d'D = 0 and d'e < 0
    np.testing.assert_allclose(ray, [1, 1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [-1.0, 0.0, 0.5, 1.0, "extragradient"])
def test_every_inner_mode_arrives(inner):
    data = family.draw(4)
    method = METHOD.replace(inner=inner)
    solution = pdopt.solve(family.program(data), method, **OPTIONS)
    assert solution.reason is Status.OPTIMAL
    assert float(method.residual(family.program(data), solution, 1e6)) < 1e-2


@pytest.mark.slow
def test_float32_reaches_a_thousandth():
    solution = pdopt.solve(family.program(family.draw(4), jnp.float32), METHOD, tolerance=1e-3, max_iterations=20_000)
    assert solution.reason is Status.OPTIMAL
    assert solution.x.upper.dtype == jnp.float32


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits(tmp_path):
    program = family.program(family.draw(4))
    whole = pdopt.run(program, METHOD, **OPTIONS)
    pdopt.run(program, METHOD, **{**OPTIONS, "max_iterations": 500}, checkpoint=tmp_path)
    resumed = pdopt.run(program, METHOD, **OPTIONS, checkpoint=tmp_path, resume=True)
    assert int(resumed.iterations) == int(whole.iterations)
    np.testing.assert_array_equal(resumed.x.upper, whole.x.upper)


@pytest.mark.slow
def test_a_ball_below_with_the_users_own_projection():
    def onto(x, y):
        return x, y / jnp.sqrt(jnp.maximum(1, jnp.sum(y**2)))  # smooth at 0, as the norm is not

    program = pdopt.BilevelProgram(
        lambda x, y: jnp.sum((y - jnp.array([0.6, 0.8])) ** 2) + 0.1 * jnp.sum((x - 1) ** 2),
        lambda x, y: jnp.sum((y - x) ** 2) / 2, (jnp.ones(2), jnp.zeros(2)),
        inequality=lambda x, y: jnp.sum(y**2) - 1, project=onto, dtype=jnp.float64,
    )  # fmt: skip
    solution = pdopt.solve(program, METHOD, tolerance=1e-4, max_iterations=20_000)
    assert solution.reason is Status.OPTIMAL
    h = pdopt.hypergradient(program, solution.x.upper)
    assert float(jnp.max(jnp.abs(h.gradient))) < 1e-3


@pytest.mark.slow
def test_baselines_arrive():
    data = family.draw(4)
    program = family.program(data)
    best = pdopt.polish_bilevel(program, program.first())
    implicit = pdopt.solve(program, pdopt.ImplicitGradient(), tolerance=1e-4, max_iterations=2000)
    np.testing.assert_allclose(implicit.x.upper, best.x.upper, atol=1e-2)


@pytest.mark.slow
def test_toy_one_keeps_its_promises():
    program = toy_one()
    published = pdopt.LVHBA(inner=-1.0, penalty=pdopt.Growing(1.0, 0.49), gamma1=10.0, gamma2=10.0)
    assert error_one(pdopt.solve(program, published, max_iterations=10_000)) <= 1e-2
    staged = pdopt.solve(program, pdopt.LVHBA.staged(), max_iterations=15_000, tolerance=1e-10)
    assert error_one(staged) <= 1e-5
    assert error_one(pdopt.polish_bilevel(program, staged)) <= 1e-8


@pytest.mark.slow
def test_toy_two_is_as_low_as_scipy():
    second = toy_two()
    solution = pdopt.solve(second.program, pdopt.LVHBA.staged(), max_iterations=20_000, tolerance=1e-10)
    assert abs(float(solution.objective) - reference_two(second)) <= 1e-3
