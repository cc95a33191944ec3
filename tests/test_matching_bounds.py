"""Column generation on pdopt's own solver, against HiGHS with every column and against the exact optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from benchmarks.matching_reference import compact, optimum, programs
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.problems.matching_lps import Configuration, StochasticConfiguration
from pdopt.solve import _solve

SOLVERS = {
    "stochastic": pdopt.stochastic_configuration_lp,
    "configuration": pdopt.configuration_lp,
    "matching": pdopt.matching_lp,
}


def graph(p, weights=None, dtype=np.float64):
    return pdopt.StochasticMatching(np.asarray(p, dtype), None if weights is None else weights, dtype=dtype)


def tiny(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.6, (3, 6)), np.ones(3) if seed % 2 else rng.uniform(0.5, 2, 3)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.slow
def test_the_chain_on_tiny_graphs(seed: int) -> None:
    """optimum <= stochastic configuration <= configuration <= matching, each certified from both sides.

    Odd seeds: weight 1. For weights the middle link is no theorem; it holds on these graphs.
    """
    p, weights = tiny(seed)
    exact, best = programs(p, weights), optimum(p, weights)
    found = {name: solver(graph(p, weights), tolerance=1e-6) for name, solver in SOLVERS.items()}
    for name, bound in found.items():
        value = getattr(exact, name)
        assert bound.converged
        # Two certified sides hold HiGHS's value between them, up to its own tolerance of 1e-7.
        assert bound.value <= value + 1e-6
        assert bound.bound >= value - 1e-6
        assert bound.bound - bound.value <= 1e-6 * (1 + bound.bound)
    assert best <= found["stochastic"].bound + 1e-12
    assert found["stochastic"].value <= found["configuration"].bound
    assert found["configuration"].value <= found["matching"].bound
    assert exact.unweighted < best - 1e-3


def test_the_configuration_program_is_no_bound_for_large_p() -> None:
    """v1 tries u1; if that fails v2 tries it again (.6), else u2 (.55): .6 + .4 .6 + .6 .55 = 1.17 > 1.15."""
    p = np.array([[0.6, 0.6], [0.0, 0.55]])
    assert optimum(p, np.ones(2)) == pytest.approx(1.17)
    assert pdopt.configuration_lp(graph(p)).bound == pytest.approx(1.15, abs=1e-5)
    assert pdopt.stochastic_configuration_lp(graph(p)).bound == pytest.approx(1.17, abs=1e-5)
    assert pdopt.matching_lp(graph(p)).bound == pytest.approx(71 / 60, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_what_holds_for_every_p(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((3, 6)) * (rng.random((3, 6)) < 0.6)
    best = optimum(p, np.ones(3))
    stochastic, configuration, matching = (SOLVERS[name](graph(p)) for name in SOLVERS)
    assert best <= stochastic.bound + 1e-12
    assert stochastic.value <= matching.bound
    assert configuration.value <= matching.bound
    assert matching.value <= (1 + p.max()) * configuration.bound


@pytest.mark.parametrize("name", SOLVERS)
def test_the_returned_point_and_prices_are_feasible(name: str) -> None:
    p, weights = tiny(0)
    found = SOLVERS[name](graph(p, weights))
    offline, online, value = np.zeros(3), np.zeros(6), 0.0
    family = StochasticConfiguration() if name == "stochastic" else Configuration()
    for u, members, x in found.columns:
        offline[u] += x * (p[u] @ members if name == "matching" else 1)
        online += x * family.use(p[u], members)
        value += x * family.worth(p[u], weights[u], members)
    assert offline.max() <= 1 + 1e-12
    assert online.max() <= 1 + 1e-12
    assert value == pytest.approx(found.value, rel=1e-12)
    assert found.bound == pytest.approx(found.alpha.sum() + found.beta.sum(), rel=1e-12)
    assert min(found.alpha.min(), found.beta.min()) >= 0


def test_a_graph_too_large_to_enumerate_against_the_compact_program() -> None:
    rng = np.random.default_rng(3)
    p = rng.uniform(0.05, 0.5, (4, 12)) * (rng.random((4, 12)) < 0.6)
    found = pdopt.stochastic_configuration_lp(graph(p))
    expected = compact(p, np.ones(4))
    assert found.converged
    assert found.value - 1e-6 <= expected <= found.bound + 1e-6


def test_rounds_do_not_compile() -> None:
    """Masters grow inside their padding: other graphs, all three programs, no further compilation."""
    p, weights = tiny(0)
    for solver in SOLVERS.values():
        solver(graph(p, weights))
    before = _solve.plain._cache_size()
    rounds = [solver(graph(*tiny(5))).rounds for solver in SOLVERS.values()]
    assert max(rounds) > 3
    assert _solve.plain._cache_size() == before


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.slow
def test_float32(name: str) -> None:
    """The default tolerance is 1e-4; the certificate is summed in float64 whatever the solver's type."""
    p, weights = tiny(1)
    p = p.astype(np.float32).astype(np.float64)
    found = SOLVERS[name](graph(p, weights, np.float32))
    assert found.converged
    value = getattr(programs(p, weights), name)
    assert found.value <= value + 1e-6
    assert found.bound >= value - 1e-6
    assert found.bound - found.value <= 1e-4 * (1 + found.bound)


def test_a_graph_without_edges_and_one_with_a_single_edge() -> None:
    for solver in SOLVERS.values():
        empty = solver(graph(np.zeros((2, 3))))
        assert (empty.value, empty.bound, empty.columns, empty.converged) == (0.0, 0.0, [], True)
        assert (len(empty.alpha), len(empty.beta)) == (2, 3)
        one = solver(graph([[0.25]], [4.0]))
        assert one.value == pytest.approx(1.0, abs=1e-5)
        assert one.bound == pytest.approx(1.0, abs=1e-5)


def test_too_few_rounds_are_told() -> None:
    found = pdopt.stochastic_configuration_lp(graph(*tiny(0)), max_rounds=1)
    exact = programs(*tiny(0)).stochastic
    assert not found.converged
    assert found.rounds == 1
    assert found.value <= exact <= found.bound


def test_errors() -> None:
    ok = graph([[0.5]])
    for solver in SOLVERS.values():
        with pytest.raises(InvalidProblem, match="expected StochasticMatching"):
            solver(np.ones((2, 2)))
        with pytest.raises(InvalidOption, match="tolerance is 0"):
            solver(ok, tolerance=0.0)
        with pytest.raises(InvalidProblem, match="traced"):
            jax.jit(lambda p, solver=solver: solver(pdopt.StochasticMatching(p)).bound)(jnp.ones((2, 2)))
    for solver in (pdopt.configuration_lp, pdopt.stochastic_configuration_lp):
        with pytest.raises(InvalidOption, match="max_rounds is 0"):
            solver(ok, max_rounds=0)
