"""Each proximal map against its definition, by a grid and by subgradients; values, conjugates, declared facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.optimize import minimize, minimize_scalar
from scipy.special import wrightomega

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.geometry import (
    L1,
    L2,
    Box,
    Conjugate,
    Indicator,
    Linear,
    Linf,
    NegativeEntropy,
    Orthant,
    Quadratic,
    Scaled,
    Separable,
    Simplex,
    Translated,
    Zero,
)
from pdopt.geometry.proximals import log_omega

SLACK = 1e-9
FUNCTIONS = {
    "zero": Zero(),
    "linear": Linear(0.7),
    "quadratic": Quadratic(np.array([0.0, 1.0, 2.0]), np.array([0.3, -1.0, 0.0])),
    "l1": L1(np.array([0.5, 1.0, 0.0])),
    "l2": L2(0.8),
    "linf": Linf(0.8),
    "entropy": NegativeEntropy(0.6),
    "orthant": Indicator(Orthant(), SLACK),
    "simplex": Indicator(Simplex(), SLACK),
    "box": Indicator(Box(-1.0, 0.5), SLACK),
    "conjugate of l1": Conjugate(L1(0.7), SLACK),
    "conjugate of entropy": Conjugate(NegativeEntropy(0.6)),
    "conjugate of quadratic": Conjugate(Quadratic(2.0, 0.5)),
    "moved l2": Translated(L2(0.8), np.array([1.0, -1.0, 0.5])),
    "scaled l1": Scaled(L1(0.5), 2.0, 3.0),
    "scaled entropy": Scaled(NegativeEntropy(), 0.5, 2.0),
    "scaled quadratic": Scaled(Quadratic(1.5, 0.2), 0.5, 2.0),
}
NAMES = list(FUNCTIONS)
three = st.lists(st.floats(-8, 8, allow_subnormal=False), min_size=3, max_size=3)
steps = st.floats(0.1, 4)
few = settings(max_examples=10, deadline=None)


@pytest.mark.parametrize("name", NAMES)
@given(x=three, w=three, step=steps)
@few
def test_prox_minimises_its_definition(name, x, w, step):
    f = FUNCTIONS[name]
    with jax.enable_x64(True):
        x, w = jnp.asarray(x), jnp.asarray(w)
        p, q = f.prox(x, step), f.prox(w, step)
        value = float(f(p))
        assert np.isfinite(value)
        # Subgradient optimality: (x - p)/s is a subgradient at p, tested at another point of the domain ...
        assert float(f(q)) >= value + float(jnp.vdot(x - p, q - p)) / step - 1e-9
        # ... which is Fenchel's equality (the conjugate's domain is met up to rounding).
        u = (x - p) / step
        assert float(f.conjugate(u, 1e-9)) + value == pytest.approx(float(jnp.vdot(u, p)), abs=1e-8)
        # Firmly nonexpansive.
        assert float(jnp.vdot(p - q, x - w)) >= float(jnp.vdot(p - q, p - q)) - 1e-9
        # Strongly convex: the map contracts by 1/(1 + step m).
        m = float(f.strong_convexity)
        assert float(jnp.linalg.norm(p - q)) * (1 + step * m) <= float(jnp.linalg.norm(x - w)) + 1e-9


@pytest.mark.parametrize("name", NAMES)
@given(x=three, step=steps)
@few
def test_moreau_decomposition(name, x, step):
    """`x = prox_{s f}(x) + s prox_{f*/s}(x/s)`, and the conjugate of the conjugate."""
    f = FUNCTIONS[name]
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        parts = f.prox(x, step) + step * Conjugate(f).prox(x / step, 1 / step)
        np.testing.assert_allclose(parts, x, atol=1e-11)
        np.testing.assert_allclose(Conjugate(Conjugate(f)).prox(x, step), f.prox(x, step), atol=1e-10)
        p = f.prox(x, step)
        assert float(Conjugate(f).conjugate(p)) == float(f(p))


SCALARS = {
    "linear": (Linear(0.7), lambda z: 0.7 * z),
    "quadratic": (Quadratic(1.5, -0.4), lambda z: 0.75 * z**2 - 0.4 * z),
    "l1": (L1(0.5), lambda z: 0.5 * abs(z)),
    "entropy": (NegativeEntropy(0.6), lambda z: 0.6 * z * np.log(z) if z > 0 else (0.0 if z == 0 else np.inf)),
    "scaled": (Scaled(L1(0.5), 2.0, 3.0), lambda z: 2.0 * 0.5 * abs(3.0 * z)),
    "moved": (Translated(L1(0.5), 1.2), lambda z: 0.5 * abs(z - 1.2)),
    "conjugate": (Conjugate(Quadratic(2.0, 0.5)), lambda z: (z - 0.5) ** 2 / 4),
}


@pytest.mark.parametrize("name", list(SCALARS))
def test_prox_by_scalar_minimisation(name):
    f, slow = SCALARS[name]
    with jax.enable_x64(True):
        for x in (-3.0, -0.2, 0.0, 0.3, 2.5):
            for step in (0.3, 1.0, 2.5):
                low = 0.0 if name == "entropy" else -20.0
                found = minimize_scalar(
                    lambda z, x=x, step=step: slow(z) + (z - x) ** 2 / (2 * step),
                    bounds=(low, 20.0),
                    method="bounded",
                    options={"xatol": 1e-10},
                )
                # Golden section resolves sqrt(eps) of the argument.
                assert float(f.prox(x, step)) == pytest.approx(found.x, abs=2e-6)
                assert float(f(found.x)) == pytest.approx(slow(found.x), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["l2", "linf"])
def test_row_norms_by_a_general_solver(name):
    """In epigraph form: minimise w t + |z - x|^2/2 with the norm of z at most t."""
    x = np.array([1.5, -0.7, 0.9])
    if name == "l2":
        constraints = [
            {"type": "ineq", "fun": lambda u: u[3] ** 2 - u[:3] @ u[:3]},
            {"type": "ineq", "fun": lambda u: u[3]},
        ]
    else:
        constraints = [{"type": "ineq", "fun": lambda u: np.concatenate([u[3] - u[:3], u[3] + u[:3]])}]
    found = minimize(
        lambda u: 0.8 * u[3] + ((u[:3] - x) ** 2).sum() / 2,
        [0.1, 0.1, 0.1, 1.0],
        method="SLSQP",
        constraints=constraints,
        tol=1e-13,
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(FUNCTIONS[name].prox(jnp.asarray(x), 1.0), found.x[:3], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_declared_facts_hold(name):
    f = FUNCTIONS[name]
    with jax.enable_x64(True):
        points = jax.vmap(lambda x: f.prox(x, 1.0))(jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)) * 3))
        values = jax.vmap(f)(points)
        if f.is_indicator:
            assert bool(jnp.all(values == 0))
            x = jnp.asarray([1.0, -2.0, 0.4])
            np.testing.assert_allclose(f.prox(x, 0.1), f.prox(x, 10.0))
        else:
            assert float(jnp.max(jnp.abs(values))) > 0
        if f.is_support:
            np.testing.assert_allclose(jax.vmap(lambda x: f(2.5 * x))(points), 2.5 * values, rtol=1e-12)
        assert Conjugate(f).is_indicator == f.is_support
        assert Conjugate(f).is_support == f.is_indicator
        # f - m |x|^2/2 is convex along segments.
        m = f.strong_convexity
        less = lambda x: f(x) - m * jnp.vdot(x, x) / 2
        a, b = points[:20], points[20:]
        middle = jax.vmap(less)((a + b) / 2)
        assert bool(jnp.all(middle <= (jax.vmap(less)(a) + jax.vmap(less)(b)) / 2 + 1e-9))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x64", [False, True])
def test_float32_stays_and_transforms_agree(name, x64):
    f = FUNCTIONS[name]
    with jax.enable_x64(x64):
        x = jnp.asarray([[1.3, -0.4, 0.9], [0.2, 2.0, -3.0]], jnp.float32)
        for step in (0.7, np.float64(0.7), jnp.full((2, 1), 0.7)):
            assert jax.eval_shape(f.prox, x, step).dtype == jnp.float32
        assert jax.eval_shape(f, x).dtype == jax.eval_shape(f.conjugate, x).dtype == jnp.float32
        if x64:
            return
        p = f.prox(x, 0.7)
        np.testing.assert_allclose(jax.jit(lambda f, x: f.prox(x, 0.7))(f, x), p, atol=2e-6)
        np.testing.assert_allclose(jax.vmap(lambda r: f.prox(r, 0.7))(x), p, atol=2e-6)
        prox = jax.jit(f.prox)
        np.testing.assert_allclose(np.stack([prox(r, 0.7) for r in x]), p, atol=2e-6)
        np.testing.assert_allclose(prox(x, jnp.array([[0.7], [2.0]]))[1], prox(x[1], 2.0), atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_finite_differences(name):
    f = FUNCTIONS[name]
    with jax.enable_x64(True):
        x = jnp.asarray([1.3, -0.4, 0.9])
        check_grads(lambda x, s: f.prox(x, s), (x, 0.7), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_huge_values_in_float32(name):
    f = FUNCTIONS[name]
    for row in ([1e30, -1e30, 1e30], [-1e30] * 3, [0.0] * 3):
        p = f.prox(jnp.asarray(row, jnp.float32), 1.0)
        assert bool(jnp.all(jnp.isfinite(p)))
        assert not bool(jnp.any(jnp.isnan(f(p))))


def test_single_entries_and_scalars():
    assert float(L1(1.0).prox(3.0, 1.0)) == 2.0
    assert float(L2(1.0).prox(jnp.array([-3.0]), 1.0)[0]) == -2.0
    assert float(Linf(1.0).prox(jnp.array([-3.0]), 1.0)[0]) == -2.0
    assert L2(1.0).prox(jnp.array([0.0, 0.0]), 1.0).tolist() == [0.0, 0.0]
    assert bool(jnp.all(jnp.isfinite(jax.jacobian(lambda x: L2(1.0).prox(x, 1.0))(jnp.zeros(2)))))
    assert bool(jnp.all(jnp.isfinite(jax.grad(L2(1.0))(jnp.zeros(2)))))


def test_omega_is_the_one_of_scipy():
    with jax.enable_x64(True):
        a = np.concatenate([np.linspace(-300, 300, 401), [1e5, 1e30, -1e30]])
        q = log_omega(jnp.asarray(a))
        # Rounding of q grows with |q|: exp turns it into a relative error of eps |q|.
        np.testing.assert_allclose(np.exp(q), wrightomega(a), rtol=2e-13, atol=1e-300)
        check_grads(log_omega, (jnp.asarray([-3.0, 0.2, 8.0]),), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def test_domains_of_values_and_conjugates():
    assert float(NegativeEntropy()(jnp.array([-0.1]))) == np.inf
    assert float(NegativeEntropy()(jnp.array([0.0]))) == 0.0
    assert float(L1(1.0).conjugate(jnp.array([1.1]))) == np.inf
    assert float(Linear(2.0).conjugate(jnp.array([2.0]))) == 0.0
    assert float(Linear(2.0).conjugate(jnp.array([1.0]))) == np.inf
    assert float(Quadratic(0.0, 1.0).conjugate(jnp.array([1.5]))) == np.inf
    assert float(Zero().conjugate(jnp.array([0.0]))) == 0.0
    assert float(Indicator(Orthant())(jnp.array([-1e-3]))) == np.inf
    assert float(Indicator(Simplex()).conjugate(jnp.array([3.0, 1.0]))) == 3.0


def test_separable_trees():
    g = Separable({"a": L1(1.0), "b": (Zero(), Quadratic(1.0))})
    x = {"a": jnp.array([3.0]), "b": (jnp.array(1.0), jnp.array([4.0]))}
    assert [leaf.tolist() for leaf in jax.tree.leaves(g.prox(x, 1.0))] == [[2.0], 1.0, [2.0]]
    assert [leaf.tolist() for leaf in jax.tree.leaves(g.prox(x, {"a": 2.0, "b": 3.0}))] == [[1.0], 1.0, [1.0]]
    assert float(g(x)) == 3.0 + 8.0
    y = {"a": jnp.array([0.5]), "b": (jnp.array(0.0), jnp.array([4.0]))}
    assert float(g.conjugate(y)) == 8.0
    assert float(g.strong_convexity) == 0.0
    assert not g.is_indicator
    assert Separable((Zero(), Indicator(Orthant()))).is_indicator
    assert float(Separable((Quadratic(2.0), Quadratic(3.0))).strong_convexity) == 2.0
    assert L1(1.0).prox({"p": 3.0, "q": -3.0}, 1.0) == {"p": 2.0, "q": -2.0}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: L1(-1.0), InvalidOption, "weight is -1.0"),
        (lambda: NegativeEntropy(0.0), InvalidOption, "> 0"),
        (lambda: Quadratic(np.array([1.0, -2.0])), InvalidOption, "diagonal is -2.0"),
        (lambda: Linear(np.nan), InvalidProblem, "c has 1 NaN"),
        (lambda: Scaled(Zero(), 0.0), InvalidOption, "factor is 0.0"),
        (lambda: Translated(Zero(), np.nan), InvalidProblem, "shift has 1 NaN"),
        (lambda: Separable((Zero(), 1.0)), InvalidProblem, "leaves are functions"),
        (lambda: L2(1.0).prox(jnp.ones(3), jnp.ones(3)), InvalidProblem, r"step has shape \(3,\)"),
        (lambda: L2(1.0).prox(1.0, 1.0), InvalidProblem, r"shape \(\)"),
    ],
)
def test_errors_name_what_was_seen(make, error, words):
    with pytest.raises(error, match=words):
        make()
