"""The loop: every status, exact limits, chunks, history, batches, and one compilation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.rules.acceleration import Halpern
from pdopt.rules.loop import HISTORY, advance_until, begin
from pdopt.rules.restart import FixedPointRestart, PrimalWeight
from pdopt.rules.stepsize import AdaptiveStep
from pdopt.solve import _solve
from pdopt.types import Optimality, Pair, Residuals, Status, Visit, record


class Shrinking(NamedTuple):
    point: Any
    count: Any


@record
class Judge:
    """How far x is from 0; `broken` makes the residual NaN from that many steps on."""

    broken: Any = 10**6

    def optimality(self, pair):
        size = jnp.where(pair.y[0] >= self.broken, jnp.nan, jnp.abs(pair.x[0]))
        return Optimality(Residuals(*[size] * 7), size, -size)


@record
class View:
    def into(self, pair):
        return pair

    back = into


@record(static=("every",))
class Shrink:
    """`x' = factor x`, y counts the steps."""

    factor: Any = 0.5
    every: int = 4

    def init(self, view, start):
        return Shrinking(start, jnp.int32(0))

    def step(self, view, state):
        before = state.point
        after = Pair(before.x * self.factor, before.y + 1)
        return Shrinking(after, state.count + 1), Visit(before, after)

    def pair(self, view, state, visit):
        return visit.after

    def check(self, view, state, visit):
        return state


METHOD, JUDGE = Shrink(), Judge()


def drive(method=METHOD, judge=JUDGE, tolerance=1e-6, limit=1000, history=0, start=1.0, until=None):
    first = Pair(jnp.full(1, start, jnp.float32), jnp.zeros(1, jnp.float32))
    tolerance, limit = jnp.float32(tolerance), jnp.int32(limit)
    carry = begin(judge, View(), method, first, tolerance, history)
    return advance_until(judge, View(), method, carry, limit if until is None else jnp.int32(until), tolerance, limit)


def test_it_stops_at_the_first_check_that_meets_the_tolerance():
    done = drive()
    assert Status(int(done.status)) is Status.OPTIMAL
    assert int(done.iterations) == 20
    assert float(done.pair.x[0]) == 2.0**-20
    assert float(done.optimality.objective) == 2.0**-20


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 11, 12])
def test_the_iteration_limit_is_exact(limit):
    done = drive(limit=limit)
    assert Status(int(done.status)) is Status.ITERATION_LIMIT
    assert int(done.iterations) == limit == int(done.pair.y[0]) == int(done.state.count)


def test_a_start_that_is_optimal_takes_no_step():
    done = drive(start=1e-7)
    assert Status(int(done.status)) is Status.OPTIMAL
    assert int(done.iterations) == 0
    assert float(done.pair.x[0]) == np.float32(1e-7)


def test_growth_is_called_divergence_before_it_overflows():
    done = drive(Shrink(30.0))
    assert Status(int(done.status)) is Status.DIVERGED
    assert np.all(np.isfinite(done.state.point.x))
    assert float(done.pair.x[0]) == 1.0


def test_nan_ends_the_run_and_the_last_finite_pair_is_returned():
    done = drive(Shrink(0.99, every=1), Judge(broken=7))
    assert Status(int(done.status)) is Status.NUMERICAL_ERROR
    assert int(done.iterations) == 7
    assert int(done.pair.y[0]) == 6
    assert np.isfinite(float(done.optimality.objective))
    overflow = drive(Shrink(1e30))  # from 1 to infinity between two checks
    assert Status(int(overflow.status)) is Status.NUMERICAL_ERROR
    assert float(overflow.pair.x[0]) == 1.0


def test_chunks_of_any_length_make_the_same_run():
    whole = drive(Shrink(0.9), limit=200)
    carry = drive(Shrink(0.9), limit=200, until=1)
    for until in (5, 13, 37, 200):
        assert int(carry.iterations) < until
        carry = advance_until(Judge(), View(), Shrink(0.9), carry, jnp.int32(until), jnp.float32(1e-6), jnp.int32(200))
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(whole)):
        np.testing.assert_array_equal(a, b)


def test_the_best_pair_is_kept_while_the_iterate_gets_worse():
    done = drive(Shrink(1.1), limit=40)
    assert Status(int(done.status)) is Status.ITERATION_LIMIT
    assert float(done.pair.x[0]) == 1.0


@pytest.mark.parametrize("capacity", [2, 3, 8])
@pytest.mark.parametrize("checks", [1, 3, 8, 9, 40])
def test_history_keeps_evenly_spaced_checks(capacity, checks):
    done = drive(Shrink(0.999), limit=4 * checks, history=capacity)
    used, stride = int(done.history.used), int(done.history.stride)
    rows = np.asarray(done.history.rows)
    assert rows.shape == (capacity, len(HISTORY))
    assert 1 <= used <= capacity
    np.testing.assert_array_equal(rows[:used, 0], 4 + 4 * stride * np.arange(used))
    np.testing.assert_allclose(rows[:used, 1], 0.999 ** rows[:used, 0], rtol=1e-5)
    assert used == min(-(-checks // stride), capacity)
    assert stride == 1 or checks > capacity


def test_finished_members_of_a_batch_are_unharmed():
    """A batch runs until its slowest member ends; the others stay as they were, to the bit."""
    factors = jnp.asarray([0.1, 0.5, 0.9, 30.0, 0.99], jnp.float32)
    run = lambda factor: drive(Shrink(factor), limit=400, history=4)
    batch = jax.jit(jax.vmap(run))(factors)
    assert len(set(np.asarray(batch.iterations).tolist())) > 3
    for k, factor in enumerate(factors):
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(jax.jit(run)(factor))):
            np.testing.assert_array_equal(a[k], b)


# --- with PDHG -------------------------------------------------------------------------------------------------------


def program(seed=0, upper=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(3, 5)).astype(np.float32)
    b = A @ rng.uniform(size=5).astype(np.float32)
    return pdopt.LinearProgram(rng.normal(size=5), A, b - 0.1, b + 0.1, np.zeros(5), np.full(5, upper), dtype=dtype)


def test_new_data_and_new_floats_compile_once():
    before = _solve.plain._cache_size()
    for k in range(3):
        method = pdopt.PDHG(
            Halpern(0.7 + 0.1 * k),
            AdaptiveStep(0.8 + 0.05 * k),
            FixedPointRestart(0.2 + 0.05 * k),
            PrimalWeight(0.5 + 0.1 * k),
        )
        pdopt.solve(program(k), method, tolerance=10.0 ** (-3 - 0.2 * k), max_iterations=100 + k)
    assert _solve.plain._cache_size() == before + 1
    pdopt.solve(program(0), pdopt.PDHG(every=32), max_iterations=64)  # a static setting does compile
    assert _solve.plain._cache_size() == before + 2


@pytest.mark.slow
def test_settings_sweep_as_a_vmap():
    lp = program()
    run = lambda rho: pdopt.solve(lp, pdopt.PDHG(Halpern(rho)), tolerance=1e-3)
    batch = jax.vmap(run)(jnp.asarray([0.0, 0.5, 1.0], jnp.float32))
    assert np.all(np.asarray(batch.status) == Status.OPTIMAL)
    assert np.asarray(batch.objective).std() < 1e-2


def test_one_bad_member_does_not_touch_the_others():
    """Reliability row 35: NaN in one of eight; the seven others are bit-equal to the batch without it."""
    lps = [program(seed) for seed in range(8)]
    stack = lambda lps: jax.tree.map(lambda *leaves: jnp.stack(leaves), *lps)
    good = stack(lps)
    leaves, tree = jax.tree.flatten(good)
    assert leaves[0].shape == (8, 5)
    leaves[0] = leaves[0].at[3, 1].set(jnp.nan)
    bad = jax.tree.unflatten(tree, leaves)
    run = jax.jit(jax.vmap(lambda lp: pdopt.solve(lp, max_iterations=2000)))
    clean, hurt = run(good), run(bad)
    assert int(hurt.status[3]) == Status.INVALID_PROBLEM
    keep = np.arange(8) != 3
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(hurt)):
        np.testing.assert_array_equal(np.asarray(a)[keep], np.asarray(b)[keep])
