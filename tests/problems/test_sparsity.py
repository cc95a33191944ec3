"""Columns of k-sparse plans against their definitions; what quadratic and k-sparse problems say of a pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption
from pdopt.problems.couplings import Potentials
from pdopt.problems.quadratic_plan import fill_columns, quadratic_value
from pdopt.problems.sparse_columns import SparseColumns, TransposedColumns
from pdopt.problems.sparsity import KSparse, Quadratic
from pdopt.problems.top_k import largest, mixed_orthant, mixed_simplex, simplex_top, support_norm
from pdopt.types import Pair


def clouds(n, m, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 3)), rng.random((m, 3)) + 0.2
    return ((x[:, None] - y) ** 2).sum(-1)


def naive_simplex(s, b, gamma):
    """`max <s, t> - gamma/2 |t|^2` over the simplex of total b, by bisection on its multiplier."""
    low, high = s.min() - gamma * b - 1, s.max() + 1
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.maximum(s - mu, 0).sum() > gamma * b else (low, mu)
    return np.maximum(s - low, 0) / gamma


def mixture_by_definition(s, b, gamma, k, smoothing):
    """The column with a proximal term by two nested bisections: mu makes `sum t = b`, kappa makes `sum w = k`.

    For given weights the best t is `w [s - mu]_+ / (gamma + smoothing w)`; the best weights have t / w = kappa inside.
    """

    def column(kappa):
        low, high = s.min() - 10, s.max()
        for _ in range(80):
            mu = (low + high) / 2
            w = np.clip(((s - mu) / kappa - gamma) / smoothing, 0, 1)
            t = w * np.maximum(s - mu, 0) / (gamma + smoothing * w)
            low, high = (mu, high) if t.sum() > b else (low, mu)
        return t, w

    low, high = 1e-9, 10 * b
    for _ in range(80):
        kappa = (low + high) / 2
        low, high = (kappa, high) if column(kappa)[1].sum() > k else (low, kappa)
    t, w = column(high)
    used = w > 0
    return t, s @ t - gamma / 2 * (t[used] ** 2 / w[used]).sum() - smoothing / 2 * t @ t


def test_a_top_k_simplex_projection_is_the_definition():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(20):
            s, b, gamma = np.sort(rng.standard_normal(6))[::-1].copy(), rng.random() + 0.01, rng.random() + 0.1
            column = simplex_top(jnp.asarray(s), b, gamma)
            np.testing.assert_allclose(column.entries, naive_simplex(s, b, gamma), atol=1e-12)
            np.testing.assert_allclose(np.sum(column.entries), b, rtol=1e-13)
            np.testing.assert_allclose(column.mu, s[0] - gamma * column.entries[0], atol=1e-13)


def test_the_best_k_sparse_column_uses_the_top_k():
    """Against all supports of size k."""
    from itertools import combinations

    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        for k in (1, 2, 3):
            s, b, gamma = rng.standard_normal(6), 0.7, 0.4
            values = []
            for support in combinations(range(6), k):
                t = naive_simplex(s[list(support)], b, gamma)
                values.append(s[list(support)] @ t - gamma / 2 * t @ t)
            scores, _ = largest(jnp.asarray(s)[None], 6)
            t = mixed_simplex(scores[0], b, gamma, k, 0.0).entries
            assert int(jnp.sum(t > 0)) <= k
            np.testing.assert_allclose(scores[0] @ t - gamma / 2 * t @ t, max(values), atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_mixture_is_the_definition(k):
    rng = np.random.default_rng(k)
    with jax.enable_x64(True):
        s = np.sort(0.05 * rng.standard_normal(6))[::-1].copy()
        b, gamma, smoothing = 0.3, 0.5, 0.7
        column = mixed_simplex(jnp.asarray(s), b, gamma, k, jnp.asarray(smoothing))
        assert bool(column.binds)
        expected, value = mixture_by_definition(s, b, gamma, k, smoothing)
        t = np.asarray(column.entries)
        np.testing.assert_allclose(t.sum(), b, rtol=1e-12)
        ours = s @ t - gamma / 2 * float(support_norm(jnp.asarray(t), k)) - smoothing / 2 * t @ t
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-12)
        np.testing.assert_allclose(t, expected, rtol=0, atol=1e-10)


def test_the_mixture_in_the_orthant_meets_its_levels():
    """Weights within [0, 1] of sum k, and the stationarity of t: `t (gamma / w + smoothing) = s`."""
    with jax.enable_x64(True):
        s, gamma, k, smoothing = jnp.asarray([0.9, 0.8, 0.75, 0.7, 0.1, -1.0]), 0.5, 2, jnp.asarray(0.3)
        column = mixed_orthant(s, gamma, k, smoothing)
        t = column.entries
        used = t > 0
        w = gamma / (s / jnp.where(used, t, 1) - smoothing)
        assert bool(column.binds)
        assert np.all(np.asarray(w)[np.asarray(used)] <= 1 + 1e-12)
        np.testing.assert_allclose(jnp.sum(jnp.where(used, w, 0)), k, rtol=1e-12)
        free = mixed_orthant(jnp.asarray([0.9, 0.1, -0.1, -1.0]), gamma, k, smoothing)
        assert not bool(free.binds)
        np.testing.assert_allclose(free.entries, [0.9 / 0.8, 0.1 / 0.8, 0, 0], rtol=1e-14)


def test_the_support_norm_is_its_variational_form():
    """`min sum t^2 / w` over `0 <= w <= 1, sum w <= k`: by the level of w = min(1, t / level)."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        for k in (1, 2, 4):
            t = np.sort(rng.random(7))[::-1].copy()
            low, high = 1e-12, 10.0
            for _ in range(200):
                level = (low + high) / 2
                low, high = (level, high) if np.minimum(1, t / level).sum() > k else (low, level)
            w = np.minimum(1, t / high)
            np.testing.assert_allclose(support_norm(jnp.asarray(t), k), (t**2 / w).sum(), rtol=1e-10)
        assert float(support_norm(jnp.asarray([0.3, 0.2, 0.0]), 2)) == pytest.approx(0.13, rel=1e-14)


def test_plans_of_few_entries_are_operators():
    plan = SparseColumns(jnp.array([[1.0, 0.5], [2.0, 0.0]]), jnp.array([[0, 2], [1, 0]]), 3)
    dense = np.asarray(plan.todense())
    np.testing.assert_array_equal(dense, [[1, 0], [0, 2], [0.5, 0]])
    np.testing.assert_array_equal(plan.matvec(jnp.array([1.0, 2.0])), dense @ [1, 2])
    np.testing.assert_array_equal(plan.rmatvec(jnp.array([1.0, 2.0, 3.0])), dense.T @ [1, 2, 3])
    np.testing.assert_array_equal(plan.nonzeros(), [2, 1])
    turned = TransposedColumns(plan)
    assert turned.shape == (2, 3)
    assert turned.dtype == plan.dtype
    np.testing.assert_array_equal(turned.todense(), dense.T)
    np.testing.assert_array_equal(turned.matvec(jnp.ones(3)), dense.sum(0))
    np.testing.assert_array_equal(turned.rmatvec(jnp.ones(2)), dense.sum(1))


def test_columns_are_filled_exactly():
    with jax.enable_x64(True):
        C, b = clouds(12, 9), np.linspace(0, 1, 9)
        f = np.random.default_rng(0).standard_normal(12)
        problem = pdopt.Transport(C, b=b, a=np.full(12, b.sum() / 12), regulariser=Quadratic(0.3), dtype=jnp.float64)
        g = fill_columns(problem.cost.transpose(), jnp.asarray(f), problem.b, 0.3)
        T = np.maximum(f[:, None] + np.asarray(g) - C, 0) / 0.3
        np.testing.assert_allclose(T.sum(0), b, atol=1e-13)


@pytest.mark.parametrize("k", [1, pytest.param(3, marks=pytest.mark.slow), 12])
def test_the_gradient_of_the_semi_dual_is_what_the_rows_lack(k):
    with jax.enable_x64(True):
        problem = pdopt.Transport(clouds(12, 9), regulariser=KSparse(0.7, k), dtype=jnp.float64)
        columns = problem.regulariser.columns(problem)
        f = 0.1 * jax.random.normal(jax.random.key(0), (12,), jnp.float64)
        value = lambda f: columns.sparse(f)[1]
        plan = columns.sparse(f)[0]
        gradient = jax.grad(value)(f)
        np.testing.assert_allclose(gradient, columns.a - plan.row_sums(), atol=1e-12)
        assert int(plan.nonzeros().max()) <= k
        np.testing.assert_allclose(plan.column_sums(), problem.b, rtol=1e-13)
        # Differences, on the smooth piece around f.
        step = 1e-6 * jnp.eye(12, dtype=jnp.float64)
        slopes = jnp.stack([(value(f + e) - value(f - e)) / 2e-6 for e in step])
        np.testing.assert_allclose(slopes, gradient, atol=1e-8)


@pytest.mark.slow
def test_the_dual_is_below_the_semi_dual_and_falls_with_k():
    """More entries allowed: a lower value; g at its best: the semi-dual."""
    with jax.enable_x64(True):
        C = clouds(12, 9)
        f, g = (0.2 * jax.random.normal(jax.random.key(s), (n,), jnp.float64) for s, n in ((1, 12), (2, 9)))
        previous = np.inf
        for k in (1, 2, 4, 12):
            problem = pdopt.Transport(C, regulariser=KSparse(0.7, k), dtype=jnp.float64)
            columns = problem.regulariser.columns(problem)
            semi = float(columns.sparse(f)[1])

            def dual(g, k=k, problem=problem):
                top = -np.sort(-(np.asarray(f)[:, None] + np.asarray(g) - C), axis=0)[:k]
                return float(f @ problem.a + g @ problem.b) - (np.maximum(top, 0) ** 2).sum() / 1.4

            assert dual(g) <= semi
            assert dual(columns.levels(f)) == pytest.approx(semi, rel=1e-12)
            assert semi <= previous + 1e-15
            previous = semi
        quadratic = pdopt.Transport(C, regulariser=Quadratic(0.7), dtype=jnp.float64)
        best = fill_columns(quadratic.cost.transpose(), f, quadratic.b, 0.7)
        assert float(quadratic_value(quadratic, Potentials(f, best), 0.7)) == pytest.approx(semi, rel=1e-12)


@pytest.mark.slow
def test_a_streamed_cost_gives_what_a_dense_one_gives(monkeypatch):
    monkeypatch.setattr("pdopt.problems.costs.WHOLE_ENTRIES", 20)
    monkeypatch.setattr("pdopt.problems.costs.BLOCK_ENTRIES", 30)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, y = jnp.asarray(rng.random((11, 3))), jnp.asarray(rng.random((7, 3)))
        points = pdopt.SqEuclidean(x, y)
        f = 0.1 * jnp.asarray(rng.standard_normal(11))
        found = []
        for cost in (points, points.todense()):
            problem = pdopt.Transport(cost, regulariser=KSparse(0.5, 2), dtype=jnp.float64)
            columns = problem.regulariser.columns(problem)
            plan, g = columns.mixture(f, None, columns.nothing(), jnp.asarray(0.2))
            seen = problem.optimality(Pair(plan, Potentials(f, g)))
            full = columns.mixture(f, g, columns.nothing(), jnp.asarray(0.2))[0]
            found.append((plan.todense(), g, seen.objective, seen.dual_objective, full.todense()))
        for streamed, dense in zip(*found):
            np.testing.assert_allclose(streamed, dense, atol=1e-13)
        assert points.transpose().block_rows < 7


def test_the_row_form_is_the_transpose():
    with jax.enable_x64(True):
        C = clouds(8, 5)
        one = pdopt.Transport(C, regulariser=KSparse(0.5, 2), dtype=jnp.float64)
        other = pdopt.Transport(C.T, regulariser=KSparse(0.5, 2, by="row"), dtype=jnp.float64)
        f, g = jnp.linspace(0, 0.1, 8, dtype=jnp.float64), jnp.zeros(5, jnp.float64)
        first = one.optimality(Pair(one.rule.inside(one, Potentials(f, g)), Potentials(f, g)))
        second = other.optimality(Pair(other.rule.inside(other, Potentials(g, f)), Potentials(g, f)))
        assert float(first.objective) == float(second.objective)
        assert float(first.dual_objective) == float(second.dual_objective)
        assert float(first.proof.row) == float(second.proof.column) > 0
        shown = other.shown(Pair(other.rule.inside(other, Potentials(g, f)), Potentials(g, f))).x
        assert isinstance(shown, TransposedColumns)
        assert (np.asarray(shown.todense() > 0).sum(1) <= 2).all()


def test_an_earlier_mixture_is_taken_up():
    with jax.enable_x64(True):
        problem = pdopt.Transport(clouds(8, 5), regulariser=KSparse(0.5, 2), dtype=jnp.float64)
        y = Potentials(jnp.zeros(8, jnp.float64), jnp.zeros(5, jnp.float64))
        mixture = problem.rule.inside(problem, y)
        kept = problem.rule.adopt(problem, mixture.__class__(2 * mixture.values, mixture.indices, 8), y)
        np.testing.assert_array_equal(kept.values, 2 * mixture.values)
        fresh = problem.rule.adopt(problem, None, y)
        np.testing.assert_array_equal(fresh.values, mixture.values)
        assert all(len(set(row)) == len(row) for row in np.asarray(fresh.indices).tolist()), "a row twice in a column"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quadratic(0.0), "gamma is 0.0"),
        (lambda: KSparse(-1.0, 2), "gamma is -1.0"),
        (lambda: KSparse(1.0, 0), "k is 0"),
        (lambda: KSparse(1.0, 2.5), "k is 2.5"),
        (lambda: KSparse(1.0, True), "k is True"),
        (lambda: KSparse(1.0, 2, by="rows"), "by is 'rows'"),
        (lambda: KSparse(1.0, 4, slots=3), "slots is 3"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(InvalidOption, match=message):
        make()
