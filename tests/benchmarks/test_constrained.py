"""The judge of nonlinear answers can pass and fail; the sign table fits its problems, where CUTEst is installed."""

import jax
import numpy as np
import pytest

from benchmarks import constrained
from benchmarks.constrained_judge import Point, judge
from benchmarks.constrained_peers import Functions, solve
from benchmarks.instances import cutest

FREE = np.full(2, -np.inf), np.full(2, np.inf)


def point(x: np.ndarray) -> Point:
    """min |x|^2 subject to x0 + x1 = 2 and x0 <= 0.5: the solution is (0.5, 1.5), with multipliers -3 and 2."""
    return Point(
        float(x @ x), 2 * x, np.array([x.sum() - 2]), np.ones((1, 2)), np.array([x[0] - 0.5]), np.array([[1.0, 0.0]])
    )


def test_the_judge_passes_the_solution_and_fails_others() -> None:
    right, free, broken = np.array([0.5, 1.5]), np.array([0.25, 1.75]), np.array([1.0, 1.0])
    assert judge(right, point(right), *FREE).passes(1e-12, 1e-12)
    assert not judge(free, point(free), *FREE).passes()  # feasible, not stationary
    assert judge(broken, point(broken), *FREE).violation == 0.5  # stationary for the equality alone, infeasible
    # With the inequality turned round its multiplier would be negative.
    turned = point(right)._replace(g_slopes=np.array([[-1.0, 0.0]]))
    assert not judge(right, turned, *FREE).passes()
    # A bound does what the inequality did.
    bounded = point(right)._replace(g=np.zeros(0), g_slopes=np.zeros((0, 2)))
    assert judge(right, bounded, FREE[0], np.array([0.5, np.inf])).passes(1e-12, 1e-12)
    assert not judge(right, bounded, *FREE).passes()
    assert not judge(right, point(right)._replace(slope=np.array([np.nan, 0])), *FREE).passes()


def test_the_table_has_the_published_sets() -> None:
    assert (len(cutest.names("equality")), len(cutest.names("inequality"))) == (42, 27)
    assert all(name in cutest.table() for chosen in constrained.QUICK.values() for name in chosen)
    np.testing.assert_array_equal(cutest._factors("+-", 2), [-1, 1])
    with pytest.raises(ValueError, match="the problem has 2"):
        cutest._factors("+", 2)


def test_counts_are_claimed_by_a_whole_run_only() -> None:
    starts = {
        "what": "starts",
        "outcome": "done",
        "pdopt": 0.1,
        "slsqp": 5.0,
        "pdopt_solved": 9,
        "slsqp_solved": 9,
        "starts": 9,
        "apart": 0,
    }
    solved = [
        {"what": "cutest", "set": kind, "solver": "pdopt", "outcome": "solved", "strict": True, "instance": str(k)}
        for kind, count in (("equality", 42), ("inequality", 27))
        for k in range(count)
    ]
    assert [c.holds for c in constrained.claims([starts, *solved], full=True)] == [True] * 5
    assert [c.holds for c in constrained.claims([starts, *solved], full=False)] == [None, None, None, True, True]
    fewer = constrained.claims([starts, *solved[:-1]], full=True)
    assert [c.holds for c in fewer] == [True, True, False, True, True]
    assert constrained.claims([starts | {"pdopt_solved": 8}], full=True)[3].holds is False
    failed = constrained.claims([{"what": "starts", "starts": 9, "outcome": "crash"}], full=True)
    assert [c.holds for c in failed[3:]] == [None, None]


@pytest.mark.slow
@pytest.mark.skipif(not cutest.available(), reason="sif2jax is not installed")
@pytest.mark.parametrize("name", ["HS71", "HS64", "HS104", "HS7"])
def test_signs_give_the_known_values(name: str) -> None:
    values = {"HS71": 17.0140173, "HS64": 6299.84242821, "HS104": 3.9511634396, "HS7": -np.sqrt(3)}
    with jax.enable_x64(True):
        functions = Functions(cutest.load(name))
        answer = solve("SLSQP", functions)
        verdict = judge(answer.x, functions.point(answer.x), functions.program.lower, functions.program.upper)
        assert verdict.passes()
        np.testing.assert_allclose(functions.point(answer.x).f, values[name], rtol=1e-6)
