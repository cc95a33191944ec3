"""Anderson mixing: on an affine map against least squares, when it jumps, when it goes back, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption
from pdopt.rules.mixing import Anderson, _eliminated
from pdopt.rules.restart import Epoch
from pdopt.types import Status

RULE = Anderson(memory=4, spacing=1)


def epoch(first=1.0, restarts=1):
    return Epoch(jnp.float64(first), jnp.float64(jnp.inf), jnp.int32(64), jnp.int32(1000), jnp.int32(restarts))


@jax.jit
def look(rule, past, point, residual, accepted, ends, error, epoch):
    past, jump = rule.look(past, point, lambda: residual, accepted, ends, error, epoch)
    return past, jump._replace(point=jump.point())


def looked(rule, points, residuals, ends=False, accepted=True, error=1.0, **state):
    """The past after some checks, and the rule's answer at the last of them."""
    past, jump = rule.init(jnp.asarray(points[0]), jnp.asarray(residuals[0])), None
    for point, residual in zip(points, residuals):
        past, jump = look(rule, past, point, residual, accepted, ends, error, epoch(**state))
    return past, jump


def affine(count, seed=0, size=5):
    """Points `T z` of an affine contraction, their residuals, and its fixed point."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(size, size))
    matrix = 0.9 * matrix / np.linalg.norm(matrix, 2)
    fixed = rng.normal(size=size)
    z = fixed + rng.normal(size=(count, size))
    after = fixed + (z - fixed) @ matrix.T
    return after, after - z, fixed


def test_elimination_solves_what_a_library_solves():
    rng = np.random.default_rng(1)
    half = rng.normal(size=(6, 6))
    with jax.enable_x64(True):
        matrix, right = half @ half.T + 1e-3 * np.eye(6), rng.normal(size=6)
        found = _eliminated(jnp.asarray(np.column_stack([matrix, right])))
        np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9)


def test_the_mean_is_the_one_of_least_residual():
    points, residuals, _ = affine(4)
    with jax.enable_x64(True):
        past, jump = looked(RULE, points, residuals)
        assert (bool(jump.back), bool(jump.taken)) == (False, True)
        before, _ = looked(RULE, points[:3], residuals[:3])
        # sum_i a_i = 1 by a difference basis, newest last.
        steps = (residuals[:-1] - residuals[-1]).T
        weights = np.linalg.lstsq(steps, -residuals[-1], rcond=None)[0]
        expected = points[-1] + (points[:-1] - points[-1]).T @ weights
        np.testing.assert_allclose(jump.point, expected, rtol=1e-5)
        share = np.linalg.norm(residuals[-1] + steps @ weights) / np.linalg.norm(residuals[-1])
        row = jnp.concatenate([points[-1], residuals[-1]])
        again, _, _, square = RULE.stored(before._replace(seen=past.seen), lambda: row, 5, True)
        np.testing.assert_array_equal(again.rows, past.rows)
        np.testing.assert_allclose(past.gram, residuals @ residuals.T, rtol=1e-12)
        np.testing.assert_allclose(np.sqrt(square), share, rtol=1e-6)


def test_as_many_points_as_dimensions_find_the_fixed_point():
    rule = Anderson(memory=6, spacing=1)
    points, residuals, fixed = affine(6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(looked(rule, points, residuals)[1].point, fixed, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"restarts": 0}, False),  # the first epoch of a run
        ({"count": 2}, False),  # two points are too few
        ({"accepted": False}, False),  # a step that did not stand is no point of the map
        ({"first": 1e-9}, False),  # the error has fallen far less than a restart wants
        ({"first": 1e-9, "ends": True}, True),  # but an epoch that ends anyway takes a better anchor
    ],
)
def test_when_it_jumps(changes, taken):
    changes = dict(changes)
    points, residuals, _ = affine(changes.pop("count", 4))
    with jax.enable_x64(True):
        assert bool(looked(RULE, points, residuals, **changes)[1].taken) is taken


def test_residuals_that_do_not_cancel_leave_an_epoch_alone():
    with jax.enable_x64(True):
        points, same = np.random.default_rng(2).normal(size=(4, 5)), np.ones((4, 5))
        assert not bool(looked(RULE, points, same, ends=True)[1].taken)


def test_points_are_kept_apart_by_the_spacing():
    points, residuals, _ = affine(6)
    with jax.enable_x64(True):
        past, _ = looked(Anderson(memory=4, spacing=3), points, residuals)
        kept = np.concatenate([points, residuals], 1)
        np.testing.assert_array_equal(past.rows, [kept[2], kept[5], 0 * kept[0], 0 * kept[0]])
        assert int(past.seen) == 6


@pytest.mark.parametrize(("first", "back"), [(2.9, False), (3.1, True)])
def test_a_jump_that_made_the_error_grow_is_taken_back(first, back):
    points, residuals, _ = affine(4)
    with jax.enable_x64(True):
        past, jump = looked(RULE, points, residuals)
        past = RULE.begun(past, jump, 1.0)
        past, jump = look(RULE, past, points[0], residuals[0], True, False, 0.5, epoch(first=first))
        assert (bool(jump.back), bool(jump.taken)) == (back, False)
        assert float(past.bound) == np.inf
        if back:
            np.testing.assert_allclose(jump.point, points[-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": 1}, "memory is 1"),
        ({"spacing": 0}, "spacing is 0"),
        ({"spacing": 1.5}, "spacing is 1.5"),
        ({"gain": 1.5}, "gain is"),
        ({"spare": -0.1}, "spare is"),
        ({"sufficient": np.nan}, "sufficient is"),
        ({"trust": 0.5}, "trust is"),
    ],
)
def test_settings_outside_their_ranges_are_refused(changes, message):
    with pytest.raises(InvalidOption, match=message):
        pdopt.PDHG(mixing=Anderson(**changes))


def test_nearly_dependent_programs_take_fewer_steps():
    shares = []
    for seed in range(1, 7):
        rng = np.random.default_rng(seed)
        m, n = 12, 20
        rng.normal(size=(m, n + 1))
        A = rng.normal(size=(m, 4)) @ rng.normal(size=(4, n)) + 0.05 * rng.normal(size=(m, n))
        x, y = np.maximum(rng.normal(size=n), 0), rng.normal(size=m)
        c = A.T @ y + np.where(x > 0, 0, rng.uniform(size=n))
        with jax.enable_x64(True):
            lp = pdopt.LinearProgram(c, A, A @ x, A @ x, np.zeros(n), np.full(n, np.inf))
            solved = [pdopt.solve(lp, pdopt.PDHG(mixing=rule), tolerance=1e-8) for rule in (Anderson(), None)]
            assert [s.reason for s in solved] == [Status.OPTIMAL] * 2
            np.testing.assert_allclose([s.objective for s in solved], c @ x, rtol=1e-6)
            shares.append(int(solved[0].iterations) / int(solved[1].iterations))
    # One program says little: its count moves by a tenth with the last bit of anything.
    assert np.exp(np.mean(np.log(shares))) < 0.8
