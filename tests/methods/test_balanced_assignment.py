"""Exact balanced assignment against enumeration and HiGHS, with remainders, ties and every K."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.methods.balanced_assignment import balanced_assignment


def highs(scores, top):
    """The optimum with loads between floor and ceil of K T / E; the polytope has integral corners."""
    from scipy.optimize import linprog

    tokens, experts = scores.shape
    rows = np.kron(np.eye(tokens), np.ones(experts))
    loads = np.kron(np.ones(tokens), np.eye(experts))
    low, high = tokens * top // experts, -(-tokens * top // experts)
    right = np.concatenate([np.full(experts, float(high)), np.full(experts, -float(low))])
    found = linprog(-scores.ravel(), np.vstack([loads, -loads]), right, rows, np.full(tokens, float(top)), (0, 1))
    assert found.status == 0
    return -found.fun


CASES = [(8, 3, 1), (7, 7, 1), (13, 5, 2), (5, 4, 4), (3, 8, 2), (1, 4, 2), (40, 6, 3)]


@pytest.mark.parametrize(("tokens", "experts", "top"), CASES)
def test_equals_highs(tokens, experts, top):
    rng = np.random.default_rng(0)
    low, high = tokens * top // experts, -(-tokens * top // experts)
    find = {moves: jax.jit(lambda s, moves=moves: balanced_assignment(s, top, moves=moves)) for moves in (0, 24)}
    for number in range(4):
        scores = rng.normal(size=(tokens, experts)) + number * np.linspace(-1, 1, experts)
        scores = (np.round(scores) if number == 3 else scores).astype(np.float32)  # the last has many ties
        for moves in (0, 24):
            found = find[moves](jnp.asarray(scores))
            experts_of = np.asarray(found.experts)
            loads = np.bincount(experts_of.ravel(), minlength=experts)
            assert low <= loads.min() <= loads.max() <= high
            assert all(len(set(row)) == top for row in experts_of)
            kept = np.take_along_axis(scores.astype(float), experts_of, axis=1).sum()
            # Float32 differences of scores below 8 are right to 5e-7; a path has at most E of them.
            assert kept == pytest.approx(highs(scores.astype(float), top), abs=5e-6 * experts)
            assert float(found.score) == pytest.approx(kept, abs=1e-4)


def test_equals_enumeration():
    scores = np.random.default_rng(3).normal(size=(6, 3))
    best = max(
        scores[np.arange(6), list(choice)].sum()
        for choice in itertools.product(range(3), repeat=6)
        if np.bincount(choice, minlength=3).tolist() == [2, 2, 2]
    )
    with jax.enable_x64(True):
        assert float(balanced_assignment(jnp.asarray(scores), 1).score) == pytest.approx(best, abs=1e-12)


def test_constant_scores_and_bad_arguments():
    found = balanced_assignment(jnp.zeros((6, 3)), 1)
    assert np.bincount(np.asarray(found.experts).ravel()).tolist() == [2, 2, 2]
    with pytest.raises(InvalidProblem, match="top is 4"):
        balanced_assignment(jnp.zeros((6, 3)), 4)
    with pytest.raises(InvalidOption, match="moves is -1"):
        balanced_assignment(jnp.zeros((6, 3)), 1, moves=-1)
