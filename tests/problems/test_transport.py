"""The transport problem: what it accepts, what it refuses, and what it says when it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.problems.couplings import Potentials
from pdopt.types import Pair, Status

C = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0]])


def make(**changes):
    return pdopt.Transport(**{"cost": C, "regulariser": pdopt.Entropy(0.1), "dtype": np.float32, **changes})


def test_masses_default_to_uniform():
    problem = make()
    np.testing.assert_allclose(problem.a, [0.5, 0.5])
    np.testing.assert_allclose(problem.b, np.full(3, 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(make(a=[1.0, 2.0]).b, np.ones(3), rtol=1e-6)
    assert problem.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": np.zeros(3)}, r"cost has shape \(3,\)"),
        ({"cost": np.zeros((0, 3))}, "at least one source"),
        ({"cost": np.full((2, 3), np.nan)}, "cost"),
        ({"a": [1.0]}, r"a has shape \(1,\); expected \(2,\)"),
        ({"b": [1.0, 1.0]}, r"b has shape \(2,\); expected \(3,\)"),
        ({"a": [1.5, -0.5]}, "a has the mass -0.5 at index 1"),
        ({"a": [0.0, 0.0]}, "a has no mass"),
        ({"a": [1.0, 1.0], "b": [1.0, 1.0, 1.0]}, "a has the total 2, b 3; expected equal totals"),
    ],
)
def test_wrong_data_are_refused_by_name(changes, message):
    with pytest.raises(InvalidProblem, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regulariser": 0.1}, "regulariser is 0.1; expected Entropy"),
        ({"unbalanced": (1.0, 0.0)}, r"unbalanced\[1\] is 0"),
        ({"unbalanced": 1.0}, "unbalanced is 1.0"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, message):
    with pytest.raises(InvalidOption, match=message):
        make(**changes)


def test_unequal_totals_are_for_unbalanced_problems():
    assert make(a=[1.0, 1.0], b=[1.0, 1.0, 1.0], unbalanced=(1.0, 1.0)).shape == (2, 3)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Pair(None, np.zeros(2)), "expected the potentials"),
        (Pair(None, (np.zeros(3), np.zeros(3))), r"start.y.f has shape \(3,\); expected \(2,\)"),
        (Pair(None, (np.zeros(2), np.zeros(2))), r"start.y.g has shape \(2,\); expected \(3,\)"),
        (Pair(None, (np.array([np.nan, 0]), np.zeros(3))), "NaN"),
    ],
)
def test_wrong_starts_are_refused(start, message):
    start = start._replace(y=jax.tree.map(lambda leaf: leaf.astype(np.float32), start.y))
    with pytest.raises(InvalidProblem, match=message):
        pdopt.solve(make(), start=start)


def test_a_bad_member_of_a_batch_is_invalid_and_harms_nobody():
    totals = jnp.array([1.0, 1.0, np.nan], np.float32)
    problem = make()
    solve = lambda total: pdopt.solve(problem.replace(a=total * problem.a, check=False), gradient="none").status
    assert list(jax.vmap(solve)(totals)) == [Status.OPTIMAL, Status.OPTIMAL, Status.INVALID_PROBLEM]


def test_defaults_are_those_of_transport():
    """1e-4 in float64 too, and 2000 sweeps."""
    with jax.enable_x64(True):
        problem = make(dtype=np.float64)
        assert problem.defaults == {"tolerance": 1e-4, "max_iterations": 2000}
    assert make(regulariser=None).defaults["max_iterations"] is None


def test_the_pair_has_the_shapes_it_promises():
    problem = make()
    pair = problem.inside(Pair(None, Potentials(np.zeros(2, np.float32), np.zeros(3, np.float32))))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), pair)
    assert shapes == problem.pair_shapes()
