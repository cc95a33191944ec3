"""Policies as rows of the saddle step: what they choose, and how the loads move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.methods.matching_policies import Arrival, parts, survival
from pdopt.rules.saddle import saddle_step
from pdopt.types import Memory, Pair

KEY = jax.random.key(0)


def choose(policy, p, free, load, weights=None, drawn=()):
    """Who is tried (a unit vector) and the loads after one saddle step."""
    p = jnp.asarray(p, jnp.float32)
    weights = jnp.ones_like(p) if weights is None else jnp.asarray(weights, jnp.float32)
    arrival = Arrival(p, jnp.asarray(free, bool), drawn, KEY)
    (chosen, after), _ = saddle_step(
        parts(policy, weights), jnp.float32(1), Pair(jnp.zeros_like(p), jnp.asarray(load, p.dtype)), Memory(arrival)
    )
    return chosen.tolist(), after.tolist()


def test_balance_tries_the_least_loaded_and_moves_its_load_alone() -> None:
    chosen, load = choose(pdopt.Balance(), [0.25, 0.25, 0.25], [True] * 3, [0.5, 0.25, 0.75])
    assert chosen == [0, 1, 0]
    assert load == [0.5, 0.5, 0.75]


def test_balance_weighs_p_and_w_against_the_load() -> None:
    """p w e^-l: 0.5 e^-1 = .184 against .2 (1); with w = 2 the first is worth .368."""
    assert choose(pdopt.Balance(), [0.5, 0.2], [True, True], [1.0, 0.0])[0] == [0, 1]
    assert choose(pdopt.Balance(), [0.5, 0.2], [True, True], [1.0, 0.0], [2.0, 1.0])[0] == [1, 0]


def test_ranking_is_a_best_response_to_prices_drawn_once() -> None:
    ranks = jnp.array([0.9, 0.1, 0.0], jnp.float32)
    assert choose(pdopt.Ranking(), [0.5, 0.5, 0.5], [True, True, False], [0, 9, 0], drawn=ranks)[0] == [0, 1, 0]
    # p w (1 - e^(r - 1)): .9 (1 - e^-.1) = .086 < .2 (1 - e^-.9) = .119 < .9 2 (1 - e^-.1) = .171
    assert choose(pdopt.Ranking(), [0.9, 0.2, 0], [True] * 3, [0, 0, 0], drawn=ranks)[0] == [0, 1, 0]
    assert choose(pdopt.Ranking(), [0.9, 0.2, 0], [True] * 3, [0, 0, 0], [2, 1, 1], drawn=ranks)[0] == [1, 0, 0]


def test_greedy_by_value_and_by_order() -> None:
    assert choose(pdopt.Greedy(), [0.2, 0.4, 0.4], [True] * 3, [0, 9, 9])[0] == [0, 1, 0]
    assert choose(pdopt.Greedy(), [0.2, 0.4, 0.4], [True] * 3, [0, 0, 0], [5, 1, 1])[0] == [1, 0, 0]
    last = pdopt.Greedy(jnp.arange(3, dtype=jnp.float32))
    assert choose(last, [0.9, 0.1, 0.0], [True] * 3, [0, 0, 0])[0] == [0, 1, 0]


@pytest.mark.parametrize(
    "policy", [pdopt.Balance(), pdopt.Ranking(), pdopt.Greedy(), pdopt.Greedy(jnp.zeros(3)), pdopt.UniformRandom()]
)
def test_nobody_is_tried_without_a_free_neighbour(policy) -> None:
    drawn = jnp.full(3, 0.5, jnp.float32)
    for p, free in (([0.0, 0.0, 0.0], [True] * 3), ([0.5, 0.5, 0.0], [False, False, True])):
        chosen, load = choose(policy, p, free, [0.1, 0.2, 0.3], drawn=drawn)
        assert chosen == [0, 0, 0]
        np.testing.assert_array_equal(load, np.float32([0.1, 0.2, 0.3]))
    # and the only free neighbour is, however loaded, unlucky or worthless
    chosen, load = choose(policy, [0.5, 0.5, 0.5], [False, True, False], [0, 200, 0], [0, 0, 0], drawn=drawn)
    assert chosen == [0, 1, 0]
    assert load == [0, 200.5, 0]


def slow(load):
    return 1 / (1 + load)


def steep(load):
    return 1 - jnp.exp(jnp.minimum(load, 1) - 1)


def test_equal_p_makes_every_increasing_g_the_least_loaded() -> None:
    """With `steep` (Karp, Vazirani, Vazirani's price e^(l - 1)) all loads above 1 tie, so it is compared below 1."""
    graph = pdopt.upper_triangular(12, 10, np.float64)
    tried = {
        g: np.asarray(pdopt.match_online(graph, pdopt.Balance(g), KEY, paths=8, record=True).tried)
        for g in (survival, slow)
    }
    np.testing.assert_array_equal(tried[survival], tried[slow])
    assert choose(pdopt.Balance(steep), [0.5, 0.5], [True, True], [0.6, 0.3])[0] == [0, 1]


def test_errors() -> None:
    with pytest.raises(InvalidOption, match=r"discount is 0\.5; expected a function"):
        pdopt.Balance(0.5)
    graph = pdopt.upper_triangular(3, 2, np.float32)
    with pytest.raises(InvalidProblem, match=r"priority has shape \(2,\); expected \(3,\)"):
        pdopt.match_online(graph, pdopt.Greedy(jnp.zeros(2)), KEY)
    with pytest.raises(InvalidProblem, match="priority has 1 NaN"):
        pdopt.match_online(graph, pdopt.Greedy(jnp.array([0, jnp.nan, 1])), KEY)
