"""Each application's best action against brute force, its signs, its facts, and the data that are refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.problems.applications import Bid, Booking
from tests.problems.instances import assortment_data, make

NAMES = ("A", "B", "C", "D")


def gain(stream, request, x, y):
    return stream.reward(request, x) - jnp.sum(y * stream.consumption(request, x))


def drawn(stream, count, seed=0):
    return pdopt.sample(stream, jax.random.key(seed), horizon=count)


def first_path(requests):
    return jax.tree.map(lambda v: v[0], requests)


@pytest.mark.parametrize("name", ["A", "B", "D"])
def test_the_best_action_is_that_of_enumeration(name):
    """200 random price vectors: every action of the menu, and doing nothing."""
    with jax.enable_x64(True):
        stream = make(name, np.float64).stream
        requests = first_path(drawn(stream, 200))
        prices = jnp.asarray(np.random.default_rng(3).uniform(0, 4, (200, stream.resources)))

        def compare(request, y):
            menu = stream.menu(request)
            brute = jnp.maximum(jnp.max(menu.reward - menu.consumption @ y), 0)
            return gain(stream, request, stream.best(request, y), y) - brute

        off = jax.jit(jax.vmap(compare))(requests, prices)
        # The same sums in another order: a few units of rounding of numbers below 10.
        np.testing.assert_allclose(off, 0, atol=1e-14)


def test_the_root_of_the_assortment_is_that_of_bisection():
    """phi(z) = sum of the K largest [v (r - y - z)]+ - z, by 60 halvings, for every size limit of six products."""
    prices, weights, probabilities = assortment_data()
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        for limit in (1, 3, 6):
            shop = pdopt.Assortment(prices, weights, probabilities, limit=limit, given_dtype=np.float64)
            best = jax.jit(shop.best)
            for _ in range(30):
                v, y = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6)
                low, high = 0.0, 10.0
                for _ in range(60):
                    z = (low + high) / 2
                    phi = np.sort(np.maximum(v * (prices - y - z), 0))[-limit:].sum() - z
                    low, high = (z, high) if phi > 0 else (low, z)
                mask = np.asarray(best(v, y))
                assert mask.sum() <= limit
                assert float(gain(shop, jnp.asarray(v), jnp.asarray(mask), y)) == pytest.approx(low, abs=1e-13)


def test_without_a_size_limit_the_best_assortment_is_a_prefix():
    prices, weights, probabilities = assortment_data()
    shop = pdopt.Assortment(prices, weights, probabilities, given_dtype=np.float32)
    best = jax.jit(shop.best)
    for y in np.random.default_rng(1).uniform(0, 3, (20, 6)):
        mask, margin = np.asarray(best(shop.weights[0], jnp.asarray(y, np.float32))), prices - y
        assert mask.sum() == 0 or margin[mask].min() > np.delete(margin, np.flatnonzero(mask)).max(initial=-9)


def test_the_best_shares_beat_a_fine_grid():
    """Two advertisers, shares on a grid of 1/400 with sum at most 1: the closed form is at least as good, and near."""
    with jax.enable_x64(True):
        ads = pdopt.EntropicMatching([1.0, 0.5], 0.5, 0.3, given_dtype=np.float64)
        grid = np.arange(401) / 400
        points = jnp.asarray([p for p in itertools.product(grid, grid) if sum(p) <= 1])
        best_of_grid = jax.jit(lambda r, y: jnp.max(jax.vmap(lambda p: gain(ads, r, p, y))(points)))
        for seed in range(8):
            rng = np.random.default_rng(seed)
            r, y = jnp.asarray(rng.normal(0.5, 1, 2)), jnp.asarray(rng.uniform(0, 2, 2))
            x, best = ads.best(r, y), best_of_grid(r, y)
            assert float(jnp.sum(x)) <= 1 + 1e-12
            # Curvature lam / x_i <= 0.3 / 0.01 and half a cell: the grid is within 30 / 2 * 2 / 800^2 = 5e-5.
            assert 0 <= float(gain(ads, r, x, y) - best) + 1e-12 <= 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shares_do_not_overflow(dtype):
    with jax.enable_x64(dtype == np.float64):
        ads = pdopt.EntropicMatching([1.0, 1.0], temperature=1e-3, given_dtype=dtype)
        x = ads.best(jnp.asarray([1e4, 0.0], dtype), jnp.zeros(2, dtype))
        np.testing.assert_allclose(x, [1, 0], atol=1e-6)
        assert x.dtype == dtype
        assert float(ads.reward(ads.mean, jnp.zeros(2, dtype))) == 0


def test_no_peeking_in_auctions():
    """Rival bids above ours change nothing the bidder sees: neither the bid nor the violation on a loss."""
    problem = make("B")
    view = pdopt.MirrorDescent().view(problem)
    y = jnp.asarray([0.5], np.float32)
    for rival in (0.7, 0.99):
        request = Bid(jnp.float32(0.9), jnp.float32(rival))
        x = view.best(request, y)
        assert not bool(x)
        np.testing.assert_array_equal(view.violation(request, x), -problem.rate)
        assert float(problem.stream.bid(request.value, y)) == pytest.approx(0.6)
    won = Bid(jnp.float32(0.9), jnp.float32(0.5))
    np.testing.assert_allclose(view.violation(won, view.best(won, y)), [0.45], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_verbs_keep_the_type_and_absent_requests_use_nothing(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        stream = make(name, dtype).stream
        y = jnp.zeros(stream.resources, dtype)
        request = jax.jit(stream.draw)(jax.random.key(1), 0)
        best = jax.jit(stream.best)
        x = best(request, y)
        assert stream.reward(request, x).dtype == stream.consumption(request, x).dtype == dtype
        assert stream.consumption(request, x).shape == (stream.resources,)
        nobody = stream.absent(request)
        assert jax.tree.map(lambda v: (v.shape, v.dtype), nobody) == jax.tree.map(lambda v: (v.shape, v.dtype), request)
        assert float(jnp.sum(stream.consumption(nobody, best(nobody, y)))) == 0
        zero = jnp.zeros_like(x)
        assert float(stream.reward(request, zero)) == float(jnp.sum(stream.consumption(request, zero))) == 0


def test_spoilt_requests_take_all_and_pay_nothing():
    stream = make("A").stream
    spoilt = stream.spoilt(stream.draw(jax.random.key(0), 0))
    assert float(spoilt.fare) == 0
    np.testing.assert_array_equal(spoilt.column, np.ones(10))


def test_drawn_types_have_their_frequencies():
    stream = make("A").stream
    fares = np.asarray(drawn(stream, 20_000).fare[0])
    for k in (0, 7, 49):
        p = float(stream.probabilities[k])
        seen = np.mean(fares == float(stream.fares[k]))
        assert abs(seen - p) < 5 * np.sqrt(p * (1 - p) / 20_000)


def test_units_are_found_and_checked():
    assert make("A").stream.unit == 1.0
    halves = ([1.0, 2.0], [[0.5], [1.5]], [0.5, 0.5])
    assert pdopt.RevenueManagement(*halves).unit is None
    assert pdopt.RevenueManagement(*halves, unit=0.5).unit == 0.5
    with pytest.raises(InvalidProblem, match="unit is 1; expected every entry of columns"):
        pdopt.RevenueManagement(*halves, unit=1.0)


@pytest.mark.parametrize(
    ("make_it", "error", "words"),
    [
        (lambda: pdopt.RevenueManagement([1.0], [1.0], [1.0]), InvalidProblem, r"columns has shape \(1,\)"),
        (lambda: pdopt.RevenueManagement([1.0, 2.0], [[1.0]], [1.0]), InvalidProblem, r"fares has shape \(2,\)"),
        (lambda: pdopt.RevenueManagement([1.0], [[-1.0]], [1.0]), InvalidProblem, "columns has the entry -1"),
        (lambda: pdopt.RevenueManagement([1.0], [[1.0]], [0.5]), InvalidProblem, "probabilities sums to 0.5"),
        (lambda: pdopt.RevenueManagement([np.nan], [[1.0]], [1.0]), InvalidProblem, "fares has 1 NaN at index 0"),
        (lambda: pdopt.Auctions(highest_value=0.0), InvalidProblem, "highest_value has the entry 0"),
        (lambda: pdopt.EntropicMatching([1.0], temperature=0.0), InvalidProblem, "temperature has the entry 0"),
        (lambda: pdopt.EntropicMatching([[1.0]]), InvalidProblem, r"mean has shape \(1, 1\)"),
        (lambda: pdopt.Assortment([1.0], [[1.0]], [1.0], limit=2), InvalidOption, r"limit is 2; expected .* \[1, 1\]"),
        (lambda: pdopt.Assortment([1.0, 1.0], [[1.0]], [1.0]), InvalidProblem, r"prices has shape \(2,\)"),
        (lambda: pdopt.Allocation(pdopt.Auctions(), [0.1, 0.1]), InvalidProblem, r"rate has shape \(2,\)"),
        (lambda: pdopt.Allocation(pdopt.Auctions(), 0.0), InvalidProblem, "rate has the entry 0; expected numbers > 0"),
        (lambda: pdopt.Allocation(3, 0.1), InvalidProblem, "stream has type int"),
    ],
)
def test_bad_data_are_refused(make_it, error, words):
    with pytest.raises(error, match=words):
        make_it()


def test_a_menu_that_is_too_long_is_refused():
    shop = pdopt.Assortment(np.ones(40, np.float32), np.ones((1, 40), np.float32), [1.0], limit=20)
    with pytest.raises(InvalidOption, match="sets to list"):
        shop.menu(shop.weights[0])
    with pytest.raises(InvalidOption, match="no finite set of actions"):
        make("C").stream.menu(jnp.ones(5))


def test_booking_is_a_pair_of_arrays():
    assert Booking(1.0, 2.0)._fields == ("fare", "column")
