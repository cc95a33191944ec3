"""The saddle view: pairs go in and out unchanged, and the scaled problem is the user's problem in other units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import UnsupportedProblem
from pdopt.operators.laid import Laid
from pdopt.operators.scaling import Scaling
from pdopt.operators.sparse import Sparse
from pdopt.problems.views import saddle
from pdopt.types import Pair

M, N = 5, 7


@pytest.mark.parametrize("storage", ["dense", "sparse"])
@pytest.mark.parametrize("bound_objective", [True, False])
def test_pairs_products_and_objectives_survive_the_change_of_units(storage, bound_objective):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(M, N)) * (rng.uniform(size=(M, N)) < 0.6) * 10.0 ** rng.uniform(-2, 2, N)
    x, y = rng.uniform(0, 1, N), rng.uniform(0, 1, M)
    with jax.enable_x64(True):
        row, column = np.nonzero(A)
        made = Sparse.from_entries(row, column, A[row, column], (M, N), jnp.float64) if storage == "sparse" else A
        lp = pdopt.LinearProgram(rng.normal(size=N), made, A @ x - 1, np.full(M, np.inf), np.zeros(N), np.ones(N))
        view = saddle(lp, Scaling(bound_objective=bound_objective))
        pair = view.into(Pair(jnp.asarray(x), jnp.asarray(y)))
        back = view.back(pair)
        np.testing.assert_allclose(back.x, x, rtol=1e-12)
        np.testing.assert_allclose(back.y, y, rtol=1e-12)
        # y'Ax and c'x only change by the two scalars.
        units = float(view.bound * view.objective)
        assert float(pair.y @ -view.violation(pair.x)) == pytest.approx(units * (y @ A @ x), rel=1e-10)
        assert float(view.c @ pair.x) == pytest.approx(units * float(lp.c @ x), rel=1e-10)
        slope = np.asarray(lp.c) - A.T @ y
        assert float(view.gradient(pair.x, pair.y) @ pair.x) == pytest.approx(units * float(slope @ x), rel=1e-10)
        moved = view.into(Pair(jnp.full(N, 9.0), -jnp.ones(M)))  # outside: moved into the box and the signs of the rows
        np.testing.assert_allclose(view.back(moved).x, 1.0, rtol=1e-12)
        np.testing.assert_array_equal(moved.y, 0.0)
        assert float(view.norm()) <= 1 + 1e-12  # Pock-Chambolle bounds it


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_a_large_judge_says_the_same_by_the_view_s_layout(kind, monkeypatch):
    """Residuals, objectives and rays are those of the user's data, whatever takes the products."""
    monkeypatch.setattr("pdopt.problems.views.LARGE", 1)
    rng = np.random.default_rng(1)
    A = rng.normal(size=(M, N)) * (rng.uniform(size=(M, N)) < 0.6) * 10.0 ** rng.uniform(-2, 2, N)
    with jax.enable_x64(True):
        row, column = np.nonzero(A)
        made = Sparse.from_entries(row, column, A[row, column], (M, N), jnp.float64)
        data = (rng.normal(size=N), made, A @ np.ones(N) - 1, np.full(M, np.inf), np.zeros(N))
        problem = pdopt.LinearProgram(*data) if kind == "linear" else pdopt.QuadraticProgram(jnp.eye(N), *data)
        judge = saddle(problem, Scaling()).judging(problem)
        assert isinstance(judge.A, Laid)
        assert judge.A.ordered()[1] is made.rows
        pair = Pair(jnp.asarray(rng.normal(size=N)), jnp.asarray(rng.normal(size=M)))
        for name in ("optimality", "rays"):
            ours, own = getattr(judge, name)(pair), getattr(problem, name)(pair)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, own)
        for name in ("row_norms", "column_norms"):
            np.testing.assert_array_equal(getattr(judge.A, name)("l2"), getattr(made, name)("l2"))
        np.testing.assert_array_equal(judge.A.scale(jnp.ones(M), jnp.ones(N)).toarray(), A)


def test_a_small_judge_is_left_as_it_is():
    lp = pdopt.LinearProgram([1.0, 2.0], [[1.0, 1.0]], [1.0], [jnp.inf], [0.0, 0.0], dtype=jnp.float32)
    assert saddle(lp, Scaling()).judging(lp) is lp


def test_a_problem_without_a_view_is_refused():
    with pytest.raises(UnsupportedProblem, match="str has no saddle view"):
        saddle("afiro", Scaling())
