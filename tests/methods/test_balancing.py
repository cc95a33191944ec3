"""The move of the experts' prices: each step rule against a loop in numpy, regret, transforms, solving fixed scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.methods.balancing import Balancer, Signs, route
from pdopt.problems.balancing import OCTAVES, Balancing, Tally
from pdopt.types import Status

TOKENS, EXPERTS, TOP = 128, 8, 2


def stream(steps, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (1 / (1 + np.exp(-rng.normal(size=(steps, TOKENS, EXPERTS)) - rng.normal(size=EXPERTS)))).astype(dtype)


def follow(balancer, scores):
    def step(prices, batch):
        experts, after = route(Balancing(batch, TOP, check=False), balancer, prices)
        return after, (prices.y, experts)

    start = balancer.start(EXPERTS, scores.dtype)
    return jax.lax.scan(step, start, jnp.asarray(scores))


def by_hand(scores, steps_of, signs=False):
    """The rule in numpy, with the bias p of the papers: `p' = p + step (L - A) / T`."""
    p, path = np.zeros(EXPERTS), []
    for n, batch in enumerate(scores, start=1):
        path.append(p)
        chosen = np.argsort(-(batch + p), axis=1, kind="stable")[:, :TOP]
        gap = TOP * TOKENS / EXPERTS - np.bincount(chosen.ravel(), minlength=EXPERTS)
        p = p + steps_of(n) * (np.sign(gap) if signs else gap / TOKENS)
        p = p - p.mean()
    return np.array(path)


@pytest.mark.parametrize(
    ("balancer", "steps_of", "signs"),
    [
        (Balancer.constant(0.05), lambda n: 0.05, False),
        (Balancer.root(0.1), lambda n: 0.1 / np.sqrt(n), False),
        (Balancer(stepsize=1.0, floor=0.0), lambda n: 1 / n, False),
        (Balancer(stepsize=1.0, offset=3.0, floor=0.1), lambda n: max(1 / (n + 3), 0.1), False),
        (Balancer.signs(1e-3), lambda n: 1e-3, True),
    ],
)
def test_each_rule_equals_a_loop_over_the_bias(balancer, steps_of, signs):
    with jax.enable_x64(True):
        scores = stream(40, dtype=np.float64)
        _, (y, _) = follow(balancer, scores)
        # 40 additions of numbers below 1 in float64; a different decision would show as 1e-4 or more.
        np.testing.assert_allclose(-y, by_hand(scores, steps_of, signs), atol=1e-13)


def test_the_overloaded_become_dearer():
    prices = Balancer().start(3)
    tally = Tally(jnp.array([6, 0, 0]), jnp.zeros(OCTAVES, jnp.int32).at[10].set(6))
    for balancer in (Balancer(), Balancer.signs(), Balancer.constant(0.1)):
        y = balancer.update(prices, tally, top=1).y
        assert float(y[0]) > 0 > float(y[1]) == float(y[2])


def test_the_default_step_has_logarithmic_regret_and_the_sign_rule_has_not():
    """Against the best of 41 fixed biases near the last one; a twentieth is the promise of the benchmark's stream."""
    scores = stream(400)

    @jax.jit
    def totals(biases):
        return jax.vmap(lambda p: jax.vmap(lambda s: Balancing(s, TOP, check=False).dual(p))(scores))(biases)

    def regret(balancer):
        last, (y, _) = follow(balancer, scores)
        shifts = 0.01 * jax.random.normal(jax.random.key(0), (40, EXPERTS))
        near = -last.y + jnp.concatenate([jnp.zeros((1, EXPERTS)), shifts])
        duals = jax.vmap(lambda s, p: Balancing(s, TOP, check=False).dual(p))(jnp.asarray(scores), -y)
        return np.asarray(duals), np.asarray(totals(near))

    ours, near = regret(Balancer())
    signs, other = regret(Balancer.signs())
    best = min(near.sum(1).min(), other.sum(1).min())
    assert (ours.sum() - best) * 10 < signs.sum() - best
    # Flat: the second half adds less than the first half did.
    reference = near[near.sum(1).argmin()]
    first, second = (ours[:200] - reference[:200]).sum(), (ours[200:] - reference[200:]).sum()
    assert second < 0.5 * first


def test_jit_equals_no_jit_and_vmap_equals_a_loop():
    scores, balancer = stream(3), Balancer()
    prices = balancer.start(EXPERTS)
    for batch in scores:
        with jax.disable_jit():
            prices = route(Balancing(batch, TOP), balancer, prices)[1]
    jitted, _ = jax.jit(lambda s: follow(balancer, s))(scores)
    np.testing.assert_allclose(prices.y, jitted.y, rtol=0, atol=1e-6)  # float32 sums in another order
    both = jnp.stack([scores, stream(3, 1)])
    batched, _ = jax.vmap(lambda s: follow(balancer, s))(both)
    for one, path in zip(batched.y, both):
        np.testing.assert_allclose(one, follow(balancer, path)[0].y, rtol=0, atol=1e-6)


def test_a_sweep_over_steps_is_a_vmap():
    sizes = jnp.array([0.1, 1.0])
    found = jax.vmap(lambda c: follow(Balancer(stepsize=c, floor=0.0), stream(5))[0].y)(sizes)
    np.testing.assert_allclose(found[1], follow(Balancer(stepsize=1.0, floor=0.0), stream(5))[0].y, atol=1e-6)
    assert float(jnp.abs(found[0]).max()) < float(jnp.abs(found[1]).max())


def test_prices_stay_centred_and_keep_their_dtype():
    last, (y, _) = follow(Balancer.signs(0.1), stream(60))
    assert last.y.dtype == np.float32
    np.testing.assert_allclose(np.sum(y, axis=1), 0, atol=1e-5)
    with jax.enable_x64(True):
        assert follow(Balancer(), stream(3, dtype=np.float64))[0].y.dtype == np.float64


def test_nothing_moves_when_there_is_nothing_to_choose():
    prices = Balancer().start(4)
    empty = Balancer().update(prices, Tally(jnp.zeros(4, jnp.int32), jnp.zeros(OCTAVES, jnp.int32)), top=1)
    np.testing.assert_array_equal(empty.y, np.zeros(4))
    _, after = route(Balancing(jnp.ones((6, 4)), 4), Balancer(), prices)  # K = E
    np.testing.assert_array_equal(after.y, np.zeros(4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solving_fixed_scores_reaches_the_balanced_optimum(dtype):
    with jax.enable_x64(True):
        problem = Balancing(stream(1, dtype=dtype)[0], TOP)
        found = pdopt.solve(problem, tolerance=1e-3)
        assert found.reason is Status.OPTIMAL
        assert found.x.dtype == dtype
        exact = pdopt.solve(problem.linear_program(), tolerance=1e-4 if dtype == np.float32 else 1e-7)
        # Off by the gap, and by the score of what is not yet balanced: 1e-3 K T.
        assert float(found.objective) == pytest.approx(float(exact.objective), abs=1e-3 * (TOP * TOKENS + 400))


def test_wrong_settings_and_problems_are_refused():
    for settings, message in (
        ({"stepsize": 0.0}, "stepsize is 0.0"), ({"decay": -1.0}, "decay is -1.0"), ({"floor": 2.0}, "floor is 2.0"),
        ({"offset": -1.0}, "offset is -1.0"), ({"share": 0.0}, "share is 0.0"), ({"every": 0}, "every is 0"),
        ({"signal": None}, "signal is None"),
    ):  # fmt: skip
        with pytest.raises(InvalidOption, match=message):
            Balancer(**settings)
    with pytest.raises(UnsupportedProblem, match="MatrixGame"):
        Balancer().view(pdopt.MatrixGame([[1.0]], dtype=jnp.float32))
    assert Signs()(jnp.array([-2.0]), pdopt.Memory())[0].tolist() == [-1.0]
