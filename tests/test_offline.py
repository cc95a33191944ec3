"""Certificates: the fluid values of the reference instances, HiGHS on the same programs, weak duality, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.problems.applications import Bid
from tests.problems.instances import FLUID, PRICES, make


@pytest.mark.parametrize("name", ["A", "D"])
def test_fluid_values(name):
    with jax.enable_x64(True):
        found = pdopt.offline(make(name, np.float64), tolerance=1e-9)
        assert float(found.value) == pytest.approx(FLUID[name], abs=1e-6)
        np.testing.assert_allclose(found.multipliers, PRICES[name], atol=1e-3)


def test_the_value_of_the_auctions_is_the_closed_form():
    """`2 sqrt(rho/6) - rho` at `1/sqrt(6 rho) - 1`, by the midpoint rule on 1600^2 cells (error 1/1600^2)."""
    with jax.enable_x64(True):
        middle = (np.arange(1600) + 0.5) / 1600
        value, rival = np.meshgrid(middle, middle)
        bids = Bid(jnp.asarray(value.ravel()), jnp.asarray(rival.ravel()))
        problem = make("B", np.float64)
        best = 1 / np.sqrt(6 * 0.05) - 1
        assert float(problem.dual(jnp.asarray([best]), bids)) == pytest.approx(FLUID["B"], abs=1e-6)
        for other in (0.5 * best, 2 * best):
            assert float(problem.dual(jnp.asarray([other]), bids)) > FLUID["B"]


def test_the_sampled_dual_of_the_matching():
    with jax.enable_x64(True):
        rewards = np.random.default_rng(1).normal([1.0, 0.8, 0.6, 0.4, 0.2], 0.5, (100_000, 5))
        found = pdopt.offline(make("C", np.float64), rewards)
        assert found.kind == "dual"
        assert float(found.value) == pytest.approx(FLUID["C"], abs=1e-6)
        np.testing.assert_allclose(found.multipliers, PRICES["C"], atol=2e-3)


@pytest.mark.slow
def test_hindsight_programs_are_those_of_highs():
    """Three paths of A: every request a variable in [0, 1], as HiGHS sees them."""
    with jax.enable_x64(True):
        problem = make("A", np.float64)
        requests = pdopt.sample(problem.stream, jax.random.key(1), horizon=150, paths=3)
        found = pdopt.offline(problem, requests, kind="hindsight", tolerance=1e-8)
        for p in range(3):
            exact = linprog(
                -np.asarray(requests.fare[p]), np.asarray(requests.column[p]).T, 150 * np.asarray(problem.rate),
                bounds=(0, 1), method="highs",
            )  # fmt: skip
            assert float(found.value[p]) * 150 == pytest.approx(-exact.fun, rel=1e-6)
            alone = pdopt.offline(problem, jax.tree.map(lambda v, p=p: v[p], requests), kind="hindsight")
            assert float(alone.value) == pytest.approx(float(found.value[p]), rel=1e-5)


@pytest.mark.slow
def test_any_prices_bound_any_policy():
    """Weak duality on A, B and C: dual values at random prices against what an online path earned on the requests."""
    rng = np.random.default_rng(0)
    for name in ("A", "B", "C"):
        problem = make(name)
        requests = pdopt.sample(problem.stream, jax.random.key(3), horizon=200)
        earned = float(pdopt.simulate(problem, None, None, horizon=200, requests=requests).reward[0]) / 200
        dual = jax.jit(problem.dual)
        for _ in range(5):
            y = jnp.asarray(rng.uniform(0, 4, problem.stream.resources), np.float32)
            assert float(dual(y, jax.tree.map(lambda v: v[0], requests))) >= earned - 1e-5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pdopt.offline(3), UnsupportedProblem, "problem has type int"),
        (lambda: pdopt.offline(make("A"), kind="fliud"), InvalidOption, "did you mean 'fluid'"),
        (lambda: pdopt.offline(make("A"), kind="dual"), InvalidOption, "kind is 'dual' and requests absent"),
        (lambda: pdopt.offline(make("B")), InvalidOption, "no finite distribution"),
        (lambda: pdopt.offline(make("C"), np.ones((3, 5), np.float32), kind="hindsight"), InvalidOption, "use kind"),
        (lambda: pdopt.offline(make("C"), np.ones((3, 4), np.float32)), InvalidProblem, r"shapes \[\(3, 4\)\]"),
        (lambda: pdopt.offline(make("A"), np.ones(3)), InvalidProblem, "requests has structure"),
    ],
)
def test_bad_calls_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
