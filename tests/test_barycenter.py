"""Entropic barycenters against POT, their limits, and their derivatives by the implicit rule."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.methods.bregman_projections import BregmanProjections
from pdopt.types import Status

N = 12
LINE = (np.linspace(0, 1, N)[:, None] - np.linspace(0, 1, N)) ** 2
RNG = np.random.default_rng(0)
BUMPS = np.exp(-((np.linspace(0, 1, N) - np.array([[0.2], [0.5], [0.8]])) ** 2) / 0.01) + 1e-3 * RNG.uniform(
    size=(3, N)
)
BUMPS /= BUMPS.sum(1, keepdims=True)
W, EPSILON = np.array([0.5, 0.3, 0.2]), 0.02


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def found(debiased=False, **changes):
    options = {"cost": LINE, "histograms": BUMPS, "weights": W, "epsilon": EPSILON, "tolerance": 1e-12} | changes
    return pdopt.barycenter(debiased=debiased, **options)


def test_equals_pot():
    ours, debiased = found(), found(debiased=True)
    assert ours.reason is Status.OPTIMAL
    assert debiased.reason is Status.OPTIMAL
    options = {"weights": W, "stopThr": 1e-14, "numItermax": 20_000}
    # POT's kernel form starts from an unweighted mean, which its steps keep, and so errs for unequal weights (by 0.08
    # here); its form in the log domain does not.
    theirs = ot.bregman.barycenter(BUMPS.T, LINE, EPSILON, method="sinkhorn_log", **options)
    np.testing.assert_allclose(ours.x, theirs, atol=1e-10)
    theirs = ot.bregman.barycenter_debiased(BUMPS.T, LINE, EPSILON, **options)
    np.testing.assert_allclose(debiased.x, theirs, atol=1e-9)


def test_the_optimum_is_one():
    """The value as a function of b, from transport with b's own entropy taken out, has its least at the barycenter."""
    b = np.asarray(found().x)

    @jax.jit
    def value(b):
        each = jax.vmap(
            lambda a: (
                pdopt.solve(pdopt.Transport(LINE, a, b, pdopt.Entropy(EPSILON), check=False), tolerance=1e-12).objective
            )
        )(BUMPS)
        return W @ each + EPSILON * jnp.sum(b * jnp.log(b))  # KL(T | a b') + sum b log b = KL(T | a 1')

    assert float(value(b)) == pytest.approx(float(found().objective), abs=1e-10)
    rng = np.random.default_rng(1)
    for _ in range(5):
        other = b * np.exp(0.1 * rng.normal(size=N))
        assert float(value(other / other.sum())) > float(value(b))


def test_debiasing_returns_the_histogram_itself():
    same = np.stack([BUMPS[0]] * 2)
    np.testing.assert_allclose(found(debiased=True, histograms=same, weights=None).x, BUMPS[0], atol=1e-9)
    assert np.abs(np.asarray(found(histograms=same, weights=None).x) - BUMPS[0]).sum() > 0.1


@pytest.mark.parametrize(("debiased", "epsilon"), [(False, 0.05), (True, 0.005)])
def test_derivatives_equal_finite_differences(debiased, epsilon):
    target = np.random.default_rng(2).normal(size=N)
    empty = BUMPS * (np.arange(N) > 1)
    empty /= empty.sum(1, keepdims=True)

    def loss(w, a, e, scale):
        solution = found(debiased, weights=w, histograms=a, epsilon=e, cost=LINE * scale,
                         tolerance=5e-15)  # fmt: skip
        return jnp.vdot(target, solution.x), solution.objective

    point = (W, empty, np.asarray(epsilon), np.asarray(1.0))
    at = jax.jit(loss)
    pull = jax.jit(lambda p, c: jax.vjp(loss, *p)[1](c))
    rng = np.random.default_rng(3)
    da = np.where(empty > 0, rng.normal(size=empty.shape), 0) * empty
    da -= da.sum(1, keepdims=True) * empty
    moves = (rng.normal(size=3) * 0.1, da, np.asarray(0.2 * epsilon), np.asarray(0.3))
    for which in (0, 1):
        got = pull(point, tuple(jnp.asarray(float(which == k)) for k in (0, 1)))
        for k, moved in enumerate(moves):
            along = lambda t: at(*(v + t * moved if j == k else v for j, v in enumerate(point)))[which]  # noqa: B023
            t = 1e-3  # fourth order; a smaller step would magnify what the slow directions of debiasing leave open
            expected = (8 * (along(t) - along(-t)) - (along(2 * t) - along(-2 * t))) / (12 * t)
            assert float(jnp.vdot(got[k], moved)) == pytest.approx(float(expected), abs=1e-6), (which, k)


@pytest.mark.slow
def test_forward_mode_batches_and_jit_agree_with_backward():
    of_w = lambda w: found(weights=w).x
    backward, forward = jax.jit(jax.jacrev(of_w))(W), jax.jit(jax.jacfwd(of_w))(W)
    np.testing.assert_allclose(forward, backward, atol=1e-9)
    many = np.stack([W, W[::-1], np.ones(3) / 3])
    batch = jax.jit(jax.vmap(of_w))(many)
    for k in range(3):
        np.testing.assert_allclose(batch[k], of_w(many[k]), atol=1e-10)


def test_a_grid_equals_the_dense_cost_and_points():
    small = LINE[:4, :4]
    grid = pdopt.Grid((small, small))
    a = np.random.default_rng(4).dirichlet(np.ones(16), size=2)
    one = found(cost=grid, histograms=a, weights=None)
    np.testing.assert_allclose(one.x, found(cost=grid.todense(), histograms=a, weights=None).x, atol=1e-11)
    x = np.stack(np.meshgrid(np.linspace(0, 1, N)[:4], np.linspace(0, 1, N)[:4], indexing="ij"), -1).reshape(-1, 2)
    points = pdopt.SqEuclidean(x, x)
    np.testing.assert_allclose(found(cost=points, histograms=a, weights=None).x, one.x, atol=1e-11)


def test_statuses_starts_and_float32():
    cut = found(max_iterations=3)
    assert cut.reason is Status.ITERATION_LIMIT
    assert int(cut.iterations) == 3
    assert int(found(start=found()).iterations) == 0
    narrow = found(cost=LINE.astype(np.float32), histograms=BUMPS.astype(np.float32), weights=W.astype(np.float32),
                   tolerance=None)  # fmt: skip
    assert narrow.x.dtype == jnp.float32
    assert narrow.reason is Status.OPTIMAL
    np.testing.assert_allclose(narrow.x, found().x, atol=1e-4)  # its tolerance
    bad = jax.jit(lambda a: found(histograms=a).status)(-BUMPS)
    assert Status(int(bad)) is Status.INVALID_PROBLEM


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"histograms": BUMPS[:, :-1]}, InvalidProblem, r"histograms has shape \(3, 11\)"),
        ({"histograms": BUMPS[0]}, InvalidProblem, "one histogram a row"),
        ({"histograms": -BUMPS}, InvalidProblem, "expected values >= 0"),
        ({"histograms": BUMPS * np.array([[1.0], [2.0], [1.0]])}, InvalidProblem, "totals from 1 to 2"),
        ({"histograms": BUMPS * np.array([[1.0], [0.0], [1.0]])}, InvalidProblem, "histogram 1 has no mass"),
        ({"weights": W[:2]}, InvalidProblem, "there are 3 histograms"),
        ({"weights": np.zeros(3)}, InvalidProblem, "weights sum to 0"),
        ({"epsilon": 0.0}, InvalidOption, "epsilon"),
        ({"epsilon": None}, InvalidProblem, "epsilon is missing"),
        ({"cost": LINE[:, :-1], "debiased": True}, InvalidProblem, "square"),
    ],
)
def test_errors_name_what_is_wrong(changes, error, words):
    with pytest.raises(error, match=words):
        found(**changes)


def test_other_problems_and_options_are_refused():
    with pytest.raises(InvalidOption, match="every is 0"):
        BregmanProjections(every=0)
    with pytest.raises(UnsupportedProblem, match="expected a Barycenter"):
        pdopt.solve(pdopt.Transport(LINE, regulariser=pdopt.Entropy(1.0)), BregmanProjections())
