"""One multiplier: its term against the formulas, what is observed of a violation, growth, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.geometry import Box
from pdopt.rules.signals import Offer

pytestmark = pytest.mark.usefixtures("quick_compiles")

NAN, INF = np.nan, np.inf
V = np.array([0.5, -0.3, -2.0], np.float32)
Y = np.array([1.0, 0.5, 0.2], np.float32)


@jax.jit
def value_and_slope(one, v, y=Y, rho=(), index=None):
    return jax.value_and_grad(lambda v: one.term(y, rho, pdopt.Violation(v, index=index)))(v)


@jax.jit
def observe(one, violation):
    return one.observe(violation, jnp.float32)


grown = jax.jit(lambda one, rho, v: one.grown(rho, v))


def test_the_three_forms_by_their_formulas():
    rho = 2.0
    lagrangian = pdopt.Multiplier(0.1, shape=(3,))
    value, slope = value_and_slope(lagrangian, V)
    np.testing.assert_allclose(value, Y @ V, rtol=1e-6)
    np.testing.assert_allclose(slope, Y)
    augmented = pdopt.Multiplier(penalty=rho, shape=(3,))
    value, slope = value_and_slope(augmented, V, rho=rho)
    shown = np.maximum(Y + rho * V, 0)
    np.testing.assert_allclose(value, ((shown**2 - Y**2) / (2 * rho)).sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, shown, atol=1e-6)
    equality = pdopt.Multiplier.equality(penalty=rho, shape=(3,))
    value, slope = value_and_slope(equality, V, rho=rho)
    np.testing.assert_allclose(value, Y @ V + rho / 2 * V @ V, rtol=1e-6)
    np.testing.assert_allclose(slope, Y + rho * V, rtol=1e-6)
    value, _ = value_and_slope(augmented, V, 0 * Y, rho)
    np.testing.assert_allclose(value, rho / 2 * 0.5**2, rtol=1e-6)
    # Second derivatives are those of the envelope: rho where the multiplier is shown, 0 where it is not.
    curved = jax.jit(jax.hessian(lambda v: augmented.term(Y, rho, pdopt.Violation(v))))(V)
    np.testing.assert_allclose(curved, np.diag([rho, 0, 0]), atol=1e-6)


def test_the_multiplier_is_a_constant_of_the_term():
    one = pdopt.Multiplier(penalty=2.0, shape=(3,))
    slope = jax.jit(jax.grad(lambda y: one.term(y, 2.0, pdopt.Violation(V))))(Y)
    np.testing.assert_array_equal(slope, 0)


def test_what_is_not_finite_adds_nothing():
    one = pdopt.Multiplier(0.1, shape=(3,))
    value, slope = value_and_slope(one, np.array([NAN, 2.0, INF], np.float32))
    np.testing.assert_allclose(value, 1.0)
    np.testing.assert_array_equal(slope, [0, 0.5, 0])
    v, missed = observe(one, pdopt.Violation(np.array([NAN, 2.0, INF], np.float32)))
    np.testing.assert_array_equal(v, [NAN, 2, NAN])
    assert missed == 2


def test_strict_moves_y_and_smooth_moves_x():
    one = pdopt.Multiplier(0.1)
    both = pdopt.Violation(jnp.float32(0.2), jnp.array(3))
    assert one.term(jnp.float32(2), (), both) == pytest.approx(0.4)
    assert one.observe(both, jnp.float32)[0] == 3
    slope = jax.grad(lambda x: one.observe(pdopt.Violation(x), jnp.float32)[0])(2.0)
    assert slope == 0, "what is observed has no gradient"


@pytest.mark.parametrize("traced", [False, True])
def test_flags_of_the_two_halves(traced):
    one = pdopt.Multiplier(0.1)
    flag = lambda value: jnp.asarray(value) if traced else value
    for primal, dual in ((True, False), (False, True)):
        violation = pdopt.Violation(jnp.float32(0.5), None, None, flag(primal), flag(dual))
        assert one.term(jnp.float32(2), (), violation) == (1.0 if primal else 0.0)
        v, missed = one.observe(violation, jnp.float32)
        np.testing.assert_equal(np.asarray(v), np.float32(0.5 if dual else NAN))
        assert missed == 0
    assert one.term(jnp.float32(2), (), pdopt.Violation(None, jnp.float32(1))) == 0


def test_indices_name_entries():
    """Twice adds up, outside is padding, NaN is missed, the rest is absent; the term is the sum over the batch."""
    one = pdopt.Multiplier(jnp.array([0.1, 0.2, 0.3, 0.4]), penalty=jnp.full(4, 2.0), shape=(4,))
    index = np.array([2, 0, 2, -1, 9, 1])
    v = np.array([0.5, -1.0, 0.25, 7.0, 7.0, NAN], np.float32)
    seen, missed = observe(one, pdopt.Violation(v, index=index))
    np.testing.assert_array_equal(seen, [-1, NAN, 0.75, NAN])
    assert missed == 1
    y, rho = np.array([3, 0.1, 0.2, 0], np.float32), np.array([1, 2, 4, 8], np.float32)
    value, slope = value_and_slope(one, v, y, rho, index)
    shown = np.maximum([0.2 + 4 * 0.5, 3 - 1, 0.2 + 4 * 0.25], 0)
    np.testing.assert_allclose(slope, [shown[0], shown[1], shown[2], 0, 0, 0], rtol=1e-6)
    expected = sum((s**2 - a**2) / (2 * r) for s, a, r in zip(shown, [0.2, 3, 0.2], [4, 1, 4]))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    capped = pdopt.Multiplier(penalty=1.0, move=pdopt.Euclidean(Box(0.0, jnp.array([1.0, 2.0]))), shape=(2,))
    _, slope = value_and_slope(capped, np.array([9.0], np.float32), np.zeros(2, np.float32), 1.0, np.array([1]))
    np.testing.assert_allclose(slope, [2.0])


def test_penalties_grow_where_it_is_broken():
    growth = pdopt.Growth(factor=2.0, increment=1.0, tolerance=0.1, restart=True, largest=8.0)
    one = pdopt.Multiplier(penalty=2.0, growth=growth, shape=(5,))
    rho = np.array([3, 3, 3, 3, 7], np.float32)
    broken = np.array([[0.5, 0.05, -1.0, NAN, 1.0], [-0.5, 0.05, 0.0, NAN, 1.0]], np.float32)
    np.testing.assert_array_equal(grown(one, rho, broken[0]), [7, 3, 2, 3, 8])
    free = pdopt.Multiplier.equality(penalty=2.0, growth=growth, shape=(5,))
    np.testing.assert_array_equal(grown(free, rho, broken[1]), [7, 3, 3, 3, 8])
    # A penalty that was started above the largest is never lowered to it.
    np.testing.assert_array_equal(grown(one, np.full(5, 9, np.float32), np.ones(5, np.float32)), 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "step and penalty are None"),
        ({"step": -1.0}, "step is -1.0"),
        ({"penalty": 0.0}, "penalty is 0.0"),
        ({"step": 0.1, "growth": pdopt.Growth()}, "expected a penalty that can grow"),
        ({"step": 0.1, "move": abs}, "move is .*; expected a move"),
        ({"step": 0.1, "signal": "PI"}, "signal is 'PI'"),
        ({"penalty": 1.0, "signal": Offer(1.0)}, "not both"),
        ({"step": 0.1, "shape": 3}, "shape is 3"),
        ({"step": np.ones(2), "shape": (3,)}, r"step has shape \(2,\)"),
        ({"step": np.ones(2)}, r"expected one that broadcasts to \(\)"),
        ({"step": 0.1, "move": pdopt.Entropic()}, "never leaves 0"),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(InvalidOption, match=message):
        pdopt.Multiplier(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"factor": 0.5}, "factor"), ({"increment": -1.0}, "increment"), ({"tolerance": NAN}, "tolerance"),
     ({"largest": 0.0}, "largest")],
)  # fmt: skip
def test_growth_is_refused(settings, message):
    with pytest.raises(InvalidOption, match=message):
        pdopt.Growth(**settings)


@pytest.mark.parametrize(
    ("violation", "message"),
    [
        (pdopt.Violation(jnp.ones(2)), r"smooth violation of 'c' has shape \(2,\); expected \(3,\)"),
        (pdopt.Violation(jnp.ones(3), jnp.ones(())), r"strict violation of 'c' has shape \(\)"),
        (pdopt.Violation(jnp.ones(3, bool)), "dtype bool; expected a floating dtype"),
        (pdopt.Violation(jnp.ones(3, int)), "dtype int32; expected a floating dtype"),
        (pdopt.Violation(jnp.ones(3), jnp.ones(3, bool)), "dtype bool; expected numbers"),
        (pdopt.Violation(jnp.ones(3, complex)), "dtype complex64"),
        (pdopt.Violation(jnp.ones(2), index=jnp.ones(2)), "expected integers of shape"),
        (pdopt.Violation(jnp.ones(3), index=jnp.arange(2)), r"shape \(3,\); expected \(2,\) because its index"),
    ],
)
def test_violations_are_refused(violation, message):
    with pytest.raises(InvalidProblem, match=message):
        pdopt.Multiplier(0.1, shape=(3,)).require("c", violation)


def test_an_index_needs_an_array():
    with pytest.raises(InvalidProblem, match="index of 'c' is given"):
        pdopt.Multiplier(0.1).require("c", pdopt.Violation(jnp.ones(1), index=jnp.zeros(1, int)))


def test_a_group_that_is_absent_has_no_gradient():
    """What the head of the file says of rates: the first way of writing one may be NaN, the other poisons x."""
    one, nobody = pdopt.Multiplier(0.1), jnp.zeros(2, bool)
    term = lambda rate: jax.grad(lambda v: one.term(jnp.float32(1), (), pdopt.Violation(rate(v))))(jnp.ones(2))
    np.testing.assert_array_equal(term(lambda v: jnp.mean(v, where=nobody)), 0)
    assert np.isnan(term(lambda v: jnp.sum(v * nobody) / jnp.sum(nobody))).all()
