"""Each set against its definition: slow projections by other routes, duality, declared facts, edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.optimize import minimize

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.geometry import (
    Box,
    L1Ball,
    L2Ball,
    LinfBall,
    Orthant,
    Product,
    Reals,
    SecondOrderCone,
    Simplex,
)
from pdopt.geometry.balls import simplex_projection

SETS = {
    "reals": Reals(),
    "orthant": Orthant(),
    "box": Box(-1.0, 2.0),
    "half line": Box(-np.inf, 0.5),
    "fixed": Box(0.25, 0.25),
    "simplex": Simplex(),
    "simplex of 3": Simplex(3.0),
    "simplex of 0": Simplex(0.0),
    "l1": L1Ball(1.5),
    "l2": L2Ball(1.5),
    "l2 of 0": L2Ball(0.0),
    "linf": LinfBall(0.75),
    "cone": SecondOrderCone(),
}
NAMES = list(SETS)
numbers = st.floats(-50, 50, allow_subnormal=False)
vectors = st.sampled_from([1, 4]).flatmap(lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n)] * 2))
few = settings(max_examples=10, deadline=None)


def slow_projection(s, x):
    """By another route than the fast one: bisection on the multiplier of the coupling constraint, for one row."""
    x = np.asarray(x, float)
    if isinstance(s, Reals):
        return x.copy()
    if isinstance(s, Orthant):
        return np.where(x < 0, 0.0, x)
    if isinstance(s, Box):
        return np.array([min(max(v, s.lower), s.upper) for v in x])
    if isinstance(s, LinfBall):
        return np.array([min(max(v, -s.radius), s.radius) for v in x])
    if isinstance(s, Simplex):
        return bisect(
            lambda tau: np.maximum(x - tau, 0), lambda p: p.sum() - s.total, x.min() - s.total - 1, x.max() + 1
        )
    if isinstance(s, L1Ball):
        if np.abs(x).sum() <= s.radius:
            return x.copy()
        shrink = lambda tau: np.sign(x) * np.maximum(np.abs(x) - tau, 0)
        return bisect(shrink, lambda p: np.abs(p).sum() - s.radius, 0.0, np.abs(x).max() + 1)
    if isinstance(s, L2Ball):
        if np.sqrt((x**2).sum()) <= s.radius or s.radius == 0:
            return x * (s.radius > 0)
        return bisect(lambda tau: x / (1 + tau), lambda p: np.sqrt((p**2).sum()) - s.radius, 0.0, 1e9)
    # The cone: minimise over the bound t the squared distance to the ball of radius t, a convex function of t alone.
    t, z = x[0], x[1:]
    n = np.sqrt((z**2).sum())
    cost = lambda bound: (bound - t) ** 2 + max(n - bound, 0.0) ** 2
    low, high = 0.0, abs(t) + n + 1
    for _ in range(300):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if cost(a) <= cost(b) else (a, high)
    bound = (low + high) / 2
    return np.concatenate([[bound], z * min(1.0, bound / n) if n > 0 else z])


def bisect(point, excess, low, high):
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(point(middle)) > 0 else (low, middle)
    return point((low + high) / 2)


def interior(s, x):
    """Some point of the set, as the projection of another random point."""
    return s.project(x)


@pytest.mark.parametrize("name", NAMES)
@given(data=vectors)
@few
def test_projection_is_the_slow_one_and_obeys_the_variational_inequality(name, data):
    s = SETS[name]
    with jax.enable_x64(True):
        x, w = (jnp.asarray(v, jnp.float64) for v in data)
        p = s.project(x)
        # Ternary search on a quadratic resolves sqrt(eps) of its argument: 1e-6 at this size; bisection does better.
        np.testing.assert_allclose(p, slow_projection(s, x), atol=3e-6 if name == "cone" else 1e-9)
        size = 1 + float(jnp.abs(x).max())
        rounding = 1e-13 * size * x.size
        # In the set, idempotent, and <x - p, z - p> <= 0 for every z in the set: the definition of the projection.
        assert bool(s.contains(p, rounding))
        np.testing.assert_allclose(s.project(p), p, atol=rounding)
        z = interior(s, w)
        assert float(jnp.vdot(x - p, z - p)) <= rounding * (size + float(jnp.abs(w).max()) + 1) * 10
        # Nonexpansive.
        assert float(jnp.linalg.norm(z - p)) <= float(jnp.linalg.norm(w - x)) + rounding * 100


@pytest.mark.parametrize("name", ["simplex", "l1", "l2", "cone"])
def test_projection_is_what_a_general_solver_finds(name):
    x = np.random.default_rng(3).normal(size=4) * 2
    constraints = {
        "simplex": [{"type": "eq", "fun": lambda z: z.sum() - 1}],
        "l1": [{"type": "ineq", "fun": lambda z: 1.5 - z[:4].sum() - z[4:].sum()}],
        "l2": [{"type": "ineq", "fun": lambda z: 1.5**2 - z @ z}],
        "cone": [{"type": "ineq", "fun": lambda z: z[0] - np.sqrt(z[1:] @ z[1:] + 1e-30)}],
    }[name]
    # The l1 ball is split in positive and negative parts, which makes its constraint smooth.
    point = (lambda z: z[:4] - z[4:]) if name == "l1" else (lambda z: z)
    bounds = {"simplex": [(0, None)] * 4, "l1": [(0, None)] * 8}.get(name)
    start = np.full(8 if name == "l1" else 4, 0.1)
    found = minimize(
        lambda z: ((point(z) - x) ** 2).sum(), start, method="SLSQP", bounds=bounds, constraints=constraints, tol=1e-14
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(SETS[name].project(jnp.asarray(x)), point(found.x), atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@given(data=vectors)
@few
def test_support_is_the_supremum(name, data):
    """`<y, z> <= support(y)` on the set; equality at the projection of a far point; distance by duality."""
    s = SETS[name]
    with jax.enable_x64(True):
        x, y = (jnp.asarray(v, jnp.float64) for v in data)
        z = interior(s, x)
        rounding = 1e-11 * (1 + float(jnp.abs(y).max())) * (1 + float(jnp.abs(x).max()))
        assert float(jnp.vdot(y, z)) <= float(s.support(y)) + rounding
        # normal = x - p lies in the normal cone at p: support(normal) = <normal, p>, where the slack forgives rounding.
        p = s.project(x)
        normal = x - p
        slack = 1e-12 * (1 + float(jnp.abs(x).max()))
        np.testing.assert_allclose(s.support(normal, slack), jnp.vdot(normal, p), atol=rounding + 1e-9)
        # distance(x) = max over |u| <= 1 of <u, x> - support(u), attained at normal / |normal|.
        d = float(s.distance(x))
        if d > 1e-6:
            u = normal / d
            assert float(jnp.vdot(u, x) - s.support(u, slack / d)) == pytest.approx(d, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_declared_facts_hold(name):
    s = SETS[name]
    with jax.enable_x64(True):
        points = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)) * 5)
        inside = jax.vmap(s.project)(points)
        if s.is_cone:
            for scale in (0.0, 0.3, 7.0):
                assert bool(jnp.all(jax.vmap(lambda z: s.contains(z, 1e-12))(scale * inside)))
        if s.bounded:
            assert bool(jnp.all(jnp.isfinite(jax.vmap(s.support)(1e6 * points))))
        if s.separable:
            one_by_one = jnp.stack([s.project(points[:, j]) for j in range(4)], axis=1)
            np.testing.assert_array_equal(one_by_one, inside)


def test_facts_that_are_denied_have_witnesses():
    y = jnp.ones(3)
    assert not bool(jnp.isfinite(Box(0.0, np.inf).support(y)))
    assert not bool(Box(-1.0, 2.0).contains(3 * Box(-1.0, 2.0).project(y), 1e-3))
    assert not bool(Simplex().contains(2 * Simplex().project(y), 1e-3))
    assert not bool(jnp.isfinite(SecondOrderCone().support(y)))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32_and_transforms_agree(name, x64):
    s = SETS[name]
    with jax.enable_x64(x64):
        rows = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 4)) * 3, jnp.float32)
        for function in (s.project, s.support, s.distance):
            assert jax.eval_shape(function, rows).dtype == rows.dtype
        if x64:
            return
        p = s.project(rows)
        # Sums inside a fused program may be taken in another order: a few units of rounding at size 10.
        np.testing.assert_allclose(jax.jit(lambda s, x: s.project(x))(s, rows), p, atol=4e-6)
        np.testing.assert_allclose(jax.vmap(jax.vmap(s.project))(rows), p, atol=4e-6)
        project, distance = jax.jit(s.project), jax.jit(s.distance)
        np.testing.assert_allclose(p, np.stack([[project(r) for r in block] for block in rows]), atol=4e-6)
        total = sum(float(distance(r)) ** 2 for block in rows for r in block)
        assert float(s.distance(rows)) ** 2 == pytest.approx(total, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_finite_differences(name):
    with jax.enable_x64(True):
        x = jnp.asarray([1.3, -0.4, 0.9, 0.2])
        check_grads(SETS[name].project, (x,), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)
        p = SETS[name].project(x)
        if bool(jnp.any(jnp.abs(x - p) > 1e-3)):
            check_grads(SETS[name].distance, (x,), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)
        inside = jax.grad(SETS[name].distance)(SETS[name].project(x))
        assert bool(jnp.all(jnp.isfinite(inside)))


def test_derivative_in_the_parameters():
    with jax.enable_x64(True):
        x = jnp.asarray([1.3, -0.4, 0.9, 0.2])
        for make in (Simplex, L1Ball, L2Ball, LinfBall):
            check_grads(lambda r, make=make: make(r).project(x), (0.8,), order=1, modes=("fwd", "rev"), atol=1e-6)
        check_grads(lambda u: Box(-0.1, u).project(x), (0.8,), order=1, modes=("fwd", "rev"), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x", [[1e30, -1e30, 0.0], [-1e30] * 3, [1e30] * 3, [3.0], [-1e30], [0.0, 0.0, 0.0]])
def test_huge_and_single_entries_in_float32(name, x):
    s = SETS[name]
    x = jnp.asarray(x, jnp.float32)
    p = s.project(x)
    assert bool(jnp.all(jnp.isfinite(p)))
    # A projection of a point of size 1e30 may miss the set by rounding at 1e30 only where the set is that large.
    size = 1.0 if s.bounded else float(jnp.abs(x).max())
    assert bool(s.contains(p, 1e-6 * size))
    assert bool(jnp.isfinite(s.distance(x)))
    assert not bool(jnp.isnan(s.support(x)))
    assert bool(jnp.all(jnp.isfinite(jax.jacobian(s.project)(x))))


@pytest.mark.parametrize("name", ["simplex", "simplex of 3", "simplex of 0", "l1", "l2", "cone"])
def test_infinite_entries_give_a_finite_point(name):
    """Reliability row 41. (An infinite bound of a box lets an infinite entry through: it is in the set.)"""
    for row in ([-np.inf, -np.inf, -np.inf], [-np.inf, 0.5, 0.2], [np.inf, 0.0, np.inf]):
        p = SETS[name].project(jnp.asarray(row, jnp.float32))
        assert not bool(jnp.any(jnp.isnan(p)))
    p = Simplex().project(jnp.asarray([[-np.inf, -np.inf], [-np.inf, 0.3], [np.inf, np.inf]], jnp.float32))
    np.testing.assert_allclose(p, [[0.5, 0.5], [0.0, 1.0], [0.5, 0.5]])


def test_optax_simplex_fails_where_ours_is_used():
    """The reason for own code: if this stops failing, use optax's."""
    from optax import projections

    x = jnp.asarray([1e30, 1e30, 1e30], jnp.float32)
    assert float(projections.projection_simplex(x).sum()) != pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(Simplex().project(x), [1 / 3] * 3, rtol=1e-6)
    assert float(jnp.abs(projections.projection_l1_ball(x)).sum()) > 1.1
    assert float(L1Ball().project(x).sum()) == pytest.approx(1.0, rel=1e-6)
    assert not bool(jnp.isclose(jnp.linalg.norm(projections.projection_l2_ball(x)), 1.0))
    assert float(jnp.linalg.norm(L2Ball().project(x))) == pytest.approx(1.0, rel=1e-6)


def test_nan_is_not_hidden():
    for s in SETS.values():
        if s.separable:
            assert bool(jnp.isnan(s.project(jnp.array([jnp.nan, 0.0]))[0]))
    assert bool(jnp.all(jnp.isnan(Simplex().project(jnp.array([jnp.nan, 0.0])))))


def test_infinite_bounds_and_scalars():
    box = Box(jnp.array([-jnp.inf, 0.0]), jnp.array([1.0, jnp.inf]))
    np.testing.assert_array_equal(box.project(jnp.array([-5.0, -5.0])), [-5.0, 0.0])
    assert float(box.support(jnp.array([2.0, -3.0]))) == 2.0
    assert float(box.support(jnp.array([-1.0, 0.0]))) == np.inf
    assert float(box.support(jnp.array([-1e-9, 0.0]), 1e-8)) == 0.0
    assert bool(jnp.all(jnp.isfinite(jax.grad(box.support)(jnp.array([2.0, 0.0])))))
    assert float(Box(0.0, 1.0).project(3)) == 1.0
    assert float(Orthant().distance(jnp.array(-2.0))) == 2.0


def test_large_simplex_sums_to_its_total():
    x = jnp.asarray(np.random.default_rng(2).normal(size=100_000), jnp.float32)
    p = Simplex(2.0).project(x)
    assert float(p.sum()) == pytest.approx(2.0, abs=1e-5)
    flat = simplex_projection(jnp.zeros((1, 100_000), jnp.float32), jnp.ones((1, 1), jnp.float32))
    assert float(flat.sum()) == pytest.approx(1.0, abs=1e-4)


def test_radius_and_total_for_each_row():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)) * 3)
    sizes = jnp.array([0.5, 1.0, 2.0])
    for make in (Simplex, L1Ball, L2Ball):
        rows = jnp.stack([make(r).project(row) for r, row in zip(sizes, x)])
        np.testing.assert_allclose(make(sizes).project(x), rows, atol=1e-6)
        np.testing.assert_allclose(jax.vmap(lambda r, row, make=make: make(r).project(row))(sizes, x), rows, atol=1e-6)


def test_product_is_part_by_part():
    s = Product({"lam": Reals(), "mu": Orthant(), "w": Product((Simplex(), Box(0.0, 1.0)))})
    x = {
        "lam": jnp.array([-1.0]),
        "mu": {"a": jnp.array(-1.0), "b": jnp.array(2.0)},
        "w": (jnp.ones(2), jnp.array(4.0)),
    }
    p = s.project(x)
    assert jax.tree.structure(p) == jax.tree.structure(x)
    assert [leaf.tolist() for leaf in jax.tree.leaves(p)] == [[-1.0], 0.0, 2.0, [0.5, 0.5], 1.0]
    assert float(s.distance(x)) ** 2 == pytest.approx(1 + 0.5 + 9, rel=1e-6)
    y = {
        "lam": jnp.zeros(1),
        "mu": {"a": jnp.array(-1.0), "b": jnp.array(0.0)},
        "w": (jnp.array([3.0, 1.0]), jnp.array(2.0)),
    }
    assert float(s.support(y)) == 5.0
    assert not s.is_cone
    assert not s.bounded
    assert not s.separable
    assert Product((Reals(), Orthant())).is_cone
    assert Product((Simplex(), L2Ball())).bounded
    jitted = jax.jit(lambda s, x: s.project(x))(s, x)
    jax.tree.map(np.testing.assert_array_equal, jitted, p)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Box(1.0, 0.0), InvalidProblem, "lower is 1.0 and upper is 0.0"),
        (lambda: Box(jnp.array([0.0, jnp.nan]), 1.0), InvalidProblem, "lower has 1 NaN at index 1"),
        (lambda: Box(np.inf, np.inf), InvalidProblem, "between the two"),
        (lambda: Box(np.zeros(2), np.zeros(3)), InvalidProblem, "broadcast"),
        (lambda: Simplex(-1.0), InvalidOption, "total is -1.0"),
        (lambda: L1Ball(np.nan), InvalidOption, "radius is nan"),
        (lambda: L2Ball(np.inf), InvalidOption, "radius is inf"),
        (lambda: Simplex().project(1.0), InvalidProblem, r"shape \(\)"),
        (lambda: Simplex().project(jnp.zeros((2, 0))), InvalidProblem, r"\(2, 0\)"),
        (lambda: SecondOrderCone().project(jnp.zeros(0)), InvalidProblem, "bound first"),
        (lambda: Product((Reals(), 3.0)), InvalidProblem, "leaves are sets"),
        (lambda: Product((Reals(),)).project({"a": 1.0}), InvalidProblem, "structure"),
    ],
)
def test_errors_name_what_was_seen(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_traced_parameters_are_not_looked_at():
    out = jax.jit(lambda l, u, x: Box(l, u).project(x))(0.0, 1.0, jnp.array([3.0]))
    assert out.tolist() == [1.0]
    assert jax.jit(lambda r: L2Ball(r).project(jnp.array([3.0, 4.0])))(5.0).tolist() == [3.0, 4.0]
