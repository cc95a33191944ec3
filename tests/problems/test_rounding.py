"""Rounding: feasible whatever the plan was, within Altschuler's bound, and permutations that are permutations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdopt.problems.costs import DenseCost
from pdopt.problems.couplings import Potentials
from pdopt.problems.rounding import (
    apply_rounding,
    judged,
    permutation_of,
    permuted_costs,
    round_plan,
    rounded_cost,
    rounded_plan,
    scale_down,
)
from pdopt.problems.transport import Transport


def masses(rng, n, zeros):
    a = rng.uniform(0.1, 1, n)
    a[:zeros] = 0
    return a / a.sum()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), zeros=st.integers(0, 2), scale=st.sampled_from([0.0, 1e-3, 1.0, 50.0]))
def test_any_plan_becomes_feasible_and_costs_little_more(seed, zeros, scale):
    rng = np.random.default_rng(seed)
    a, b = masses(rng, 6, zeros), masses(rng, 4, 0)
    X = scale * rng.uniform(0, 1, (6, 4)) * (rng.uniform(0, 1, (6, 4)) < 0.5) / 24
    C = rng.uniform(0, 1, (6, 4))
    with jax.enable_x64(True):
        cost = DenseCost(jnp.asarray(C))
        made = scale_down(cost, jnp.asarray(X), jnp.asarray(a), jnp.asarray(b))
        T = np.asarray(apply_rounding(jnp.asarray(X), made))
        paid = float(rounded_cost(cost, jnp.asarray(X), made))
    assert T.min() >= 0
    error = np.abs(T.sum(1) - a).sum() + np.abs(T.sum(0) - b).sum()
    assert error <= 1e-14
    before = np.abs(X.sum(1) - a).sum() + np.abs(X.sum(0) - b).sum()
    np.testing.assert_allclose(paid, (C * T).sum(), rtol=0, atol=1e-14)
    assert np.abs(T - X).sum() <= 2 * before + 1e-12  # Altschuler et al. 2017, lemma 7
    assert paid - (C * X).sum() <= 2 * C.max() * before + 1e-12


def test_blocks_change_nothing():
    rng = np.random.default_rng(0)
    n = 300  # 90 000 entries: more than one block, the last one moved up
    X, a = jnp.asarray(rng.uniform(0, 1, (n, n)), jnp.float32), jnp.full(n, 1 / n, jnp.float32)
    C = DenseCost(jnp.asarray(rng.uniform(0, 1, (n, n)), jnp.float32))
    assert judged(C).block_rows < n
    blocks, whole = scale_down(judged(C), X, a, a), scale_down(C, X, a, a)
    for one, other in zip(blocks, whole):
        # What is left over is a difference of masses of 1e-3: sums in another order move it by 1e-6 of them.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-8)
    y = Potentials(jnp.zeros(n), jnp.zeros(n))
    np.testing.assert_array_equal(permutation_of(judged(C), X, y), permutation_of(C, X, y))
    p = permutation_of(C, X, y)
    np.testing.assert_array_equal(permuted_costs(judged(C), p), np.asarray(C.C)[np.arange(n), p])


@pytest.mark.parametrize("kind", ["random", "ties", "one column", "zero"])
def test_a_permutation_is_one(kind):
    rng = np.random.default_rng(1)
    X = {
        "random": rng.uniform(0, 1, (15, 15)),
        "ties": np.ones((15, 15)),
        "one column": np.tile(np.eye(15)[0], (15, 1)),
        "zero": np.zeros((15, 15)),
    }[kind]
    y = Potentials(jnp.zeros(15), jnp.zeros(15))
    p = permutation_of(DenseCost(jnp.asarray(rng.uniform(0, 1, (15, 15)), jnp.float32)), jnp.asarray(X, jnp.float32), y)
    assert sorted(np.asarray(p)) == list(range(15))


def test_a_permutation_is_read_off_its_own_matrix():
    p = np.random.default_rng(2).permutation(9)
    X = jnp.asarray(0.9 * np.eye(9)[p] + 0.1 / 9, jnp.float32)
    problem = Transport(jnp.asarray(np.random.default_rng(3).uniform(0, 1, (9, 9)), jnp.float32))
    y = Potentials(jnp.zeros(9), jnp.zeros(9))
    found = round_plan(problem, X / 9, y)
    chosen = permutation_of(problem.cost, X, y)
    np.testing.assert_array_equal(chosen, p)
    plan = rounded_plan(problem, X / 9, found)
    np.testing.assert_allclose(float(found.objective), float(jnp.vdot(problem.cost.C, plan)), rtol=1e-6)
    np.testing.assert_allclose(plan.sum(0), 1 / 9, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(1), 1 / 9, rtol=1e-6)


def test_unequal_masses_have_no_permutation():
    a = jnp.array([0.5, 0.3, 0.2], jnp.float32)
    problem = Transport(jnp.ones((3, 3), jnp.float32), a, a)
    found = round_plan(problem, jnp.zeros((3, 3)), Potentials(jnp.zeros(3), jnp.zeros(3)))
    assert not bool(found.integral)
    assert set(np.asarray(found.permutation)) == {-1}
