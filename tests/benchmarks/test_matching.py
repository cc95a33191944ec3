"""The references of the matching comparison, its search, and that its claims can fail."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from benchmarks.matching import COUNTEREXAMPLE, _breaks, _programs
from benchmarks.matching_reference import optimum, programs
from benchmarks.matching_search import search


def every_policy(p: np.ndarray) -> float:
    """The best of all maps from (arrival, free set) to an action, each evaluated on its own: n = 2, T = 2."""
    n, T = p.shape
    states = list(itertools.product(range(T), range(1 << n)))

    def value(policy: dict, v: int, free: int) -> float:
        if v == T:
            return 0.0
        u = policy[v, free]
        if u < 0 or not free >> u & 1:
            return value(policy, v + 1, free)
        return p[u, v] * (1 + value(policy, v + 1, free & ~(1 << u))) + (1 - p[u, v]) * value(policy, v + 1, free)

    actions = itertools.product(range(-1, n), repeat=len(states))
    return max(value(dict(zip(states, chosen)), 0, (1 << n) - 1) for chosen in actions)


def test_dynamic_programming_equals_trying_every_policy() -> None:
    assert optimum(COUNTEREXAMPLE, np.ones(2)) == pytest.approx(1.17, abs=1e-12)
    for p in (COUNTEREXAMPLE, np.array([[0.3, 0.9], [0.4, 0.2]])):
        assert optimum(p, np.ones(2)) == pytest.approx(every_policy(p), abs=1e-12)


def test_programs_by_hand() -> None:
    """One offline vertex, p = (.5, .8): sets earn min(1, 1.3); fluid: .5 + .5 .8; fractional: sum p x <= 1."""
    found = programs(np.array([[0.5, 0.8]]), np.ones(1))
    assert found.stochastic == pytest.approx(0.9)
    assert found.configuration == pytest.approx(1.0)
    assert found.matching == pytest.approx(1.0)
    assert found.unweighted == pytest.approx(0.9)


def test_a_broken_chain_is_counted() -> None:
    good = _programs("dense", 0, np.random.default_rng(0).uniform(0.1, 0.6, (3, 6)))
    assert _breaks(good) == 0
    assert _breaks(good | {"stochastic": good["optimum"] - 1e-6, "stochastic_bound": good["optimum"] - 1e-6}) == 2
    assert _breaks(_programs("counterexample", 0, COUNTEREXAMPLE)) == 2  # stochastic > configuration, on both measures


def test_the_search_descends_to_a_bad_graph() -> None:
    """Greedy in worst order on n = 2 does worst on the triangle: p = 1 would give 1 of 2."""
    found = search(pdopt.Greedy(jnp.arange(2.0)), 2, 4, paths=400, steps=4, seed=0, confirm=4000)
    assert found.edges.shape == (2, 2)
    assert 0.5 < found.ratio < 0.85
    assert found.edges[1].all() or found.edges[0].all()
