"""Each move is the proximal step it claims to be, and its penalty has the moved point as gradient."""

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
    L1,
    Box,
    Entropic,
    Euclidean,
    Indicator,
    Interval,
    L2Ball,
    Orthant,
    Product,
    Proximal,
    Quadratic,
    Reals,
    SecondOrderCone,
    Sign,
    Simplex,
)

ROWS = Interval(np.array([1.0, -np.inf, -0.5, -np.inf]), np.array([1.0, 0.7, 0.5, np.inf]))
MOVES = {
    "reals": Euclidean(Reals()),
    "orthant": Euclidean(Orthant()),
    "box": Euclidean(Box(0.0, 1.5)),
    "simplex": Euclidean(Simplex()),
    "ball": Euclidean(L2Ball(1.0)),
    "cone": Euclidean(SecondOrderCone()),
    "rows": ROWS,
    "pulled": Proximal(Quadratic(2.0, -0.5)),
    "sparse": Proximal(L1(0.3)),
    "entropic": Entropic(Orthant()),
    "entropic simplex": Entropic(Simplex(2.0)),
    "entropic box": Entropic(Box(0.0, 1.5)),
    "sign": Sign(Orthant()),
    "sign of reals": Sign(Reals()),
}
NAMES = list(MOVES)
PROXIMAL = [name for name in NAMES if not name.startswith("sign")]
# Inside every set's domain: positive, sums to 2 for the simplex of 2 and projected where another set is meant.
INSIDE = np.array([0.4, 0.9, 0.1, 0.6])
V = np.array([0.7, -0.3, 1.1, -2.0])
few = settings(max_examples=10, deadline=None)
four = st.lists(st.floats(-20, 20, allow_subnormal=False), min_size=4, max_size=4)


def start(name):
    move = MOVES[name]
    return move.set.project(jnp.asarray(INSIDE)) if isinstance(move, Euclidean) else jnp.asarray(INSIDE)


def gain(move, z, y, v, step):
    """`<z, v> - h(z) - D(z, y)/step`, whose maximiser is the move, for h written out here."""
    value = jnp.vdot(z, v) - move.divergence(z, y) / step
    if isinstance(move, Proximal):
        value -= move.h(z)
    if isinstance(move, Interval):
        value -= Box(-move.row_upper, -move.row_lower).support(z)
    return value


@pytest.mark.parametrize("name", PROXIMAL)
@given(w=four, step=st.floats(0.05, 5))
@few
def test_no_point_beats_the_moved_one(name, w, step):
    move = MOVES[name]
    with jax.enable_x64(True):
        y, v = start(name), jnp.asarray(V)
        z = move(y, v, step)
        best = float(gain(move, z, y, v, step))
        assert best == pytest.approx(float(move.penalty(y, v, step)), abs=1e-10)
        # Any other point of the domain, reached by moving with another violation.
        other = move(y, jnp.asarray(w), 0.3)
        assert float(gain(move, other, y, v, step)) <= best + 1e-10 * (1 + abs(best))


def test_entropic_moves_are_what_a_general_solver_finds():
    y, v, step = INSIDE, V, 0.8
    with jax.enable_x64(True):
        for name, bounds, constraints in [
            ("entropic", [(1e-9, None)] * 4, []),
            ("entropic box", [(1e-9, 1.5 - 1e-9)] * 4, []),
            ("entropic simplex", [(1e-9, None)] * 4, [{"type": "eq", "fun": lambda z: z.sum() - 2}]),
        ]:
            move = MOVES[name]
            value = jax.jit(lambda z, move=move: -gain(move, z, jnp.asarray(y), jnp.asarray(v), step))
            found = minimize(
                lambda z, value=value: float(value(z)),
                y,
                method="SLSQP",
                bounds=bounds,
                constraints=constraints,
                tol=1e-14,
            )
            np.testing.assert_allclose(move(jnp.asarray(y), jnp.asarray(v), step), found.x, atol=2e-4)


@given(y=four, v=four, step=st.floats(0.05, 5))
@few
def test_rows_agree_with_their_formulas(y, v, step):
    """Design, section 7: with clip, in the form of right-hand side minus row, and with a grid search of the prox."""
    with jax.enable_x64(True):
        y, v = jnp.asarray(y), jnp.asarray(v)
        z = ROWS(y, v, step)
        t = y + step * v
        scale = 1e-13 * (1 + float(jnp.abs(t).max()))
        np.testing.assert_allclose(z, t - step * jnp.clip(t / step, -ROWS.row_upper, -ROWS.row_lower), atol=100 * scale)
        w = jnp.clip(-v - y / step, ROWS.row_lower, ROWS.row_upper)
        np.testing.assert_allclose(z, y + step * (w + v), atol=100 * scale)
        # Signs: exactly 0 for a row without sides, <= 0 for an upper side only; complementary to the row.
        assert float(z[3]) == 0.0
        assert float(z[1]) <= 0.0
        assert float(z[0]) == pytest.approx(float(y[0] + step * (1.0 + v[0])), abs=10 * scale)


def test_row_by_grid_search():
    """The prox of step * support([-ru, -rl]) at t, for a row of two different sides; grid of 1e-4."""
    grid = np.linspace(-4, 4, 80_001)
    rows = Interval(np.full(9, -0.5), np.full(9, 0.8))
    t = np.linspace(-3, 3, 9)
    for step in (0.3, 1.0, 2.0):
        h = np.where(grid > 0, 0.5 * grid, -0.8 * grid)
        best = [grid[np.argmin(step * h + (grid - u) ** 2 / 2)] for u in t]
        np.testing.assert_allclose(rows(jnp.zeros(9), jnp.asarray(t / step), step), best, atol=1.1e-4)


def test_closed_forms_of_the_envelope():
    with jax.enable_x64(True):
        y, v, rho = jnp.asarray(INSIDE), jnp.asarray(V), 3.0
        orthant = (jnp.sum(jnp.maximum(0, y + rho * v) ** 2) - jnp.sum(y**2)) / (2 * rho)
        assert float(MOVES["orthant"].penalty(y, v, rho)) == pytest.approx(float(orthant), rel=1e-13)
        reals = jnp.vdot(y, v) + rho / 2 * jnp.vdot(v, v)
        assert float(MOVES["reals"].penalty(y, v, rho)) == pytest.approx(float(reals), rel=1e-13)
        exact = jnp.vdot(y, v) + rho * jnp.sum(jnp.abs(v))
        assert float(MOVES["sign of reals"].penalty(y, v, rho)) == pytest.approx(float(exact), rel=1e-13)
        # An equality row is the reals with violation b - a'x.
        row = Interval(1.0, 1.0).penalty(y, v, rho)
        assert float(row) == pytest.approx(float(MOVES["reals"].penalty(y, v + 1.0, rho)), rel=1e-12)
        # An upper-sided row a'x <= b with y <= 0 mirrors the orthant with violation a'x - b.
        upper = Interval(-np.inf, 0.2).penalty(-y, v, rho)
        assert float(upper) == pytest.approx(float(MOVES["orthant"].penalty(y, -v - 0.2, rho)), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rho", [0.2, 4.0])
def test_gradient_of_the_penalty_is_the_moved_multiplier(name, rho):
    move = MOVES[name]
    with jax.enable_x64(True):
        y, v = start(name), jnp.asarray(V)
        np.testing.assert_allclose(jax.grad(move.penalty, 1)(y, v, rho), move(y, v, rho), atol=1e-12)
        # All first derivatives (in y, v and rho), then the second one in v that Newton's method needs.
        check_grads(
            lambda y, v, rho: move.penalty(y, v, rho), (y, v, rho), order=1, modes=("rev",), atol=1e-5, rtol=1e-5
        )
        curvature = jax.hessian(move.penalty, 1)(y, v, rho)
        np.testing.assert_allclose(curvature, jax.jacobian(move, 1)(y, v, rho), atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x64", [False, True])
def test_float32_stays_and_transforms_agree(name, x64):
    move = MOVES[name]
    with jax.enable_x64(x64):
        y = jnp.asarray(np.stack([INSIDE, INSIDE[::-1]]), jnp.float32)
        v = jnp.asarray(np.stack([V, -V]), jnp.float32)
        for step in (0.5, np.float64(0.5), jnp.full((2, 1), 0.5)):
            assert jax.eval_shape(move, y, v, step).dtype == jnp.float32
            assert jax.eval_shape(move.penalty, y, v, step).dtype == jnp.float32
        assert jax.eval_shape(move.divergence, y, y).dtype == jnp.float32
        if x64:
            return
        z = move(y, v, 0.5)
        np.testing.assert_allclose(jax.jit(lambda m, *a: m(*a))(move, y, v, 0.5), z, atol=1e-6)
        np.testing.assert_allclose(jax.vmap(lambda y, v: move(y, v, 0.5))(y, v), z, atol=1e-6)
        single = jax.jit(move)
        np.testing.assert_allclose(np.stack([single(a, b, 0.5) for a, b in zip(y, v)]), z, atol=1e-6)
        np.testing.assert_allclose(single(y, v, jnp.full((2, 1), 0.5)), z, atol=1e-6)
        assert float(move.divergence(y, y)) == 0.0


@pytest.mark.parametrize("name", ["reals", "orthant", "box", "rows", "entropic", "entropic box", "sign", "pulled"])
def test_steps_for_each_entry(name):
    move, steps = MOVES[name], jnp.array([0.1, 0.5, 1.0, 2.0])
    y, v = jnp.asarray(INSIDE), jnp.asarray(V)
    each = [move(y, v, float(s))[j] for j, s in enumerate(steps)]
    np.testing.assert_allclose(move(y, v, steps), each, atol=1e-6)
    if not name.startswith("sign"):
        np.testing.assert_allclose(jax.grad(move.penalty, 1)(y, v, steps), each, atol=1e-5)


def test_trees_and_prefix_steps():
    move = Euclidean(Product({"lam": Reals(), "mu": Orthant()}))
    y = {"lam": jnp.zeros(2), "mu": jnp.ones(1)}
    v = {"lam": jnp.array([1.0, -1.0]), "mu": jnp.array([-3.0])}
    moved = move(y, v, {"lam": 2.0, "mu": 0.1})
    np.testing.assert_allclose(moved["lam"], [2.0, -2.0])
    np.testing.assert_allclose(moved["mu"], [0.7], rtol=1e-6)
    slope = jax.grad(move.penalty, 1)(y, v, {"lam": 2.0, "mu": 0.1})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), slope, moved)
    assert jax.tree.leaves(Euclidean(Orthant())(({"a": -1.0}, 2.0), ({"a": 0.5}, 0.5), 1.0)) == [0.0, 2.5]


@pytest.mark.parametrize("name", ["entropic", "entropic simplex", "entropic box"])
@pytest.mark.parametrize("v", [1e30, -1e30, np.inf, -np.inf])
def test_entropic_moves_stay_finite(name, v):
    """Reliability row 41, in the worst type: float32."""
    move = MOVES[name]
    y = jnp.array([0.5, 0.0, 1.0, 0.5], jnp.float32)
    for violation in (jnp.full(4, v, jnp.float32), jnp.array([v, 0.0, 0.0, 0.0], jnp.float32)):
        z = move(y, violation, 1.0)
        assert bool(jnp.all(jnp.isfinite(z)))
        assert bool(jnp.all(z >= 0))
        assert float(z[1]) == 0.0
        assert not bool(jnp.isnan(move.penalty(y, violation, 1.0)))
        if name == "entropic simplex":
            assert float(z.sum()) == pytest.approx(2.0, rel=1e-6)
    assert not bool(jnp.any(jnp.isnan(jax.grad(move.penalty, 1)(y, jnp.zeros(4, jnp.float32), 1.0))))


def test_entropic_is_multiplicative_weights_and_survives_tiny_multipliers():
    with jax.enable_x64(True):
        y, v = jnp.asarray(INSIDE), jnp.asarray(V)
        np.testing.assert_allclose(MOVES["entropic"](y, v, 0.3), INSIDE * np.exp(0.3 * V), rtol=1e-14)
        weights = INSIDE * np.exp(0.3 * V)
        np.testing.assert_allclose(MOVES["entropic simplex"](y, v, 0.3), 2 * weights / weights.sum(), rtol=1e-14)
        odds = INSIDE / (1.5 - INSIDE) * np.exp(0.3 * V)
        np.testing.assert_allclose(MOVES["entropic box"](y, v, 0.3), 1.5 * odds / (1 + odds), rtol=1e-13)
    tiny = MOVES["entropic"](jnp.array([1e-30], jnp.float32), jnp.array([100.0], jnp.float32), 1.0)
    assert float(tiny[0]) == pytest.approx(1e-30 * np.exp(100.0), rel=1e-4)
    rows = Entropic(Simplex())(jnp.zeros((2, 3)), jnp.zeros((2, 3)), 1.0)
    np.testing.assert_allclose(rows, np.full((2, 3), 1 / 3), rtol=1e-6)


def test_moves_compose_in_the_mirror_space():
    """Two entropic steps are one with the sum of the violations; so are two plain ones. The projection's are not."""
    with jax.enable_x64(True):
        y, v, w = jnp.asarray(INSIDE), jnp.asarray(V), jnp.asarray(V[::-1].copy())
        for name in ("entropic", "entropic simplex", "entropic box", "reals"):
            move = MOVES[name]
            np.testing.assert_allclose(move(move(y, v, 0.4), w, 0.4), move(y, v + w, 0.4), rtol=1e-12)


def test_moves_are_pytrees_of_their_parameters():
    assert jax.tree.leaves(Euclidean(Box(0.0, 3.0))) == [0.0, 3.0]
    assert jax.tree.leaves(Interval(-1.0, 2.0)) == [-1.0, 2.0]
    caps = jnp.array([0.5, 2.0])
    capped = jax.vmap(lambda cap: Euclidean(Box(0.0, cap))(1.0, 1.0, 1.0))(caps)
    np.testing.assert_array_equal(capped, [0.5, 2.0])


def test_indicator_move_is_the_euclidean_one():
    y, v = jnp.asarray(INSIDE), jnp.asarray(V)
    np.testing.assert_array_equal(Proximal(Indicator(Orthant()))(y, v, 0.7), Euclidean(Orthant())(y, v, 0.7))


def test_huge_rows_in_float32():
    rows = Interval(jnp.array([-jnp.inf, 1e30, -1e30]), jnp.array([jnp.inf, 1e30, 1e30]))
    z = rows(jnp.zeros(3), jnp.array([1e30, -1e30, 0.0], jnp.float32), 1.0)
    assert z.tolist() == [0.0, 0.0, 0.0]
    gradient = jax.grad(lambda step: rows(jnp.ones(3), jnp.zeros(3), step).sum())(1.0)
    assert bool(jnp.isfinite(gradient))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Sign(Simplex()), InvalidOption, "acts on each entry"),
        (lambda: Entropic(Reals()), InvalidOption, "expected Orthant, Simplex or Box"),
        (lambda: Entropic(Box(0.0, np.inf)), InvalidOption, "upper - lower of the box is inf"),
        (lambda: Entropic(Box(1.0, 1.0)), InvalidOption, "expected finite numbers > 0"),
        (lambda: Interval(2.0, 1.0), InvalidProblem, "row_lower is 2.0 and row_upper is 1.0"),
    ],
)
def test_errors_name_what_was_seen(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("set", [Orthant(), Box(0.0, 1.5)])
def test_a_scaled_entropy_divides_its_step_and_weighs_its_divergence(set):
    """`y exp(step v / s)`, divergence `sum s_i D(y_i, z_i)`, and the penalty's gradient is still the moved point."""
    with jax.enable_x64(True):
        scale = jnp.asarray([0.5, 2.0, 1.0, 3.0])
        y, v, z = jnp.asarray(INSIDE), jnp.asarray(V), jnp.asarray([0.3, 0.8, 0.7, 0.2])
        plain, scaled = Entropic(set), Entropic(set, scale)
        np.testing.assert_allclose(scaled(y, v, 0.7), plain(y, v, 0.7 / scale), rtol=1e-14)
        one = [
            scale[i] * Entropic(set).divergence(y[i : i + 1], z[i : i + 1]) for i in range(4)
        ]  # fmt: skip
        np.testing.assert_allclose(scaled.divergence(y, z), sum(one), rtol=1e-12)
        gradient = jax.grad(lambda v: scaled.penalty(y, v, 0.7))(v)
        np.testing.assert_allclose(gradient, scaled(y, v, 0.7), rtol=1e-10)
        moved = scaled(y, v, 0.7)
        best = float(gain(scaled, moved, y, v, 0.7))
        for shift in np.random.default_rng(0).uniform(-0.05, 0.05, (20, 4)):
            assert float(gain(scaled, jnp.clip(moved + shift, 1e-6, 1.49), y, v, 0.7)) <= best + 1e-12
    with pytest.raises(InvalidOption, match="expected no scale on a simplex"):
        Entropic(Simplex(), 2.0)
    with pytest.raises(InvalidOption, match="scale is 0"):
        Entropic(scale=0.0)
