"""Pricing of a column against enumeration, and bounds from arbitrary prices against the programs solved in full."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.matching_reference import compact, programs
from pdopt.problems import matching_lps
from pdopt.problems.matching_lps import Configuration, StochasticConfiguration, certificate, matching_certificate

FAMILIES = (Configuration(), StochasticConfiguration())


def enumerate_best(family, p: np.ndarray, weight: float, beta: np.ndarray) -> float:
    """`max_S c(S) - q(S)'beta` over every set of edges, from the definitions."""
    best = 0.0
    edges = np.flatnonzero(p)
    for size in range(1, len(edges) + 1):
        for chosen in itertools.combinations(edges, size):
            left, value, cost = 1.0, 0.0, 0.0
            for v in chosen:
                if isinstance(family, Configuration):
                    value, cost = value + p[v], cost + beta[v]
                else:
                    value, cost, left = value + left * p[v], cost + left * beta[v], left * (1 - p[v])
            best = max(best, weight * min(1.0, value) - cost)
    return best


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["unequal", "equal", "small", "certain"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_pricing_equals_enumeration(family, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    T = int(rng.integers(1, 9))
    p = {
        "unequal": rng.random(T), "equal": np.full(T, rng.choice([0.2, 0.3, 0.5])),
        "small": 0.3 * rng.random(T), "certain": rng.choice([0.5, 1.0], T),
    }[kind] * (rng.random(T) < 0.8)  # fmt: skip
    weight, beta = float(rng.uniform(0, 3)), rng.random(T) * rng.choice([0.0, 0.2, 1.0], T)
    found = family.price(p, weight, beta)
    expected = enumerate_best(family, p, weight, beta)
    # Sums of at most 8 terms of size 3: 1e-12 is far above their rounding; the ceiling adds 1e-12 w.
    assert found.value == pytest.approx(expected, abs=1e-11)
    assert found.value <= found.ceiling <= found.value + 1e-11
    members = found.members
    assert (p[members] > 0).all()
    reached = family.worth(p, weight, members) - family.use(p, members) @ beta
    assert reached == pytest.approx(found.value, abs=1e-11)


def test_a_sorted_prefix_is_not_enough_for_unequal_p() -> None:
    """Sorted by beta/p the prefixes are worth .81, .88, .864; leaving the second out is worth .894."""
    p, beta = np.array([0.9, 0.2, 0.1]), np.array([0.09, 0.03, 0.016])
    assert (np.diff(beta / p) > 0).all()
    found = Configuration().price(p, 1.0, beta)
    assert found.members.tolist() == [True, False, True]
    assert found.value == pytest.approx(0.894, abs=1e-12)


def test_a_search_that_stops_early_says_how_much_it_may_have_missed(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    p, beta = rng.uniform(0.05, 0.4, 30), rng.uniform(0.0, 0.05, 30)
    whole = Configuration().price(p, 1.0, beta)
    monkeypatch.setattr(matching_lps, "NODES", 3)
    cut = Configuration().price(p, 1.0, beta)
    assert cut.value <= whole.value + 1e-12
    assert cut.ceiling >= whole.value
    assert whole.ceiling - whole.value < 1e-11


@pytest.mark.parametrize("seed", range(4))
def test_any_prices_bound_the_programs(seed: int) -> None:
    """Weak duality for prices that no solver made, and on the way: the program over sets equals the compact one."""
    rng = np.random.default_rng(seed)
    p, weights = rng.random((3, 5)) * (rng.random((3, 5)) < 0.7), rng.uniform(0.5, 2, 3)
    exact = programs(p, weights)
    assert compact(p, weights) == pytest.approx(exact.stochastic, abs=1e-9)
    for _ in range(20):
        beta, alpha = rng.random(5) * rng.choice([0, 0.5, 2.0]), rng.random(3) * 2
        assert certificate(p, weights, beta, Configuration())[0] >= exact.configuration - 1e-9
        assert certificate(p, weights, beta, StochasticConfiguration())[0] >= exact.stochastic - 1e-9
        bound, least = matching_certificate(p, weights, alpha)
        assert bound >= exact.matching - 1e-9
        assert (p * alpha[:, None] + least >= p * weights[:, None] - 1e-12).all()
        assert (least >= 0).all()


def test_a_vertex_without_edges_or_weight_prices_nothing() -> None:
    for family in FAMILIES:
        for p, weight in ((np.zeros(3), 1.0), (np.full(3, 0.5), 0.0)):
            found = family.price(p, weight, np.zeros(3))
            assert not found.members.any()
            assert (found.value, found.ceiling) == (0.0, 0.0)
