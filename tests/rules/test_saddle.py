"""The one step: its order, its signs, theta, and the two halves in both orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.rules.saddle import Parts, advance, extrapolate, respond, row, saddle_step
from pdopt.types import Memory, Pair

A = np.array([[1.0, 2.0], [0.5, -1.0]])
C = np.array([0.3, -0.2])
B = np.array([0.7, 0.1])


def parts(theta, primal_sign=1.0, dual_sign=1.0):
    """PDHG on `min c'x + |x|^2/2 + y'(b - Ax)` without sets: every sign can be flipped to see the tests fail."""
    primal = lambda x, y: x - 0.2 * (x + C - primal_sign * A.T @ y)
    return row(primal, lambda seen: B - A @ seen, lambda y, v, step: y + dual_sign * step * v, theta)


def by_hand(theta, steps, x, y):
    for _ in range(steps):
        new = x - 0.2 * (x + C - A.T @ y)
        x, y = new, y + 0.3 * (B - A @ (new + theta * (new - x)))
    return x, y


START = Pair(np.ones(2), -np.ones(2))


def run(parts, steps, pair=START):
    for _ in range(steps):
        pair, _ = saddle_step(parts, 0.3, pair)
    return pair


@pytest.mark.parametrize("theta", [-1, 0, 1, -1.0, 0.0, 0.5, 2.5])
def test_the_step_equals_its_formula(theta):
    got, expected = run(parts(theta), 7), by_hand(theta, 7, np.ones(2), -np.ones(2))
    np.testing.assert_allclose(got.x, expected[0], rtol=1e-13)
    np.testing.assert_allclose(got.y, expected[1], rtol=1e-13)


def test_the_step_converges_to_the_saddle_point_and_flipped_signs_do_not():
    # x + c = A'y and Ax = b.
    x = np.linalg.solve(A, B)
    y = np.linalg.solve(A.T, x + C)
    found = run(parts(1.0), 400)
    np.testing.assert_allclose(found.x, x, atol=1e-8)
    np.testing.assert_allclose(found.y, y, atol=1e-8)
    for wrong in (parts(1.0, primal_sign=-1.0), parts(1.0, dual_sign=-1.0)):
        assert np.linalg.norm(run(wrong, 400).x - x) > 1e-2


def test_the_multiplier_sees_the_new_point_and_not_the_old_one():
    # With theta = 0 the primal half comes first; theta = -1 is the simultaneous step.
    pair = Pair(np.ones(2), -np.ones(2))
    new = pair.x - 0.2 * (pair.x + C - A.T @ pair.y)
    np.testing.assert_allclose(run(parts(0), 1).y, pair.y + 0.3 * (B - A @ new))
    np.testing.assert_allclose(run(parts(-1), 1).y, pair.y + 0.3 * (B - A @ pair.x))
    np.testing.assert_allclose(run(parts(1), 1).y, pair.y + 0.3 * (B - A @ (2 * new - pair.x)))


@pytest.mark.parametrize(
    ("theta", "operations"), [(0, []), (-1, []), (0.0, []), (-1.0, []), (1.0, ["add", "mul", "sub"])]
)
def test_the_constants_0_and_minus_1_leave_nothing_in_the_compiled_code(theta, operations):
    found = jax.make_jaxpr(lambda a, b: extrapolate(theta, a, b))(jnp.ones(2), jnp.ones(2))
    assert sorted(e.primitive.name for e in found.eqns) == operations


def test_a_traced_theta_gives_the_same_numbers_without_recompiling():
    traces = []

    @jax.jit
    def step(theta, pair):
        traces.append(1)
        return saddle_step(parts(theta), 0.3, pair)[0]

    start = Pair(jnp.ones(2), -jnp.ones(2))
    for theta in (-1.0, 0.0, 1.0, 2.0):
        np.testing.assert_allclose(step(theta, start).y, by_hand(theta, 1, np.ones(2), -np.ones(2))[1], rtol=1e-6)
    assert len(traces) == 1


def test_extrapolation_goes_leaf_by_leaf():
    before, after = {"a": 1.0, "b": (2.0,)}, {"a": 2.0, "b": (5.0,)}
    assert extrapolate(1.0, before, after) == {"a": 3.0, "b": (8.0,)}
    assert extrapolate(0, before, after) is after
    assert extrapolate(-1, before, after) is before


def test_the_step_is_its_two_halves():
    method, pair = parts(1.0), Pair(np.ones(2), -np.ones(2))
    x, memory = advance(method, pair, Memory())
    y, _ = respond(method, pair.y, extrapolate(1.0, pair.x, x), 0.3, memory)
    whole, _ = saddle_step(method, 0.3, pair)
    np.testing.assert_array_equal(whole.x, x)
    np.testing.assert_array_equal(whole.y, y)


def test_a_trainer_that_responds_first_makes_the_same_sequence():
    """`respond` on what is seen at x, then `advance`: half a beat later, the same bits once started alike."""
    method, pair = parts(0), Pair(np.ones(2), -np.ones(2))
    x, _ = advance(method, pair, Memory())
    y = pair.y
    for _ in range(20):
        y, _ = respond(method, y, x, 0.3, Memory())
        x, _ = advance(method, Pair(x, y), Memory())
    solver = run(method, 21)
    np.testing.assert_array_equal(x, solver.x)
    late = run(method, 20)
    np.testing.assert_array_equal(y, late.y)
    # Without the first `respond` the primal is shown an older multiplier: another sequence.
    x, y = pair.x, pair.y
    for _ in range(20):
        x, _ = advance(method, Pair(x, y), Memory())
    assert np.abs(x - solver.x).max() > 1e-2


def test_memory_signal_and_offer_travel_in_order():
    calls = []

    def primal(x, y, memory):
        calls.append(("primal", y))
        return x + 1, memory._replace(primal=(*memory.primal, "p"))

    def violation(seen, memory):
        calls.append(("violation", seen, memory))
        return seen

    def signal(v, memory):
        calls.append(("signal", v))
        return 10 * v, memory._replace(dual=(*memory.dual, "s"))

    def move(y, u, step):
        calls.append(("move", y, u, step))
        return y + step * u

    method = Parts(primal, violation, move, 0.0, signal, offer=lambda y, memory: y + 100)
    pair, memory = saddle_step(method, 0.5, Pair(1.0, 2.0))
    assert calls == [("primal", 102.0), ("violation", 2.0, ("p",)), ("signal", 2.0), ("move", 2.0, 20.0, 0.5)]
    assert pair == Pair(2.0, 12.0)
    assert memory == Memory(("p",), ("s",))


def test_a_multiplier_never_falls_while_its_constraint_is_broken():
    move = lambda y, v, step: jnp.maximum(y + step * v, 0)
    for theta in (0.0,):
        method = row(lambda x, y: 0.9 * x - 0.05 * y, lambda x: x - 0.1, move, theta)
        pair = Pair(jnp.float32(3.0), jnp.float32(0.0))
        for _ in range(100):
            new, _ = saddle_step(method, 0.1, pair)
            assert float(new.x) <= 0.1 or float(new.y) >= float(pair.y)
            assert float(new.y) >= 0
            pair = new
