"""Many pairs on one cost against one solve after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.types import Status


def histograms(pairs, n, seed):
    rng = np.random.default_rng(seed)
    A = rng.uniform(0, 1, (pairs, n)) * (rng.uniform(0, 1, (pairs, n)) < 0.6)
    A[:, 0] += 0.1
    return (A / A.sum(1, keepdims=True)).astype(np.float32)


def problem(epsilon=0.1, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (9, 2)), rng.uniform(0, 1, (7, 2))
    return pdopt.Transport(((x[:, None] - y) ** 2).sum(-1), regulariser=pdopt.Entropy(epsilon), dtype=dtype)


@pytest.mark.parametrize("mode", ["shared", "apart"])
def test_pairs_are_solved_as_if_alone(mode):
    """Seven pairs in chunks of three: the last chunk is filled up; zeros on both sides."""
    A, B = histograms(7, 9, 1), histograms(7, 7, 2)
    found = pdopt.pairwise(problem(), A, B, mode=mode, chunk=3, tolerance=1e-5)
    assert found.objective.shape == (7,)
    assert found.y.f.shape == (7, 9)
    np.testing.assert_array_equal(found.status, int(Status.OPTIMAL))
    for k in range(7):
        alone = pdopt.solve(problem().replace(a=A[k], b=B[k]), tolerance=1e-5)
        # Values differ by at most the marginal errors times the potentials, which are below 2.
        np.testing.assert_allclose(found.objective[k], alone.objective, atol=4e-5)
        plan = A[k][:, None] * B[k] * np.exp((found.y.f[k][:, None] + found.y.g[k] - problem().cost.C) / 0.1)
        assert np.abs(plan.sum(1) - A[k]).sum() + np.abs(plan.sum(0) - B[k]).sum() <= 1.2e-5
        np.testing.assert_allclose(found.x.row[k], plan.sum(1), atol=2e-6)
    np.testing.assert_array_equal(np.asarray(found.y.f)[A == 0], 0)


def test_float64():
    with jax.enable_x64(True):
        A, B = histograms(3, 9, 1).astype(float), histograms(3, 7, 2).astype(float)
        A, B = A / A.sum(1, keepdims=True), B / B.sum(1, keepdims=True)
        found = pdopt.pairwise(problem(dtype=np.float64), A, B, tolerance=1e-11)
        np.testing.assert_array_equal(found.status, int(Status.OPTIMAL))
        alone = pdopt.solve(problem(dtype=np.float64).replace(a=A[1], b=B[1]), tolerance=1e-11)
        np.testing.assert_allclose(found.objective[1], alone.objective, rtol=1e-9)


def test_small_epsilon_is_solved_apart():
    """One kernel would underflow: `max C / epsilon` is 700."""
    small = problem(0.002)
    A, B = histograms(4, 9, 1), histograms(4, 7, 2)
    found = pdopt.pairwise(small, A, B, max_iterations=20000)
    np.testing.assert_array_equal(found.status, int(Status.OPTIMAL))
    alone = pdopt.solve(small.replace(a=A[2], b=B[2]), max_iterations=20000)
    np.testing.assert_allclose(found.objective[2], alone.objective, rtol=1e-3)


def test_limits_and_jit():
    A, B = histograms(4, 9, 1), histograms(4, 7, 2)
    cut = pdopt.pairwise(problem(0.03), A, B, max_iterations=3)
    assert set(np.asarray(cut.status)) == {int(Status.ITERATION_LIMIT)}
    assert set(np.asarray(cut.iterations)) == {3}
    inside = jax.jit(lambda A, B: pdopt.pairwise(problem(), A, B).objective)(jnp.asarray(A), jnp.asarray(B))
    np.testing.assert_allclose(inside, pdopt.pairwise(problem(), A, B).objective, rtol=1e-3)


def test_what_is_refused():
    A, B = histograms(2, 9, 1), histograms(2, 7, 2)
    for wrong, message in (
        ((A[0], B), "A has shape"), ((A, B[:1]), r"B has shape \(1, 7\); expected \(2, 7\)"), ((A, 2 * B), r"A\[0\] has"),
        ((-A, B), "A has a negative mass"), ((A, B[:, :5]), r"B has shape \(2, 5\)"),
    ):  # fmt: skip
        with pytest.raises(InvalidProblem, match=message):
            pdopt.pairwise(problem(), *wrong)
    for changes in ({"mode": "both"}, {"chunk": 0}, {"tolerance": 0.0}, {"max_iterations": 0}, {"every": 1.5}):
        with pytest.raises(InvalidOption):
            pdopt.pairwise(problem(), A, B, **changes)
    with pytest.raises(InvalidOption, match="expected Entropy"):
        pdopt.pairwise(problem().replace(regulariser=None), A, B)
    with pytest.raises(InvalidOption, match="balanced"):
        pdopt.pairwise(problem().replace(unbalanced=(1.0, np.inf)), A, B)
