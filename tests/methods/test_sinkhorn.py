"""Sinkhorn's method against the linear program, POT, closed forms and a plain loop; its modes, guards, statuses."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

import pdopt
from pdopt.errors import InvalidOption
from pdopt.methods.sinkhorn_kernel import Absorbed, Streamed, kernel_of
from pdopt.problems.couplings import Potentials
from pdopt.problems.transport_view import entropic
from pdopt.types import Pair, Status
from tests.methods.clouds import clouds, distances, hard, masses, true_error


def plain(C, a, b, epsilon, rho=(np.inf, np.inf), sweeps=20000):
    """The textbook iteration in the log domain, without anything around it: potentials and the plan."""
    f, g = np.zeros(len(a)), np.zeros(len(b))
    taus = [1 / (1 + epsilon / r) for r in rho]
    lse = lambda z, axis: np.log(np.exp(z - z.max(axis, keepdims=True)).sum(axis)) + z.max(axis)
    for _ in range(sweeps):
        f = -taus[0] * epsilon * lse((g - C) / epsilon + np.log(b), 1)
        new = -taus[1] * epsilon * lse((f[:, None] - C) / epsilon + np.log(a)[:, None], 0)
        moved, g = np.abs(new - g).max(), new
        if moved < 1e-13:
            break
    return f, g, a[:, None] * b * np.exp((f[:, None] + g - C) / epsilon)


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("mode", ["absorbed", "streamed"])
def test_float64_agrees_with_pot(wide, mode):
    """Values at the same epsilon; POT's is `<C, T>`, here `<C, T> + epsilon KL(T | ab')` (trap 2)."""
    x, y = clouds(40, 30)
    a, b, C = masses(40, 1), masses(30, 2), distances(x, y)
    for epsilon in (0.1, 0.01):
        problem = pdopt.Transport(C, a, b, pdopt.Entropy(epsilon), dtype=np.float64)
        solution = pdopt.solve(problem, pdopt.Sinkhorn(mode=mode), tolerance=1e-11)
        assert solution.reason is Status.OPTIMAL
        assert true_error(problem, solution.y) <= 1e-11
        T = ot.sinkhorn(a, b, C, epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=20000)
        np.testing.assert_allclose(solution.x.todense(), T, atol=1e-11)
        there = T > 0
        value = (C * T).sum() + epsilon * (T[there] * np.log(T[there] / np.outer(a, b)[there])).sum()
        np.testing.assert_allclose(solution.objective, value, rtol=1e-9)
        np.testing.assert_allclose(solution.dual_objective, value, rtol=1e-9)


def test_small_epsilon_tends_to_the_linear_program(wide):
    """`<C, T>` from above, the dual bound (less epsilon KL) from below; the gap closes with epsilon."""
    x, y = clouds(20, 25)
    a, b, C = masses(20, 1), masses(25, 2), distances(x, y)
    exact = ot.emd2(a, b, C)
    gaps = []
    for epsilon in (0.1, 0.01, 0.001):
        solution = pdopt.solve(
            pdopt.Transport(C, a, b, pdopt.Entropy(epsilon), dtype=np.float64), tolerance=1e-9, max_iterations=20000
        )
        assert solution.reason is Status.OPTIMAL
        T = np.asarray(solution.x.todense())
        cost = (C * T).sum()
        gaps.append(cost - exact)
        assert cost >= exact - 1e-8
        # The entropic value exceeds the cost by epsilon KL, and KL(T | ab') is at most the entropy of a: log 20.
        assert cost <= float(solution.objective) + 1e-9
        assert exact - 1e-8 <= float(solution.objective) <= exact + epsilon * np.log(20) + 1e-8
    assert gaps[0] > gaps[1] > gaps[2] >= -1e-8
    assert gaps[2] < 1e-3 * exact


@pytest.mark.parametrize("kind", ["dense", "points", "grid", "low rank"])
@pytest.mark.slow
def test_every_cost_gives_the_answer_of_its_matrix(kind):
    rng = np.random.default_rng(0)
    line = ((np.arange(5)[:, None] - np.arange(4)) / 4) ** 2
    x, y = clouds(20, 12)
    cost = {
        "dense": distances(x, y),
        "points": pdopt.SqEuclidean(x, y),
        "grid": pdopt.Grid((line, line[:4, :3])),
        "low rank": pdopt.LowRank(rng.uniform(0, 1, (20, 3)), rng.uniform(0, 1, (12, 3))),
    }[kind]
    problem = pdopt.Transport(cost, masses(20, 3), masses(12, 4), pdopt.Entropy(0.02), dtype=np.float32)
    assert kernel_of(entropic(problem), "auto") is (Streamed if kind == "grid" else Absorbed)
    matrix = problem.replace(cost=problem.cost.todense())
    found = [pdopt.solve(p, tolerance=1e-5, max_iterations=5000) for p in (problem, matrix)]
    assert all(solution.reason is Status.OPTIMAL for solution in found)
    # Plans whose marginals are 1e-5 apart: entries differ by about that.
    np.testing.assert_allclose(found[0].x.todense(), found[1].x.todense(), atol=3e-5)
    streamed = pdopt.solve(problem, pdopt.Sinkhorn(mode="streamed"), tolerance=1e-5, max_iterations=5000)
    np.testing.assert_allclose(streamed.x.todense(), found[1].x.todense(), atol=3e-5)


def test_the_mode_is_chosen_by_size_and_can_be_set():
    big = np.broadcast_to(np.float32(0), (20000, 2))
    view = entropic(pdopt.Transport(pdopt.SqEuclidean(big, big), regulariser=pdopt.Entropy(0.1), dtype=np.float32))
    assert kernel_of(view, "auto") is Streamed
    assert kernel_of(view, "absorbed") is Absorbed
    small = entropic(pdopt.Transport(np.zeros((2, 2)), regulariser=pdopt.Entropy(0.1), dtype=np.float32))
    assert kernel_of(small, "streamed") is Streamed


def test_empty_bins_take_no_part():
    """Zeros in a and in b: the rest is solved as if they were not there, their potentials are 0."""
    x, y = clouds(12, 10)
    a, b, C = masses(12, 1), masses(10, 2), distances(x, y)
    a[[0, 5]] = b[[3, 9]] = 0
    a, b = a / a.sum(), b / b.sum()
    C[0, 0], C[5, 1] = 1e6, -1e3  # an empty bin's huge cost or gain must not matter either
    problem = pdopt.Transport(C, a, b, pdopt.Entropy(0.05), dtype=np.float32)
    inner = pdopt.Transport(C[a > 0][:, b > 0], a[a > 0], b[b > 0], pdopt.Entropy(0.05), dtype=np.float32)
    for mode in ("absorbed", "streamed"):
        whole, part = (pdopt.solve(p, pdopt.Sinkhorn(mode=mode), tolerance=1e-5) for p in (problem, inner))
        assert whole.reason is part.reason is Status.OPTIMAL
        np.testing.assert_allclose(np.asarray(whole.x.todense())[a > 0][:, b > 0], part.x.todense(), atol=2e-5)
        np.testing.assert_array_equal(np.asarray(whole.y.f)[a == 0], 0)
        np.testing.assert_array_equal(np.asarray(whole.y.g)[b == 0], 0)


@pytest.mark.parametrize(
    ("C", "epsilon"),
    [
        (np.array([[1.0, 2.0, 3.0]]), 0.1),  # one source
        (np.array([[2.0]]), 0.1),
        (np.zeros((4, 3)), 0.1),  # nothing to choose
        (distances(np.repeat(clouds(4, 4)[0], 5, 0), clouds(4, 6)[1]), 0.01),  # repeated points
        (distances(*clouds(8, 8)) + 1e7 * np.eye(8)[[0]].T * np.eye(8)[[0]], 0.02),  # one huge entry
        (distances(*clouds(8, 9)) - 5, 0.02),  # negative costs
    ],
)
def test_odd_problems(C, epsilon):
    """float32 at the default tolerance; the potentials of the shifted cost are about 5, hence its floor of 1e-5."""
    n, m = C.shape
    problem = pdopt.Transport(C, masses(n, 1), masses(m, 2), pdopt.Entropy(epsilon), dtype=np.float32)
    solution = pdopt.solve(problem)
    assert solution.reason is Status.OPTIMAL
    assert true_error(problem, solution.y) <= 1.001e-4
    assert np.isfinite(np.asarray(solution.y.f)).all()


@pytest.mark.parametrize("kind", ["dense", pytest.param("points", marks=pytest.mark.slow), "low rank"])
def test_padding_changes_nothing_but_the_size(kind):
    x, y = clouds(11, 9)
    cost = {"dense": distances(x, y), "points": pdopt.SqEuclidean(x, y), "low rank": pdopt.LowRank(x, y)}[kind]
    given = (cost, masses(11, 1), masses(9, 2), pdopt.Entropy(0.05))
    tight, padded = (pdopt.Transport(*given, dtype=np.float32, pad=pad) for pad in (False, True))
    assert padded.shape == (13, 10)
    alone, within = (pdopt.solve(p, tolerance=1e-5) for p in (tight, padded))
    plan = np.asarray(within.x.todense())
    np.testing.assert_allclose(plan[:11, :9], alone.x.todense(), atol=2e-5)
    assert plan[11:].sum() == plan[:, 9:].sum() == 0
    np.testing.assert_array_equal(np.asarray(within.y.f)[11:], 0)


def test_a_grid_cannot_be_padded():
    with pytest.raises(InvalidOption, match="pad: a Grid"):
        pdopt.Transport(pdopt.Grid((np.zeros((2, 2)),)), regulariser=pdopt.Entropy(1.0), dtype=np.float32, pad=True)


def test_totals_other_than_one():
    x, y = clouds(9, 7)
    a, b, C = masses(9, 1), masses(7, 2), distances(x, y)
    for total in (1e-8, 1e6):
        problem = pdopt.Transport(C, total * a, total * b, pdopt.Entropy(0.1), dtype=np.float32)
        solution = pdopt.solve(problem)
        assert solution.reason is Status.OPTIMAL
        np.testing.assert_allclose(solution.x.todense() / total, plain(C, a, b, 0.1)[2], atol=1e-4)


@pytest.mark.parametrize("rho", [(1.0, 1.0), (0.05, 2.0), (np.inf, 0.3), (1e-3, np.inf)])
def test_unbalanced_agrees_with_the_plain_iteration(wide, rho):
    x, y = clouds(10, 8)
    a, b, C = masses(10, 1), (1.0 if np.isinf(min(rho)) or rho[0] == 1e-3 else 1.7) * masses(8, 2), distances(x, y)
    problem = pdopt.Transport(C, a, b, pdopt.Entropy(0.05), unbalanced=rho, dtype=np.float64)
    solution = pdopt.solve(problem, tolerance=1e-10)
    assert solution.reason is Status.OPTIMAL
    f, _, T = plain(C, a, b, 0.05, rho)
    np.testing.assert_allclose(solution.x.todense(), T, atol=1e-9)
    np.testing.assert_allclose(solution.y.f, f, atol=1e-7)
    np.testing.assert_allclose(solution.objective, solution.dual_objective, rtol=1e-8)


def test_unbalanced_point_masses_have_a_closed_form(wide):
    """One source, one target, masses a and b: `T = t` with `log(t/ab) eps + rho log(t/a) + rho log(t/b) + C = 0`."""
    a, b, C, epsilon, rho = 2.0, 0.5, 0.7, 0.1, 0.4
    t = np.exp((epsilon * np.log(a * b) + rho * np.log(a) + rho * np.log(b) - C) / (epsilon + 2 * rho))
    problem = pdopt.Transport([[C]], [a], [b], pdopt.Entropy(epsilon), unbalanced=(rho, rho), dtype=np.float64)
    np.testing.assert_allclose(pdopt.solve(problem, tolerance=1e-12).x.todense(), [[t]], rtol=1e-10)


def test_the_shift_keeps_weak_penalties_from_creeping(wide):
    """eps / rho = 1e-3: the plain iteration contracts by tau^2 = 0.998 a sweep, 10 000 of them for 1e-9."""
    x, y = clouds(10, 8)
    problem = pdopt.Transport(
        distances(x, y),
        masses(10, 1),
        3 * masses(8, 2),
        pdopt.Entropy(0.1),
        unbalanced=(100.0, 100.0),
        dtype=np.float64,
    )
    solution = pdopt.solve(problem, tolerance=1e-9)
    assert solution.reason is Status.OPTIMAL
    assert int(solution.iterations) <= 500


@pytest.mark.slow
def test_over_relaxation_and_annealing_save_sweeps(wide):
    problem = hard(np.float64)
    counts = {}
    for name, method in {
        "plain": pdopt.Sinkhorn(omega=1.0, anneal=False), "annealed": pdopt.Sinkhorn(omega=1.0),
        "both": pdopt.Sinkhorn(),
    }.items():  # fmt: skip
        solution = pdopt.solve(problem, method, tolerance=1e-8, max_iterations=50000)
        assert solution.reason is Status.OPTIMAL
        counts[name] = int(solution.iterations)
    assert counts["both"] < min(counts["annealed"], counts["plain"]) / 2
    # Annealing shortens the way to a rough answer, over-relaxation the rest.
    rough = [
        int(pdopt.solve(hard(np.float64, epsilon=0.0005), pdopt.Sinkhorn(omega=1.0, anneal=flag), tolerance=0.1,
                        max_iterations=50000).iterations)
        for flag in (True, False)
    ]  # fmt: skip
    assert rough[0] < rough[1]


def test_annealing_is_for_cold_starts_with_small_epsilon():
    method, problem = pdopt.Sinkhorn(), hard()
    view = method.view(problem)
    stages = lambda problem, start: float(method.init(method.view(problem), start).control.epsilon)
    assert stages(problem, view.start()) == pytest.approx(float(problem.cost.spread()))
    warm = Pair(view.unknown(), Potentials(view.start().y.f + 0.1, view.start().y.g))
    assert stages(problem, warm) == pytest.approx(0.002)
    easy = problem.replace(regulariser=pdopt.Entropy(0.1))
    assert stages(easy, view.start()) == pytest.approx(0.1)


@pytest.mark.slow
def test_a_block_that_over_relaxation_spoils_is_thrown_away():
    """omega = 1.9 far from the solution doubles the error or worse: the guard goes back to where the block began."""
    method = pdopt.Sinkhorn(anneal=False)
    view = method.view(hard(epsilon=0.01))

    def after(omega):
        state, _ = method.block(view, method.init(view, view.start()), 30)
        forced = state._replace(control=state.control._replace(omega=jnp.asarray(omega, jnp.float32)))
        return state, method.block(view, forced, 10)[0]

    before, spoiled = after(5.0)  # beyond 2: it must diverge
    assert float(spoiled.control.omega) == 1.0
    assert int(spoiled.control.blocks) == 0
    assert not bool(spoiled.control.known)
    assert float(spoiled.control.error) == float(before.control.error)
    # One exact half sweep from where the block began: the rows' marginal is what it should be.
    plan = pdopt.problems.entropy.entropic_marginals(hard(epsilon=0.01), spoiled.pair.y)
    np.testing.assert_allclose(plan.row, hard().a, rtol=1e-4)
    _, healthy = after(1.2)
    assert float(healthy.control.omega) == pytest.approx(1.2)
    assert bool(healthy.control.known)
    # And a solve that starts badly over-relaxed arrives all the same.
    solution = pdopt.solve(hard(epsilon=0.01), pdopt.Sinkhorn(omega=1.99, anneal=False))
    assert solution.reason is Status.OPTIMAL
