"""The bipartite graph of online matching: data that cannot be one, types, and the two families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from benchmarks.matching_reference import matching
from pdopt.errors import InvalidProblem


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_data_follow_their_type(dtype) -> None:
    graph = pdopt.StochasticMatching(np.array([[0.5, 0.0]], dtype), dtype=dtype)
    assert graph.probabilities.dtype == graph.weights.dtype == dtype
    assert graph.weights.tolist() == [1.0]
    p, weights = graph.host()
    assert p.dtype == weights.dtype == np.float64
    assert graph.replace(weights=np.array([2.0], dtype)).weights.tolist() == [2.0]


@pytest.mark.parametrize(
    ("p", "weights", "message"),
    [
        ([0.5, 0.5], None, r"probabilities has shape \(2,\); expected \(n, T\)"),
        (np.zeros((0, 3), np.float32), None, r"expected \(n, T\) with n, T >= 1"),
        ([[0.5, 1.5]], None, r"probabilities is 1.5 at index \(0, 1\); expected numbers in \[0, 1\]"),
        ([[-0.1, 0.5]], None, r"probabilities is -0.1 at index \(0, 0\)"),
        ([[0.5, float("nan")]], None, "probabilities has 1 NaN"),
        ([[0.5]], [1.0, 2.0], r"weights has shape \(2,\); expected \(1,\) because probabilities has 1 rows"),
        ([[0.5], [0.5]], [1.0, -2.0], "weights is -2 at index 1; expected numbers >= 0"),
        ([[0.5]], [float("inf")], "weights has 1 infinity"),
    ],
)
def test_data_that_cannot_be_a_graph(p, weights, message) -> None:
    with pytest.raises(InvalidProblem, match=message):
        pdopt.StochasticMatching(p, weights, dtype=np.float32)


def test_traced_data_pass_and_cannot_be_looked_at() -> None:
    double = jax.jit(lambda p: 2 * pdopt.StochasticMatching(p).probabilities)
    np.testing.assert_array_equal(double(jnp.full((2, 3), 0.25)), np.full((2, 3), 0.5))
    with pytest.raises(InvalidProblem, match="traced"):
        jax.jit(lambda p: pdopt.StochasticMatching(p).host()[0].sum())(jnp.zeros((2, 2)))


@pytest.mark.parametrize("make", [pdopt.upper_triangular, pdopt.left_heavy])
def test_the_families_can_be_matched_perfectly(make) -> None:
    """Group i takes offline i: the matching LP has the value n, which HiGHS confirms."""
    graph = make(6, 3, np.float64)
    p, weights = graph.host()
    assert p.shape == (6, 18)
    assert set(np.unique(p)) == {0.0, 1 / 3}
    assert matching(p, weights) == pytest.approx(6, abs=1e-9)


def test_the_families_by_hand() -> None:
    triangular, heavy = (make(4, 1, np.float32).host()[0] for make in (pdopt.upper_triangular, pdopt.left_heavy))
    groups = [set(np.flatnonzero(column) + 1) for column in triangular.T]
    assert groups == [{1, 2, 3, 4}, {2, 3, 4}, {3, 4}, {4}]
    groups = [set(np.flatnonzero(column) + 1) for column in heavy.T]
    assert groups == [{1, 3, 4}, {2, 3, 4}, {3, 4}, {3, 4}]


@pytest.mark.parametrize(("n", "group", "name"), [(0, 1, "n"), (3, 0, "group"), (2.5, 1, "n"), (3, True - 1, "group")])
def test_sizes_are_checked(n, group, name) -> None:
    with pytest.raises(InvalidProblem, match=f"^{name} is"):
        pdopt.upper_triangular(n, group, np.float32)
    with pytest.raises(InvalidProblem, match="n is 1; expected an integer >= 2"):
        pdopt.left_heavy(1, 2, np.float32)
