"""The assignment problem of balancing: the facts about its dual, its optimum by HiGHS, its data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidProblem
from pdopt.problems.balancing import (
    LARGEST,
    OCTAVES,
    Balancing,
    curvature,
    gap_counts,
    load_violation,
    max_violation,
    select,
)
from pdopt.types import Pair, Status


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def sigmoid_scores(seed, tokens, experts, spread=1.0):
    rng = np.random.default_rng(seed)
    return 1 / (1 + np.exp(-(rng.normal(size=(tokens, experts)) + spread * np.linspace(-1, 1, experts))))


def highs(problem):
    """Optimal cost and row duals of the linear program, by HiGHS."""
    from scipy.optimize import linprog

    lp = problem.linear_program()
    found = linprog(np.asarray(lp.c), A_eq=lp.A.to_scipy() if hasattr(lp.A, "to_scipy") else dense(lp.A),
                    b_eq=np.asarray(lp.row_lower), bounds=(0, 1), method="highs")  # fmt: skip
    assert found.status == 0
    return found.fun, found.eqlin.marginals


def dense(operator):
    return np.asarray(jax.vmap(operator.matvec, in_axes=1, out_axes=1)(jnp.eye(operator.shape[1])))


# --- the facts of the theory (allocation specification, section 3) ---------------------------------------------------

SETTINGS = [(256, 8, 1), (256, 8, 2), (300, 7, 3), (512, 16, 6)]


@pytest.mark.parametrize(("tokens", "experts", "top"), SETTINGS)
def test_fact_1_the_dual_is_between_its_two_linearisations(tokens, experts, top):
    """`<A - L, p' - p> <= D(p') - D(p) <= <A' - L, p' - p>`, so D falls where both violations agree."""
    problem = Balancing(sigmoid_scores(0, tokens, experts), top)
    rng, p = np.random.default_rng(1), jnp.zeros(experts)
    rounding = tokens * top * 8 * np.finfo(float).eps
    for scale in np.geomspace(1e-4, 1, 40):
        loads = problem.choose(-p)[1].loads - problem.target
        # Half of the steps are the proportional rule's, half are random.
        step = -scale * loads / tokens if rng.random() < 0.5 else scale * rng.normal(size=experts)
        new = p + step
        later = problem.choose(-new)[1].loads - problem.target
        change = problem.dual(new) - problem.dual(p)
        assert loads @ step - rounding <= change <= later @ step + rounding
        if step @ loads < 0 and later @ loads > 0 and np.allclose(step * tokens, -scale * loads):
            assert change < rounding
        p = new


def test_fact_2_tokens_only_move_to_less_loaded_experts():
    """K = 1: a token that moves j -> k implies `A_k < A_j` (proportional), `A_k <= L <= A_j` (signs)."""
    for seed, signs in itertools.product(range(3), (False, True)):
        problem = Balancing(sigmoid_scores(seed, 512, 8), 1)
        p, moved = jnp.zeros(8), 0
        before, tally = problem.choose(-p)
        for _ in range(60):
            v = tally.loads - problem.target
            p = p - 0.02 * jnp.sign(v) if signs else p - 0.5 * v / 512
            loads = np.asarray(tally.loads)
            after, tally = problem.choose(-p)
            switched = np.flatnonzero(np.asarray(before != after))
            j, k = np.asarray(before)[switched, 0], np.asarray(after)[switched, 0]
            assert (loads[k] < loads[j]).all()
            if signs:
                assert ((loads[k] <= problem.target) & (problem.target <= loads[j])).all()
            before, moved = after, moved + switched.size
        assert moved > 50


@pytest.mark.parametrize(("tokens", "experts", "top"), [(64, 4, 1), (96, 8, 2), (60, 5, 3), (50, 4, 1)])
def test_fact_3_the_optimal_bias_is_the_price_in_the_linear_program(tokens, experts, top):
    problem = Balancing(sigmoid_scores(2, tokens, experts), top)
    cost, rows = highs(problem)
    p = rows[tokens:]  # HiGHS: d cost / d load of each expert = p up to a constant
    # Strong duality: the dual at HiGHS's prices is the optimal score, and no p found by the move is better.
    assert float(problem.dual(jnp.asarray(p))) == pytest.approx(-cost, abs=1e-9 * tokens)
    found = pdopt.solve(problem, tolerance=1e-4, max_iterations=20_000)
    assert float(problem.dual(-found.y)) >= -cost - 1e-9 * tokens
    # The relative gap of 1e-4 is divided by 1 + |P| + |D|, and a plan off by 1e-4 K T scores at most that much more.
    assert float(problem.dual(-found.y)) == pytest.approx(-cost, abs=1e-4 * (1 + 2 * abs(cost)) + 1e-4 * top * tokens)
    # Routing at HiGHS's prices gives the optimal loads, but for tokens that are indifferent at them.
    loads = np.asarray(problem.choose(-jnp.asarray(p))[1].loads)
    assert np.abs(loads - problem.target).sum() <= 2 * experts


def test_the_dual_bounds_every_balanced_assignment():
    problem = Balancing(sigmoid_scores(3, 6, 3), 1)
    best = max(
        sum(float(problem.scores[i, e]) for i, e in enumerate(choice))
        for choice in itertools.product(range(3), repeat=6)
        if np.bincount(choice, minlength=3).tolist() == [2, 2, 2]
    )
    rng = np.random.default_rng(0)
    duals = [float(problem.dual(jnp.asarray(p))) for p in rng.normal(scale=0.3, size=(200, 3))]
    assert min(duals) >= best - 1e-12
    assert best == pytest.approx(-highs(problem)[0], abs=1e-12)  # the relaxation is exact


# --- the pieces ------------------------------------------------------------------------------------------------------


def test_gradient_of_the_dual_is_load_minus_target():
    problem = Balancing(sigmoid_scores(4, 64, 6), 2)
    p = jnp.asarray(np.random.default_rng(0).normal(scale=0.1, size=6))
    np.testing.assert_allclose(jax.grad(problem.dual)(p), problem.choose(-p)[1].loads - problem.target, atol=1e-12)


def test_selection_equals_a_sort_and_ties_go_to_the_smaller_index():
    scores = np.round(sigmoid_scores(5, 200, 6), 1)  # many ties
    bias = np.array([0.0, 0.1, 0.0, -0.1, 0.0, 0.1])
    experts, tally = select(jnp.asarray(scores), jnp.asarray(bias), 2)
    expected = np.argsort(-(scores + bias), axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(experts, expected)
    np.testing.assert_array_equal(tally.loads, np.bincount(expected.ravel(), minlength=6))
    assert int(tally.near.sum()) == 200


def test_scores_in_bfloat16_are_widened_before_the_bias_is_added():
    scores = jnp.full((4, 3), 0.5, jnp.bfloat16)  # spacing 2^-9 of bfloat16 would swallow the bias
    experts, _ = select(scores, jnp.array([0.0, 1e-4, 0.0], jnp.float32), 1)
    np.testing.assert_array_equal(experts.ravel(), [1, 1, 1, 1])
    assert Balancing(scores, 1).scores.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gaps_fall_into_their_powers_of_two(dtype):
    gaps = np.array([0.5, np.nextafter(dtype(0.5), dtype(0)), 1.0, 2.0**-60, 0.0, 2.0**40], dtype)
    counts = np.asarray(gap_counts(jnp.asarray(gaps)))
    assert counts[LARGEST] == 1  # [1/2, 1)
    assert counts[LARGEST + 1] == 1
    assert counts[LARGEST - 1] == 1
    assert counts[OCTAVES - 1] == 2
    assert counts[0] == 1
    assert counts.sum() == 6


def test_curvature_equals_that_of_the_expected_dual():
    """Against a difference quotient of the mean load over 200 000 tokens: `H = d A / d p / T`, trace over E - 1."""
    tokens, experts, top = 200_000, 6, 2
    scores = jnp.asarray(sigmoid_scores(6, tokens, experts))
    p = jnp.asarray(np.random.default_rng(1).normal(scale=0.05, size=experts))
    _, tally = select(scores, p, top)
    h = 0.02
    trace = 0.0
    for j in range(experts):
        up, down = (select(scores, p.at[j].add(s * h), top)[1].loads[j] for s in (1, -1))
        trace += float(up - down) / (2 * h * tokens)
    # Counting error of n ~ 0.1 T tokens: 1 / sqrt(n) < 1 %; the density changes by several % over the width used.
    assert float(curvature(tally.near, experts, 0.1)) == pytest.approx(trace / (experts - 1), rel=0.1)


def test_violations():
    np.testing.assert_allclose(load_violation(jnp.array([6, 2, 1]), 1), np.array([3, -1, -2]) / 9)
    np.testing.assert_allclose(load_violation(jnp.array([6, 2, 1]), 3), np.array([3, -1, -2]) / 3)
    np.testing.assert_array_equal(load_violation(jnp.zeros(3, jnp.int32), 1), np.zeros(3))
    assert float(max_violation(jnp.array([6, 2, 1]))) == pytest.approx(1.0)
    assert float(max_violation(jnp.zeros(3, jnp.int32))) == 0.0


# --- as a problem ----------------------------------------------------------------------------------------------------


def test_the_linear_program_solved_by_pdhg_agrees():
    problem = Balancing(sigmoid_scores(7, 24, 4), 2)
    found = pdopt.solve(problem.linear_program(), tolerance=1e-7)
    assert found.reason is Status.OPTIMAL
    assert float(found.objective) == pytest.approx(highs(problem)[0], abs=1e-4)


def test_residuals_see_what_is_wrong():
    problem = Balancing(sigmoid_scores(8, 12, 3), 1)
    even = problem.start()
    assert float(problem.residuals(even).primal) < 1e-12
    greedy = Pair(problem.plan(problem.choose(jnp.zeros(3))[0]), jnp.zeros(3))
    assert float(problem.residuals(greedy).primal) > 0.1  # greedy and unbalanced, with no gap
    assert float(problem.residuals(greedy).gap) < 1e-12
    assert float(problem.residuals(Pair(2 * even.x, even.y)).primal) > 0.5
    assert float(problem.residuals(Pair(even.x.at[0].set(jnp.array([-1.0, 1.0, 1.0])), even.y)).worst) >= 1


@pytest.mark.parametrize(
    ("scores", "top", "message"),
    [
        (np.zeros(3), 1, r"scores has shape \(3,\)"),
        (np.zeros((0, 3)), 1, "at least one token"),
        (np.zeros((4, 3)), 0, "top is 0"),
        (np.zeros((4, 3)), 4, "top is 4"),
        (np.zeros((4, 3)), 1.0, "top is 1.0"),
        (np.full((4, 3), np.nan), 1, "12 NaN"),
        (np.full((4, 3), np.inf), 1, "12 infinity"),
    ],
)
def test_bad_data_are_refused(scores, top, message):
    with pytest.raises(InvalidProblem, match=message):
        Balancing(scores, top)


def test_a_bias_of_another_length_is_refused():
    with pytest.raises(InvalidProblem, match="bias has shape"):
        select(jnp.zeros((4, 3)), jnp.zeros(2), 1)


def test_one_expert_and_all_experts():
    experts, tally = select(jnp.zeros((4, 1)), jnp.zeros(1), 1)
    assert experts.shape == (4, 1)
    assert tally.loads.tolist() == [4]
    assert int(tally.near.sum()) == 0  # no choice, no gap
    found = pdopt.solve(Balancing(np.ones((4, 3)), 3), tolerance=1e-6)
    assert found.reason is Status.OPTIMAL
    assert float(found.objective) == pytest.approx(-12)
