"""Runs of the policies: against a plain loop on the same luck, under the transforms, and the ratios of two families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from benchmarks.matching_reference import loop, luck, optimum
from pdopt.errors import InvalidOption, InvalidProblem

POLICIES = {
    "Balance": pdopt.Balance(),
    "Ranking": pdopt.Ranking(),
    "Greedy": pdopt.Greedy(),
    "UniformRandom": pdopt.UniformRandom(),
}
KEY = jax.random.key(7)


def random_graph(seed: int, n: int = 6, T: int = 24, dtype=np.float64):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 0.6, (n, T)) * (rng.random((n, T)) < 0.5)
    return pdopt.StochasticMatching(p.astype(dtype), rng.uniform(0.5, 2, n).astype(dtype), dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", POLICIES)
def test_decisions_are_those_of_a_plain_loop(name: str, dtype) -> None:
    """Unequal p and w: no ties, so NumPy's and XLA's exponentials, a few units apart, decide alike."""
    graph = random_graph(0, dtype=dtype)
    p, weights = np.asarray(graph.probabilities), np.asarray(graph.weights)
    run = pdopt.match_online(graph, POLICIES[name], KEY, paths=12, record=True)
    assert run.load.dtype == run.reward.dtype == dtype
    for k in range(12):
        with jax.enable_x64(dtype == np.float64):
            drawn = luck(KEY, k, *graph.shape, dtype)
        tried, matched, load = loop(p, weights, name, drawn)
        np.testing.assert_array_equal(run.tried[k], tried)
        np.testing.assert_array_equal(run.matched[k], matched)
        # Sums of the same numbers in the same order.
        np.testing.assert_array_equal(run.load[k], load)
        assert float(run.reward[k]) == pytest.approx(weights[matched].sum(), rel=1e-6)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("family", [pdopt.upper_triangular, pdopt.left_heavy])
def test_nobody_is_rewarded_twice_and_no_chance_is_left(name: str, family) -> None:
    """Ties everywhere (equal p): whoever has a free neighbour tries one, and only a free neighbour."""
    graph = family(6, 4, np.float32)
    edge = np.asarray(graph.probabilities) > 0
    run = pdopt.match_online(graph, POLICIES[name], KEY, paths=12, record=True)
    for tried, succeeded, matched, load in zip(
        np.asarray(run.tried), np.asarray(run.succeeded), np.asarray(run.matched), np.asarray(run.load)
    ):
        free, tries = np.ones(6, bool), np.zeros(6, int)
        for v, u in enumerate(tried):
            assert (u >= 0) == (edge[:, v] & free).any()
            if u >= 0:
                assert free[u]
                assert edge[u, v]
                tries[u] += 1
                free[u] &= not succeeded[v]
            else:
                assert not succeeded[v]
        np.testing.assert_array_equal(matched, ~free)
        np.testing.assert_allclose(load, tries / 4, rtol=1e-5)
    np.testing.assert_array_equal(run.reward, np.asarray(run.matched).sum(axis=1))


def test_batches_of_graphs_keys_and_paths_equal_loops() -> None:
    graphs = [random_graph(seed, dtype=np.float32) for seed in range(3)]
    p, w = (jnp.stack([getattr(g, name) for g in graphs]) for name in ("probabilities", "weights"))
    one = lambda p, w, key: pdopt.match_online(pdopt.StochasticMatching(p, w), pdopt.Balance(), key, paths=4)
    keys = jax.random.split(KEY, 3)
    batch = jax.vmap(one)(p, w, keys)
    for k, graph in enumerate(graphs):
        alone = pdopt.match_online(graph, pdopt.Balance(), keys[k], paths=4)
        np.testing.assert_array_equal(batch.matched[k], alone.matched)
        np.testing.assert_array_equal(batch.load[k], alone.load)
    few, many = (pdopt.match_online(graphs[0], pdopt.Balance(), KEY, paths=size) for size in (4, 9))
    np.testing.assert_array_equal(many.load[:4], few.load)
    np.testing.assert_array_equal(many.reward[:4], few.reward)


@pytest.mark.slow
def test_jit_changes_nothing() -> None:
    graph = random_graph(4, 3, 4, np.float32)
    run = lambda: pdopt.match_online(graph, pdopt.Balance(), KEY, paths=2, record=True)
    with jax.disable_jit():
        eager = run()
    for a, b in zip(eager, run()):
        np.testing.assert_array_equal(a, b)
    again = jax.jit(lambda g, key: pdopt.match_online(g, pdopt.Balance(), key, paths=2, record=True))(graph, KEY)
    for a, b in zip(again, run()):
        np.testing.assert_array_equal(a, b)


def test_reward_and_load_have_the_same_mean_and_stay_below_the_optimum() -> None:
    """Each try succeeds with its own p. 4000 paths; five standard errors: a false alarm in 1e-6."""
    graph = random_graph(1, 3, 8)
    p, weights = graph.host()
    best = optimum(p, weights)
    for policy in (pdopt.Balance(), pdopt.Ranking()):
        run = pdopt.match_online(graph, policy, KEY, paths=4000)
        reward = np.asarray(run.reward)
        drift = reward - np.asarray(run.load) @ weights
        assert abs(drift.mean()) < 5 * drift.std() / np.sqrt(4000)
        assert reward.mean() < best + 5 * reward.std() / np.sqrt(4000)


def test_one_vertex_succeeds_with_the_product_law() -> None:
    """n = 1: `1 - prod (1 - p)` whatever the policy; 20000 paths, five standard errors of a coin."""
    p = np.array([[0.1, 0.3, 0.0, 0.5]])
    for dtype in (np.float32, np.float64):
        graph = pdopt.StochasticMatching(p, dtype=dtype)
        run = pdopt.match_online(graph, pdopt.Balance(), KEY, paths=20_000)
        assert abs(np.asarray(run.reward).mean() - (1 - 0.9 * 0.7 * 0.5)) < 5 / (2 * np.sqrt(20_000))


@pytest.fixture(scope="module")
def ratios():
    """Mean reward / LP value, n = 50, p = 0.05, 100 paths: standard errors about 0.005."""
    last = pdopt.Greedy(jnp.arange(50, dtype=jnp.float32))
    found = {}
    for family in (pdopt.upper_triangular, pdopt.left_heavy):
        graph = family(50, 20, np.float32)
        for name, policy in {**POLICIES, "worst": last}.items():
            run = pdopt.match_online(graph, policy, jax.random.key(1), paths=100)
            found[family.__name__, name] = float(np.mean(run.reward)) / 50
    return found


@pytest.mark.parametrize(
    ("family", "name", "low", "high"),
    [
        ("upper_triangular", "Balance", 0.60, 0.66),
        ("upper_triangular", "Ranking", 0.60, 0.66),
        ("upper_triangular", "worst", 0.48, 0.52),
        ("left_heavy", "Balance", 0.66, 0.72),
        ("left_heavy", "Ranking", 0.61, 0.66),
        ("left_heavy", "UniformRandom", 0.51, 0.58),
        ("left_heavy", "worst", 0.49, 0.55),
    ],
)
def test_ratios_lie_in_their_bands(ratios, family, name, low, high) -> None:
    assert low <= ratios[family, name] <= high


def test_the_second_family_tells_balance_from_chance(ratios) -> None:
    assert abs(ratios["upper_triangular", "Balance"] - ratios["upper_triangular", "UniformRandom"]) < 0.03
    assert ratios["left_heavy", "Balance"] > ratios["left_heavy", "UniformRandom"] + 0.08


def test_the_scan_compiles_once_for_other_data_and_other_priorities() -> None:
    from pdopt.match_online import _match

    runs = [
        lambda: pdopt.match_online(random_graph(9, dtype=np.float32), pdopt.Greedy(jnp.arange(6.0)), KEY, paths=2),
        lambda: pdopt.match_online(random_graph(8, dtype=np.float32), pdopt.Greedy(-jnp.arange(6.0)), KEY, paths=2),
    ]
    runs[0]()
    before = _match._cache_size()
    runs[1]()
    assert _match._cache_size() == before


def test_errors() -> None:
    graph = random_graph(0, dtype=np.float32)
    with pytest.raises(InvalidProblem, match="expected StochasticMatching"):
        pdopt.match_online(np.ones((2, 2)), pdopt.Balance(), KEY)
    for policy in ("balance", pdopt.Balance, None):
        with pytest.raises(InvalidOption, match="policy is"):
            pdopt.match_online(graph, policy, KEY)
    for paths in (0, 1.5, True):
        with pytest.raises(InvalidOption, match="paths is"):
            pdopt.match_online(graph, pdopt.Balance(), KEY, paths=paths)
