"""`simulate`: decisions against a plain loop, budgets to the last unit, the law of regret, transforms, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.geometry import Box, Entropic, Euclidean, Sign
from tests.problems.instances import FLUID, make
from tests.test_sharding import collectives

NAMES = ("A", "B", "C", "D")


def same(one, two, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)


def plain_loop(problem, requests, kind, step, start):
    """Dual mirror descent in NumPy, from the formulas: decisions, prices, what was earned and used."""
    fares, columns = np.asarray(requests.fare), np.asarray(requests.column)
    rate = np.asarray(problem.rate)
    horizon = len(fares)
    prices, left = start.copy(), np.floor(rate * horizon + 5e-4)
    earned, wanted, taken = 0.0, [], []
    for r, b in zip(fares, columns):
        x = r > prices @ b
        use = b * x
        fits = (use <= left + 0.5).all()
        if x and fits:
            left -= use
            earned += r
        wanted.append(x)
        taken.append(x and fits)
        v = use - rate
        if kind == "entropy":
            prices = prices * np.exp(step * v / rate)
        elif kind == "euclid":
            prices = np.maximum(prices + step * v, 0)
        else:
            prices = np.maximum(prices + step * np.sign(v), 0)
    return prices, earned, np.array(wanted), np.array(taken)


@pytest.mark.parametrize("kind", ["entropy", "euclid", "sign"])
def test_a_plain_loop_makes_the_same_decisions_on_every_path(kind):
    """Float64, 4 paths of 700 steps: multiplicative weights, projected subgradient and the sign step, to 1e-12."""
    moves = {"entropy": Entropic(scale="rate"), "euclid": Euclidean(), "sign": Sign()}
    step = {"entropy": 0.03, "euclid": 0.3, "sign": 0.05}[kind]
    with jax.enable_x64(True):
        problem = make("A", np.float64)
        requests = pdopt.sample(problem.stream, jax.random.key(4), horizon=700, paths=4)
        found = pdopt.simulate(
            problem, pdopt.MirrorDescent(stepsize=step, move=moves[kind]), None,
            horizon=700, paths=4, requests=requests, start=1.5,
        )  # fmt: skip
        for p in range(4):
            own = jax.tree.map(lambda v, p=p: v[p], requests)
            prices, earned, wanted, taken = plain_loop(problem, own, kind, step, np.full(10, 1.5))
            assert int(found.accepted[p]) == taken.sum()
            assert int(found.refused[p]) == (wanted & ~taken).sum()
            first = np.flatnonzero(wanted & ~taken)
            assert int(found.stopping_time[p]) == (first[0] if first.size else 700)
            np.testing.assert_allclose(found.multipliers[p], prices, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found.reward[p], earned, rtol=1e-12)
            used = (np.asarray(own.column) * taken[:, None]).sum(0)
            np.testing.assert_array_equal(found.consumption[p], used)


def test_the_moves_are_their_textbook_forms():
    """One step from given prices: `[mu - eta g]_+` and `mu exp(-eta g / rho)` with g = rho - b, to 1e-12."""
    with jax.enable_x64(True):
        problem = make("A", np.float64)
        rng = np.random.default_rng(0)
        for _ in range(20):
            mu, b, eta = rng.uniform(0, 4, 10), (rng.random(10) < 0.4) * 1.0, rng.uniform(0.01, 0.5)
            rho = np.asarray(problem.rate)
            g = rho - b
            for move, want in (
                (Euclidean(), np.maximum(mu - eta * g, 0)),
                (Entropic(), mu * np.exp(-eta * g)),
                (Entropic(scale="rate"), mu * np.exp(-eta * g / rho)),
            ):
                view = pdopt.MirrorDescent(move=move).view(problem)
                np.testing.assert_allclose(view.move(jnp.asarray(mu), -g, eta), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_budget_is_exceeded_and_replay_equals_draw(name, dtype):
    """Prices start at almost 0, so that every path overspends at once and is stopped by its budget."""
    with jax.enable_x64(dtype == np.float64):
        problem = make(name, dtype)
        options = {"horizon": 300, "paths": 8, "start": 1e-3}
        drawn = pdopt.simulate(problem, None, jax.random.key(2), **options)
        assert (np.asarray(drawn.consumption) <= np.asarray(drawn.budget)).all()
        assert (np.asarray(drawn.refused) > 0).all()
        assert (np.asarray(drawn.stopping_time) < 300).all()
        requests = pdopt.sample(problem.stream, jax.random.key(2), horizon=300, paths=8)
        replayed = pdopt.simulate(problem, None, None, requests=requests, **options)
        # The same requests through another program: sums may be ordered otherwise, decisions agree.
        same(drawn, replayed, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-5)
        np.testing.assert_array_equal(drawn.accepted, replayed.accepted)


def test_float32_counts_a_long_horizon_exactly():
    """20 000 steps of consumption 0.1 in float32, with a unit and without; a plain float32 sum drifts."""
    horizon = 20_000
    for unit, most in ((None, 10_000), (0.1, 10_000)):
        stream = pdopt.RevenueManagement([1.0], np.full((1, 1), 0.1, np.float32), [1.0], unit=unit)
        problem = pdopt.Allocation(stream, 0.05)
        # Prices stay near 0: everything is wanted, the budget decides.
        method = pdopt.MirrorDescent(stepsize=1e-6, move=Euclidean())
        found = pdopt.simulate(problem, method, jax.random.key(0), horizon=horizon, start=0.0)
        used = float(np.float32(0.1)) * int(found.accepted[0])
        assert used <= float(np.float32(0.05)) * horizon * (1 + 1e-7)
        # Without a unit rounding of 0.1, 0.05 and the budget to float32 may cost the last request.
        assert most - (unit is None) <= int(found.accepted[0]) <= most
        assert float(found.reward[0]) == int(found.accepted[0])
        assert int(found.stopping_time[0]) == int(found.accepted[0])
    plain = np.add.accumulate(np.full(10_000, np.float32(0.1)))[-1]
    assert abs(plain - 1000) > 0.05


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("A", "hindsight"),
        pytest.param("B", "dual", marks=pytest.mark.slow),
        ("C", "dual"),
        pytest.param("D", "hindsight", marks=pytest.mark.slow),
    ],
)
def test_regret_grows_like_the_square_root_of_the_horizon(name, kind):
    """Fitted exponent in [0.3, 0.6] against an offline certificate of each path; gain 0.3, which suits all four.

    On D expected consumption makes paths nearly deterministic, so that with larger gains the exponent falls (0.26 at
    1): there the transient, not the noise, is the regret.
    """
    problem = make(name)
    horizons, regrets = (100, 400, 1600), []
    for horizon in horizons:
        requests = pdopt.sample(problem.stream, jax.random.key(7), horizon=horizon, paths=32)
        bound = pdopt.offline(problem, requests, kind=kind, tolerance=1e-5).value
        found = pdopt.simulate(
            problem, pdopt.MirrorDescent(gain=0.3), None, horizon=horizon, paths=32, requests=requests
        )
        regret = horizon * np.asarray(bound, float) - np.asarray(found.reward, float)
        assert (regret > -1e-4 * horizon).all()  # a bound is a bound, in float32
        regrets.append(regret.mean())
    exponent = np.polyfit(np.log(horizons), np.log(regrets), 1)[0]
    assert 0.3 <= exponent <= 0.6


@pytest.mark.parametrize("high", [2.0, 5.0, 20.0])
def test_the_adversarial_floor(high):
    """Low fares that could eat the budget, then high ones; alpha = 2: reward >= OPT / 2 - 5 h sqrt T."""
    horizon, rate = 2000, 0.5
    low, late = (pdopt.RevenueManagement([fare], [[1.0]], [1.0]) for fare in (1.0, high))
    problem = pdopt.Allocation(pdopt.Phases(low, late, start=int(rate * horizon)), rate)
    best = high * rate * horizon
    for gain in (0.3, 1.0, 3.0):
        method = pdopt.MirrorDescent(move=Euclidean(), stepsize=gain / np.sqrt(horizon))
        found = pdopt.simulate(problem, method, jax.random.key(0), horizon=horizon, start=0.0)
        assert best / 2 - 5 * high * np.sqrt(horizon) <= float(found.reward[0]) <= best


def test_starting_at_no_price_overspends_and_is_reported():
    problem = make("A")
    method = pdopt.MirrorDescent(move=Euclidean())
    early = pdopt.simulate(problem, method, jax.random.key(0), horizon=800, paths=16, start=0.0)
    usual = pdopt.simulate(problem, method, jax.random.key(0), horizon=800, paths=16)
    assert np.asarray(early.stopping_time).mean() < np.asarray(usual.stopping_time).mean() - 10


def test_the_multiplier_sees_the_wanted_action_not_the_taken_one():
    """A budget for one request: prices go on rising while it is refused, as they would not on what was taken."""
    problem = pdopt.Allocation(pdopt.RevenueManagement([9.0], [[1.0]], [1.0]), 0.1)
    method = pdopt.MirrorDescent(stepsize=0.01, move=Euclidean())
    found = pdopt.simulate(problem, method, jax.random.key(0), horizon=10, start=0.0)
    assert int(found.accepted[0]) == 1
    assert int(found.refused[0]) == 9
    assert int(found.stopping_time[0]) == 1
    np.testing.assert_allclose(found.multipliers, [[10 * 0.01 * 0.9]], rtol=1e-5)


def test_snapshots_are_the_path_and_a_new_horizon_compiles_nothing():
    problem = make("A")
    whole = pdopt.simulate(problem, None, jax.random.key(1), horizon=250, paths=3, record_every=100)
    np.testing.assert_array_equal(whole.snapshots.steps, [100, 200, 250])
    assert whole.snapshots.multipliers.shape == (3, 3, 10)
    np.testing.assert_array_equal(whole.snapshots.multipliers[:, -1], whole.multipliers)
    np.testing.assert_array_equal(whole.snapshots.reward[:, -1], whole.reward)
    assert (np.diff(np.asarray(whole.snapshots.consumption), axis=1) >= 0).all()
    bare = pdopt.simulate(problem, None, jax.random.key(1), horizon=250, paths=3)
    same((bare.reward, bare.consumption, bare.accepted), (whole.reward, whole.consumption, whole.accepted), rtol=1e-6)
    from pdopt.simulate import _simulate

    before = _simulate._cache_size()
    pdopt.simulate(problem, None, jax.random.key(1), horizon=333, paths=3)
    pdopt.simulate(problem, pdopt.MirrorDescent(gain=0.7), jax.random.key(1), horizon=40, paths=3)
    assert _simulate._cache_size() == before


def test_jit_vmap_and_loop_agree():
    with jax.enable_x64(True):
        problem = make("A", np.float64)
        keys = jax.random.split(jax.random.key(3), 3)
        run = lambda key, paths=1: pdopt.simulate(problem, None, key, horizon=150, paths=paths)
        together = run(keys, 3)
        jitted = jax.jit(run)(keys[:1])
        with jax.disable_jit():
            eager = pdopt.simulate(problem, None, keys[:1], horizon=5)
        same(pdopt.simulate(problem, None, keys[:1], horizon=5), eager, rtol=1e-12)
        batched = jax.vmap(lambda key: run(key[None]))(keys)
        for p in range(3):
            alone = run(keys[p : p + 1])
            one = lambda tree, p=p: (tree.reward[p], tree.consumption[p], tree.multipliers[p], tree.accepted[p])
            same(one(together), one(alone, 0), rtol=1e-12)
            same(one(batched), (alone.reward, alone.consumption, alone.multipliers, alone.accepted), rtol=1e-12)
        same(jitted, run(keys[:1]), rtol=1e-12)


def test_a_sweep_over_gains_is_a_vmap():
    problem = make("B")
    run = lambda gain: pdopt.simulate(problem, pdopt.MirrorDescent(gain=gain), jax.random.key(0), horizon=100).reward
    gains = jnp.asarray([0.3, 1.0], np.float32)
    np.testing.assert_allclose(jax.vmap(run)(gains), [run(0.3), run(1.0)], rtol=1e-6)


def test_paths_on_eight_devices_equal_those_on_one_without_communication():
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    mesh = jax.make_mesh((8,), ("paths",), axis_types=(AxisType.Auto,))
    problem = make("A")
    keys = jax.random.split(jax.random.key(0), 16)
    one = pdopt.simulate(problem, None, keys, horizon=200, paths=16)
    spread = jax.device_put(keys, NamedSharding(mesh, P("paths")))
    eight = pdopt.simulate(problem, None, spread, horizon=200, paths=16)
    assert len(eight.multipliers.sharding.device_set) == 8
    same(one, eight, rtol=0, atol=0)
    from pdopt.simulate import _simulate

    method = pdopt.MirrorDescent()
    first = method.view(problem).start()
    lowered = _simulate.lower(problem, method, spread, None, first, jnp.int32(200), 16, None, 0)
    assert collectives(lowered.compile().as_text()) == []


def test_prices_near_those_of_the_fluid_program():
    """After 20 000 steps B's price is within 0.1 of 1 / sqrt(6 rate) - 1, its reward near the value.

    A step's reward has a deviation of about 0.2, the mean of four paths one of 0.5 % of the value: 2 % is four of them.
    """
    found = pdopt.simulate(make("B"), None, jax.random.key(5), horizon=20_000, paths=4)
    np.testing.assert_allclose(found.multipliers, 1 / np.sqrt(0.3) - 1, atol=0.1)
    np.testing.assert_allclose(np.asarray(found.reward).mean() / 20_000, FLUID["B"], rtol=0.02)


def test_an_anytime_step_needs_no_horizon():
    problem = make("B")
    short = pdopt.simulate(problem, pdopt.MirrorDescent(decay=0.5), jax.random.key(5), horizon=64, record_every=32)
    longer = pdopt.simulate(problem, pdopt.MirrorDescent(decay=0.5), jax.random.key(5), horizon=96, record_every=32)
    same(short.snapshots.multipliers[:, :2], longer.snapshots.multipliers[:, :2], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p, k: pdopt.simulate(p, None, k, horizon=0), InvalidOption, "horizon is 0"),
        (lambda p, k: pdopt.simulate(p, None, k, horizon=5, paths=1.5), InvalidOption, "paths is 1.5"),
        (lambda p, k: pdopt.simulate(p, None, k, horizon=5, record_every=0), InvalidOption, "record_every is 0"),
        (lambda p, k: pdopt.simulate(p, None, 3, horizon=5), InvalidOption, "key has type int"),
        (lambda p, k: pdopt.simulate(p, None, jax.random.split(k, 2), horizon=5), InvalidOption, r"shape \(2,\)"),
        (lambda p, k: pdopt.simulate(p, None, k, horizon=5, start=0.0), InvalidOption, "never leaves 0"),
        (lambda p, k: pdopt.simulate(p, None, k, horizon=5, start=[1.0, 1.0]), InvalidProblem, "start has shape"),
        (lambda p, k: pdopt.simulate(p, pdopt.MirrorDescent(move=Euclidean()), k, horizon=5, start=-1.0),
         InvalidOption, "start has the entry -1"),
        (lambda p, k: pdopt.simulate(p, pdopt.MirrorDescent(theta=1.0), k, horizon=5), InvalidOption, "theta is 1.0"),
        (lambda p, k: pdopt.simulate(p, pdopt.MirrorDescent(primal="mirror"), k, horizon=5), InvalidOption, "primal"),
        (lambda p, k: pdopt.simulate(p, pdopt.MirrorDescent(move=Entropic(Box(0.0, 1.0))), k, horizon=5),
         InvalidOption, "on the orthant"),
        (lambda p, k: pdopt.simulate(3, None, k, horizon=5), UnsupportedProblem, "problem has type int"),
        (lambda p, k: pdopt.simulate(p, None, k, horizon=5, requests=1.0), InvalidProblem, "requests has structure"),
        (lambda p, k: pdopt.simulate(p, None, k, horizon=5, requests=pdopt.sample(p.stream, k, horizon=4)),
         InvalidProblem, r"leaf of shape \(1, 4\); expected \(1, 5\)"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(make("B"), jax.random.key(0))


def test_games_and_streams_refuse_each_others_settings():
    game = pdopt.MatrixGame([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    with pytest.raises(InvalidOption, match="scale of the move"):
        pdopt.solve(game, pdopt.MirrorDescent(move=Entropic(scale="rate")))
    with pytest.raises(InvalidOption, match="gain is 0"):
        pdopt.MirrorDescent(gain=0.0)
    with pytest.raises(InvalidOption, match="scale is 'rate'; expected numbers"):
        Entropic(scale="rate")(jnp.ones(2), jnp.ones(2), 1.0)
    with pytest.raises(InvalidOption, match="scale is 'rte'"):
        Entropic(scale="rte")
