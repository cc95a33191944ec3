"""Derivatives of entropic transport against finite differences and against an unrolled loop, in every mode."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.problems.costs import BLOCK_ENTRIES
from pdopt.problems.couplings import Potentials
from pdopt.problems.entropic_dual import entropic_dual, extended, log_mass
from pdopt.problems.entropic_gradients import potentials
from pdopt.types import Pair

N, M = 6, 5


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def loop(problem, sweeps=600):
    """The reference: plain log-domain Sinkhorn from zero, differentiable by unrolling."""
    cost, epsilon, a, b = problem.cost, problem.regulariser.epsilon, problem.a, problem.b
    C = cost.todense()
    finite = [jnp.where(jnp.isinf(rho), 1, rho) for rho in problem.unbalanced]
    tau_a, tau_b = (jnp.where(jnp.isinf(rho), 1, r / (r + epsilon)) for rho, r in zip(problem.unbalanced, finite))
    lse = lambda h, C: -epsilon * jax.nn.logsumexp(h - C / epsilon, axis=1)

    def sweep(y, _):
        f = jnp.where(a > 0, tau_a * lse(log_mass(b) + y.g / epsilon, C), 0)
        g = jnp.where(b > 0, tau_b * lse(log_mass(a) + f / epsilon, C.T), 0)
        return Potentials(f, g), None

    return jax.lax.scan(sweep, Potentials(jnp.zeros_like(a), jnp.zeros_like(b)), length=sweeps)[0]


found = jax.jit(lambda problem: jax.lax.stop_gradient(loop(jax.lax.stop_gradient(problem))))


def centred(y, keep, balanced):
    """Potentials of some bins in the gauge of the rule: a shift that no plan sees (balanced ones have one)."""
    t = (jnp.sum(y.f * keep.f) - jnp.sum(y.g * keep.g)) / (jnp.sum(keep.f) + jnp.sum(keep.g))
    t = jnp.where(balanced, t, 0)
    return Potentials(jnp.where(keep.f, y.f - t, 0), jnp.where(keep.g, y.g + t, 0))


def implicit(problem):
    return potentials(found(problem), problem)


def value(problem):
    """What a solve returns as objective, without the solve: D at potentials that maximise it."""
    return entropic_dual(extended(problem, found(problem)), problem)


def masses(rng, n, empty=()):
    mass = rng.uniform(0.5, 1.5, n)
    mass[list(empty)] = 0
    return mass / mass.sum()


def data(kind="dense", empty_a=(), empty_b=(), unbalanced=(np.inf, np.inf), epsilon=0.3, dtype=np.float64, seed=0):
    """`(theta, make)`: a dictionary of everything that can move, and the problem made of it."""
    rng = np.random.default_rng(seed)
    if kind == "dense":
        parts = {"C": rng.uniform(size=(N, M))}
        make = lambda p: p["C"]
    elif kind == "points":
        parts = {"x": rng.normal(size=(N, 2)), "y": rng.normal(size=(M, 2))}
        make = lambda p: pdopt.SqEuclidean(p["x"], p["y"])
    elif kind == "grid":
        parts = {"first": rng.uniform(size=(2, 5)), "second": rng.uniform(size=(3, 1))}
        make = lambda p: pdopt.Grid((p["first"], p["second"]))
    else:
        parts = {"U": rng.uniform(size=(N, 2)), "V": rng.uniform(size=(M, 2))}
        make = lambda p: pdopt.LowRank(p["U"], p["V"])
    parts |= {"a": masses(rng, N, empty_a), "b": masses(rng, M, empty_b), "epsilon": np.float64(epsilon)}
    soft = [k for k, r in enumerate(unbalanced) if np.isfinite(r)]
    parts |= {f"rho{k}": np.float64(unbalanced[k]) for k in soft}
    parts = {name: jnp.asarray(v, dtype) for name, v in parts.items()}

    def problem(p):
        rho = tuple(p[f"rho{k}"] if k in soft else np.inf for k in (0, 1))
        return pdopt.Transport(make(p), p["a"], p["b"], pdopt.Entropy(p["epsilon"]), rho, check=False)

    return parts, problem


def direction(parts, seed=1, masses_too=True):
    """A random change of everything; masses keep their total, empty bins only gain."""
    rng = np.random.default_rng(seed)
    moved = {name: rng.normal(size=np.shape(v)) for name, v in parts.items()}
    for name in ("a", "b"):
        empty = np.asarray(parts[name]) == 0
        d = np.where(empty, np.abs(moved[name]), moved[name]) * 0.1
        d[~empty] -= d.sum() / (~empty).sum()
        moved[name] = d if masses_too else 0 * d
    return {name: jnp.asarray(d, parts[name].dtype) for name, d in moved.items()}


def along(parts, moved, t):
    return {name: v + t * moved[name] for name, v in parts.items()}


def difference(function, parts, moved, step):
    """Central difference, of fourth order; one-sided of fourth order where a mass leaves zero."""
    at = lambda k: function(along(parts, moved, k * step))
    if any(bool(np.any((np.asarray(parts[n]) == 0) & (np.asarray(moved[n]) != 0))) for n in ("a", "b")):
        weights = {0: -25 / 12, 1: 4, 2: -3, 3: 4 / 3, 4: -1 / 4}
    else:
        weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    return sum(w * at(k) for k, w in weights.items()) / step


CASES = {
    "dense": {},
    "points": {"kind": "points", "epsilon": 1.0},
    "grid": {"kind": "grid"},
    "low rank": {"kind": "low rank"},
    "empty bins": {"empty_a": (0, 3), "empty_b": (2,)},
    "grid, empty bins": {"kind": "grid", "empty_a": (0, 1, 2), "empty_b": (2,)},
    "unbalanced": {"unbalanced": (0.7, 1.3)},
    "half unbalanced": {"unbalanced": (0.7, np.inf), "empty_a": (1,)},
}


@pytest.mark.parametrize("case", CASES)
def test_value_has_the_slope_of_finite_differences(case):
    parts, problem = data(**CASES[case])
    at = jax.jit(lambda p: value(problem(p)))
    slopes = jax.jit(jax.grad(lambda p: value(problem(p))))(parts)
    for name in parts:
        moved = {k: d * (k == name) for k, d in direction(parts).items()}
        expected = difference(at, parts, moved, 1e-3)
        got = jnp.vdot(slopes[name], moved[name])
        # Fourth order in a step of 1e-3 leaves 1e-12 times a fifth derivative, and 1e-16 / 1e-3 of rounding.
        assert float(got) == pytest.approx(float(expected), abs=1e-8), name


def test_the_slopes_of_the_value_are_the_plan_the_potentials_and_the_divergence():
    parts, problem = data()
    here = problem(parts)
    y, P = found(here), here.rule.plan(here, Pair((), found(here))).todense()
    slopes = jax.grad(lambda p: value(problem(p)))(parts)
    np.testing.assert_allclose(slopes["C"], P, atol=1e-14)
    for name, potential in (("a", y.f), ("b", y.g)):
        np.testing.assert_allclose(slopes[name] - slopes[name].mean(), potential - potential.mean(), atol=1e-12)
    ab = here.a[:, None] * here.b
    np.testing.assert_allclose(slopes["epsilon"], jnp.sum(P * jnp.log(P / ab)), rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_potentials_and_plan_move_as_finite_differences_say(case):
    parts, problem = data(**CASES[case])
    v, u = np.random.default_rng(3).normal(size=M), np.random.default_rng(4).normal(size=N)
    keep = Potentials(parts["a"] > 0, parts["b"] > 0)  # a potential jumps from 0 where a bin gets its first mass
    balanced = "unbalanced" not in case

    def seen(p, y_of):
        here = problem(p)
        y = y_of(here)
        plan = here.rule.plan(here, Pair((), y))
        parts = (*centred(y, keep, balanced), plan.matvec(v), plan.rmatvec(u), jnp.ravel(plan.todense()))
        return jnp.concatenate(parts)

    at = jax.jit(lambda p: seen(p, found))
    push = jax.jit(lambda p, moved: jax.jvp(lambda p: seen(p, implicit), (p,), (moved,))[1])
    for name in parts:
        moved = {k: d * (k == name) for k, d in direction(parts).items()}
        np.testing.assert_allclose(push(parts, moved), difference(at, parts, moved, 1e-3), atol=1e-7, err_msg=name)


@pytest.mark.parametrize("case", ["dense", "points", "grid, empty bins", "unbalanced"])
@pytest.mark.slow
def test_the_plan_pulls_back_as_the_unrolled_loop_does(case):
    parts, problem = data(**CASES[case])
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(N, M)))

    def loss(p, y_of):
        here = problem(p)
        plan = here.rule.plan(here, Pair((), y_of(here)))
        return jnp.sum(weights * plan.todense()) + plan.matvec(weights[0]) @ weights[:, 0]

    rule, unrolled = (jax.jit(jax.grad(lambda p: loss(p, y_of)))(parts) for y_of in (implicit, loop))  # noqa: B023
    for name in parts:
        one, other = rule[name], unrolled[name]
        if name in ("a", "b"):
            # The loop knows nothing of bins that are empty, and masses move along zero totals only.
            on = parts[name] > 0
            one, other = one[on], other[on]
            if "unbalanced" not in case:
                one, other = one - one.mean(), other - other.mean()
        np.testing.assert_allclose(one, other, atol=1e-9, err_msg=name)


def test_the_rule_batches_and_stays_in_float32():
    parts, problem = data("points", epsilon=1.0, dtype=np.float32, empty_a=(2,))
    slopes = lambda p: jax.grad(lambda p: jnp.sum(implicit(problem(p)).f ** 2))(p)
    many = {name: jnp.stack([v, v * 1.0]) for name, v in parts.items()}
    many["x"] = many["x"].at[1].multiply(1.1)
    batch = jax.jit(jax.vmap(slopes))(many)
    wide_parts = {name: v.astype(jnp.float64) for name, v in parts.items()}
    for k in range(2):
        exact = jax.jit(slopes)({name: v[k].astype(jnp.float64) for name, v in many.items()})
        for name in wide_parts:
            assert batch[name].dtype == jnp.float32
            # Rounding of 6e-8 in exponents of size 10, through a system whose condition is about 10.
            scale = float(jnp.max(jnp.abs(exact[name]))) + 1
            np.testing.assert_allclose(batch[name][k], exact[name], atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "of"),
    [("points", "value"), ("points", "potentials"), ("points", "plan"), ("points", "curvature"), ("low rank", "value")],
)
def test_no_derivative_stores_a_plan(kind, of):
    n = 4096  # n n = 4 WHOLE_ENTRIES: blocks of 256 rows
    make = {"points": pdopt.SqEuclidean, "low rank": pdopt.LowRank}[kind]
    points = jax.ShapeDtypeStruct((n, 3), jnp.float32)
    y = jax.ShapeDtypeStruct((n,), jnp.float32)

    def problem(x):
        return pdopt.Transport(make(x, x + 1), regulariser=pdopt.Entropy(jnp.float32(0.5)), check=False)

    def value_of(x, f):
        return entropic_dual(extended(problem(x), Potentials(f, f)), problem(x))

    losses = {
        "value": jax.grad(value_of),
        "potentials": jax.grad(lambda x, f: jnp.sum(potentials(Potentials(f, f), problem(x)).f ** 2)),
        "plan": jax.grad(
            lambda x, f: jnp.sum(pdopt.Entropy(jnp.float32(0.5)).plan(
                problem(x), Pair((), potentials(Potentials(f, f), problem(x)))).matvec(x[:, 0]) ** 2)
        ),
        "curvature": lambda x, f: jax.jvp(jax.grad(lambda x: value_of(x, f)), (x,), (x,))[1],
    }  # fmt: skip
    loss = losses[of]
    compiled = jax.jit(loss).lower(points, y).compile()
    shapes = re.findall(r"[fs]\d+\[([\d,]+)\]", compiled.as_text())
    # One block of rows; the plan has 16 times as many entries.
    assert max(int(np.prod([int(k) for k in shape.split(",")])) for shape in shapes) <= BLOCK_ENTRIES
    assert compiled.memory_analysis().temp_size_in_bytes < 12 * 4 * BLOCK_ENTRIES
