"""Inputs that are not independent: frequencies, order, memory, certificates on them, and data that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from tests.problems.instances import make

FARES = tuple(pdopt.RevenueManagement([fare], np.ones((1, 1), np.float32), [1.0]) for fare in (1.0, 5.0))


def fares(stream, horizon, paths=1, seed=0):
    return np.asarray(pdopt.sample(stream, jax.random.key(seed), horizon=horizon, paths=paths).fare)


def test_phases_change_at_their_step():
    np.testing.assert_array_equal(fares(pdopt.Phases(*FARES, start=3), 6)[0], [1, 1, 1, 5, 5, 5])
    assert pdopt.Phases(*FARES, start=3).unit == 1.0


def test_seasons_have_their_rate():
    """200 000 steps of period 10: the share of arrivals at each phase within 5 standard errors."""
    stream = pdopt.Seasonal(FARES[1], period=10.0, amplitude=0.8, mean=0.5)
    came = (fares(stream, 2000, 100) > 0).reshape(-1, 10).mean(0)
    want = 0.5 * (1 + 0.8 * np.sin(2 * np.pi * np.arange(10) / 10))
    assert (np.abs(came - want) < 5 * np.sqrt(want * (1 - want) / 20_000)).all()


def test_a_fraction_is_corrupted_and_costs_a_prudent_policy_nothing_more():
    stream = pdopt.Corrupted(make("A").stream, fraction=0.2)
    requests = pdopt.sample(stream, jax.random.key(0), horizon=5000)
    spoilt = np.asarray(requests.fare[0]) == 0
    assert abs(spoilt.mean() - 0.2) < 5 * np.sqrt(0.16 / 5000)
    np.testing.assert_array_equal(np.asarray(requests.column[0])[spoilt], 1)
    best = jax.vmap(lambda request: stream.best(request, jnp.zeros(10, np.float32)))
    assert not np.asarray(best(jax.tree.map(lambda v: v[0], requests)))[spoilt].any()


def test_the_chain_stays_and_visits_by_its_stationary_distribution():
    stream = pdopt.Modulated(FARES, [[0.95, 0.05], [0.15, 0.85]])
    seen = fares(stream, 4000, 8)
    assert abs((seen == 1).mean() - 0.75) < 0.05  # mixing time about 5: 6400 nearly independent looks
    stays = (seen[:, 1:] == seen[:, :-1]).mean()
    assert abs(stays - (0.75 * 0.95 + 0.25 * 0.85)) < 0.02
    kinds = stream.types()
    np.testing.assert_allclose(kinds.probability, [0.75, 0.25], rtol=1e-5)


def test_a_stream_with_memory_is_the_same_in_any_stretches():
    """145 = 2 blocks and 17 single steps: what `simulate` draws is what `sample` shows."""
    problem = pdopt.Allocation(pdopt.Modulated(FARES, [[0.9, 0.1], [0.3, 0.7]]), 0.5)
    found = pdopt.simulate(problem, None, jax.random.key(1), horizon=145, paths=3)
    requests = pdopt.sample(problem.stream, jax.random.key(1), horizon=145, paths=3)
    again = pdopt.simulate(problem, None, None, horizon=145, paths=3, requests=requests)
    np.testing.assert_allclose(found.reward, again.reward, rtol=1e-5)
    np.testing.assert_array_equal(found.accepted, again.accepted)


def test_the_worst_order_sorts_blocks_and_loses_nothing():
    stream = make("A").stream
    requests = pdopt.sample(stream, jax.random.key(0), horizon=60, paths=2)
    late = pdopt.worst_order(requests, requests.fare, blocks=6)
    means = np.asarray(late.fare).reshape(2, 6, 10).mean(-1)
    assert (np.diff(means, axis=1) >= 0).all()
    np.testing.assert_allclose(np.sort(late.fare, axis=1), np.sort(requests.fare, axis=1))
    # Fare and column of a request stay together, requests of a block in order.
    pairs = {(float(f), tuple(np.asarray(c))) for f, c in zip(requests.fare[0], requests.column[0])}
    assert all((float(f), tuple(np.asarray(c))) in pairs for f, c in zip(late.fare[0], late.column[0]))


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: pdopt.Phases(FARES[0], pdopt.Auctions(), start=1), InvalidProblem, "expected one kind"),
        (lambda: pdopt.Phases(*FARES, start=-1), InvalidOption, "start is -1"),
        (lambda: pdopt.Seasonal(3), InvalidProblem, "stream has type int"),
        (lambda: pdopt.Seasonal(FARES[0], amplitude=1.0, mean=0.6), InvalidOption, "mean is 0.6"),
        (lambda: pdopt.Corrupted(FARES[0], fraction=1.5), InvalidOption, "fraction is 1.5"),
        (lambda: pdopt.Modulated(FARES, [[1.0]]), InvalidProblem, r"transition has shape \(1, 1\)"),
        (lambda: pdopt.Modulated(FARES, [[0.5, 0.6], [0.5, 0.5]]), InvalidProblem, "transition sums to 1.1"),
        (lambda: pdopt.Modulated(FARES, [[1.0, 0.0], [0.0, 1.0]]), InvalidProblem, "several stationary"),
        (lambda: pdopt.worst_order(jnp.ones((1, 3)), jnp.ones((1, 4))), InvalidProblem, "priority has shape"),
        (lambda: pdopt.worst_order(jnp.ones((1, 3)), jnp.ones((1, 3)), blocks=4), InvalidOption, "blocks is 4"),
    ],
)
def test_bad_inputs_are_refused(build, error, words):
    with pytest.raises(error, match=words):
        build()
