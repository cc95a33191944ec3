"""Dual and semi-dual ascent: against linear and quadratic programs solved by others, and where k is in the way."""

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.geometry import Euclidean, Reals
from pdopt.rules.acceleration import Averaged
from pdopt.rules.quasi_newton import QuasiNewton
from pdopt.rules.saddle import row, saddle_step
from pdopt.types import Memory, Pair, Status


def clouds(n, m, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 3)), rng.random((m, 3)) + 0.2
    return ((x[:, None] - y) ** 2).sum(-1)


def marginals(n, m):
    return sp.csc_matrix(sp.vstack([sp.kron(sp.eye(n), np.ones((1, m))), sp.kron(np.ones((1, n)), sp.eye(m))]))


def by_highs(C, a, b):
    found = linprog(C.ravel(), A_eq=marginals(*C.shape), b_eq=np.r_[a, b], method="highs")
    assert found.status == 0
    return found.fun


def by_clarabel(C, a, b, gamma):
    """Quadratic transport."""
    n, m = C.shape
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.tol_gap_abs, settings.tol_gap_rel, settings.tol_feas = False, 1e-12, 1e-12, 1e-12
    A = sp.csc_matrix(sp.vstack([marginals(n, m), -sp.eye(n * m)]))
    cones = [clarabel.ZeroConeT(n + m), clarabel.NonnegativeConeT(n * m)]
    P = sp.csc_matrix(gamma * sp.eye(n * m))
    found = clarabel.DefaultSolver(P, C.ravel(), A, np.r_[a, b, np.zeros(n * m)], cones, settings).solve()
    return np.array(found.x).reshape(n, m), found.obj_val


N, M = 20, 15
COST = clouds(N, M)
A, B = np.full(N, 1 / N), np.full(M, 1 / M)
GAMMA = float(COST.mean())


def solved(k, method=None, *, dtype=jnp.float64, tolerance=1e-6, C=COST, gamma=GAMMA, limit=6000, **data):
    rule = pdopt.Quadratic(gamma) if k is None else pdopt.KSparse(gamma, k)
    problem = pdopt.Transport(C, regulariser=rule, dtype=dtype, **data)
    return problem, pdopt.solve(problem, method, tolerance=tolerance, max_iterations=limit, gradient="none")


@pytest.mark.parametrize(
    ("method", "dtype"), [(pdopt.SemiDual(), jnp.float64), (pdopt.SemiDual(), jnp.float32), (pdopt.Dual(), jnp.float64)]
)
def test_quadratic_transport_is_the_quadratic_program(method, dtype):
    tolerance = 1e-7 if dtype == jnp.float64 else 1e-4
    _problem, solution = solved(None, method, dtype=dtype, tolerance=tolerance)
    T, value = by_clarabel(COST, A, B, GAMMA)
    assert solution.reason is Status.OPTIMAL
    # |P - P*| <= gap + |potentials| times the marginal error; gamma/2 |T - T*|^2 is at most that.
    slack = 4 * tolerance * (abs(value) + float(np.abs(solution.y.f).max() + np.abs(solution.y.g).max())) + 1e-9
    assert abs(float(solution.objective) - value) <= slack
    assert np.linalg.norm(np.asarray(solution.x.todense(), np.float64) - T) <= (2 * slack / GAMMA) ** 0.5
    ones = np.ones(M, dtype)
    with jax.enable_x64(True):
        np.testing.assert_allclose(solution.x.matvec(ones), np.asarray(solution.x.todense()).sum(1), rtol=1e-5)
        np.testing.assert_allclose(solution.x.rmatvec(np.ones(N, dtype)), solution.x.todense().sum(0), rtol=1e-5)
    assert {leaf.dtype for leaf in solution.y} == {np.dtype(dtype)}


def test_all_entries_allowed_is_quadratic_transport():
    _, sparse = solved(N, tolerance=1e-8)
    T, value = by_clarabel(COST, A, B, GAMMA)
    assert sparse.reason is Status.OPTIMAL
    assert int(sparse.certificate.binding) == 0
    assert float(sparse.objective) == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(sparse.x.todense(), T, atol=1e-5)
    # k is not in the way, so the k-sparse plan is the answer too.
    assert float(sparse.certificate.plan_error) <= 1e-5


def test_one_entry_a_column_is_unregularised_transport():
    _, solution = solved(1, tolerance=1e-6)
    value = by_highs(COST, A, B) + GAMMA / 2 * np.sum(B**2)
    assert solution.reason is Status.OPTIMAL
    assert float(solution.dual_objective) <= value + 1e-12
    assert float(solution.objective) == pytest.approx(value, rel=4e-6)
    assert float(solution.dual_objective) == pytest.approx(value, rel=4e-6)


@pytest.mark.parametrize(("k", "method"), [(1, pdopt.SemiDual()), (2, pdopt.SemiDual()), (2, pdopt.Dual())])
@pytest.mark.slow
def test_a_feasible_mixture_where_k_binds(k, method):
    """The mixture closes its rows; the k-sparse plan cannot, and says so; both values bound what they should."""
    problem, solution = solved(k, method, tolerance=1e-5)
    proof = solution.certificate
    T = np.asarray(solution.x.todense())
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(np.abs(T.sum(1) - A).sum(), float(proof.row), atol=1e-12)
    np.testing.assert_allclose(np.abs(T.sum(0) - B).sum(), float(proof.column), atol=1e-12)
    assert float(proof.row) + float(proof.column) <= 1e-5
    np.testing.assert_array_equal(proof.nonzeros, (T > 0).sum(0))
    plan = np.asarray(proof.plan.todense())
    assert ((plan > 0).sum(0) <= k).all()
    np.testing.assert_allclose(np.abs(plan.sum(1) - A).sum(), float(proof.plan_error), atol=1e-12)
    assert float(proof.plan_error) > 0.05
    assert int(proof.binding) > 0
    # Within 1 % of the exact cost; the bound is below the value of every k-sparse plan, the quadratic one below it.
    assert by_highs(COST, A, B) * 0.999 <= (COST * T).sum() <= by_highs(COST, A, B) * 1.01
    assert by_clarabel(COST, A, B, GAMMA)[1] <= float(solution.dual_objective) + 1e-6
    # A start at the solution takes no step.
    again = pdopt.solve(problem, method, start=solution, tolerance=2e-5)
    assert int(again.iterations) == 0
    assert again.reason is Status.OPTIMAL


def test_without_the_proximal_term_the_rows_stay_open():
    """L-BFGS alone: the bound is near, the rows are not, and the status does not claim otherwise."""
    _, plain = solved(1, pdopt.SemiDual(smoothing=0.0), limit=300)
    _, whole = solved(1)
    assert plain.reason is Status.ITERATION_LIMIT
    assert float(plain.residuals.primal) > 0.05
    assert float(plain.dual_objective) == pytest.approx(float(whole.dual_objective), rel=0.02)
    assert float(plain.dual_objective) <= float(whole.objective) + 1e-6


@pytest.mark.slow
def test_averaged_subgradient_steps_agree_on_a_small_problem():
    """The same view under the plain move: the mean of the k-sparse plans nears the mixture's value."""
    problem, solution = solved(2, tolerance=1e-6)
    with jax.enable_x64(True):
        view = pdopt.SemiDual().view(problem)
        centre, none = view.start().x, jnp.zeros((), jnp.float64)
        dense = lambda y: view.plan(y, centre, none).todense()
        violation = lambda x: problem.a - jnp.sum(x, axis=1)
        parts = row(lambda x, y: dense(y), violation, Euclidean(Reals()))
        rule = Averaged()

        def one(track, number):
            step = 0.3 / jnp.sqrt(number + 1.0)
            T = lambda pair, memory: saddle_step(parts, step, pair, memory)
            return rule.apply(T, track, Memory(), step)[0], None

        def run(start):
            numbers = jnp.arange(16_000, dtype=jnp.float64)
            half = jax.lax.scan(one, rule.init(start), numbers[:8000])[0]
            return jax.lax.scan(one, rule.init(half.point), numbers[8000:])[0].mean

        f = view.start().y
        mean = jax.jit(run)(Pair(dense(f), f))
        T = np.asarray(mean.x)
    assert np.abs(T.sum(1) - A).sum() < 2e-2
    assert (COST * T).sum() == pytest.approx((COST * np.asarray(solution.x.todense())).sum(), rel=2e-2)


def test_float32_and_the_end_of_its_precision():
    _, solution = solved(2, dtype=jnp.float32, tolerance=1e-4)
    assert solution.reason is Status.OPTIMAL
    assert {leaf.dtype for leaf in (*solution.y, solution.x.values)} == {np.dtype(np.float32)}
    with pytest.warns(UserWarning, match="below what float32 can reach"):
        _, floor = solved(None, dtype=jnp.float32, tolerance=1e-9)
    assert floor.reason is Status.PRECISION_LIMIT
    assert float(floor.residuals.error) < 1e-4


@pytest.mark.slow
def test_a_row_form_and_the_column_form_of_the_transpose_are_one():
    rule = pdopt.KSparse(GAMMA, 2, by="row")
    problem = pdopt.Transport(COST.T, regulariser=rule, dtype=jnp.float64)
    turned = pdopt.solve(problem, tolerance=1e-5)
    _, solution = solved(2, tolerance=1e-5)
    assert int(turned.iterations) == int(solution.iterations)
    np.testing.assert_allclose(turned.x.todense(), solution.x.todense().T, atol=1e-9)
    np.testing.assert_allclose(turned.y.g, solution.y.f, atol=1e-9)
    assert pdopt.solve(problem, start=turned, tolerance=2e-5).iterations == 0


@pytest.mark.slow
def test_slopes_of_the_value():
    """`d/da = f`, `d/db = g` (along zero-mean directions), `d/dC = T`, against differences of two solves."""
    for k in (None, 2):
        rule = pdopt.Quadratic(GAMMA) if k is None else pdopt.KSparse(GAMMA, k)
        with jax.enable_x64(True):
            rng = np.random.default_rng(0)
            direction = [rng.standard_normal(shape) for shape in ((N, M), (N,), (M,))]
            direction = [0.1 * direction[0], *(d - d.mean() for d in direction[1:])]
            # Masses of which no partial sums agree: else the plan may fall apart, and the potentials are not unique.
            masses = [v / v.sum() for v in (0.5 + rng.random(N), 0.5 + rng.random(M))]
            base = [jnp.asarray(v) for v in (COST, *masses)]

            @jax.jit
            @jax.value_and_grad
            def value(step, rule=rule, base=base, direction=direction):
                C, a, b = (v + step * d for v, d in zip(base, direction))
                problem = pdopt.Transport(C, a, b, rule, dtype=jnp.float64, check=False)
                return pdopt.solve(problem, tolerance=1e-10, max_iterations=5000).objective

            # The value has a piecewise linear slope: the difference errs by at most step times its curvature, about
            # |direction|^2 / gamma = 10, and by the tolerance over the step.
            step = 1e-5
            step, zero = jnp.float64(step), jnp.float64(0)
            slope, difference = value(zero)[1], (value(step)[0] - value(-step)[0]) / (2 * step)
            np.testing.assert_allclose(slope, difference, atol=1e-4)


def test_a_batch_is_the_loop():
    costs = np.stack([clouds(N, M, seed) for seed in (1, 2)])
    rule = pdopt.KSparse(0.5, 2)
    with jax.enable_x64(True):
        one = lambda C: pdopt.solve(
            pdopt.Transport(C, regulariser=rule, dtype=jnp.float64, check=False), tolerance=1e-5, gradient="none"
        )
        together = jax.jit(jax.vmap(one))(jnp.asarray(costs))
    for place, C in enumerate(costs):
        _, alone = solved(2, C=C, gamma=0.5, tolerance=1e-5)
        assert int(together.status[place]) == int(alone.status) == Status.OPTIMAL
        # Rounding moves a stop by some checks; the value is unique to the tolerance.
        assert float(together.objective[place]) == pytest.approx(float(alone.objective), rel=4e-5)
        assert int(together.iterations[place]) <= 3 * int(alone.iterations)


@pytest.mark.parametrize("k", [1, 2, None])
def test_zeros_and_repeated_points(k):
    """Half of a is 0, and so is an end of b; points come twice, so that the best columns are not unique."""
    C = np.repeat(clouds(10, M), 2, axis=0)
    a = np.r_[np.zeros(10), np.full(10, 0.1)]
    b = np.r_[np.full(M - 1, 1 / (M - 1)), 0.0]
    _, solution = solved(k, C=C, a=a, b=b, tolerance=1e-5, limit=20_000)
    assert solution.reason is Status.OPTIMAL, solution.residuals
    T = np.asarray(solution.x.todense())
    assert np.abs(T.sum(1) - a).sum() + np.abs(T.sum(0) - b).sum() <= 1.1e-5
    assert T[:, -1].sum() <= 1e-5
    assert np.isfinite(solution.y.f).all()
    assert np.isfinite(solution.y.g).all()


@pytest.mark.parametrize(("shape", "k"), [((1, 4), 1), ((4, 1), 1), ((1, 1), None)])
def test_one_source_or_one_target(shape, k):
    """The only plan there is; with k = 1, (4, 1) mixes four columns of one entry."""
    _, solution = solved(k, C=clouds(*shape), tolerance=1e-5)
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(solution.x.todense(), np.full(shape, 1 / (shape[0] * shape[1])), atol=2e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_cost_and_mass_do_not_matter(scale):
    _, solution = solved(2, tolerance=1e-5)
    _, dear = solved(2, C=COST * scale, gamma=GAMMA * scale, tolerance=1e-5)
    _, heavy = solved(2, gamma=GAMMA / scale, a=A * scale, b=B * scale, tolerance=1e-5)
    for other in (dear, heavy):
        assert other.reason is Status.OPTIMAL
        assert float(other.objective) == pytest.approx(float(solution.objective) * scale, rel=4e-5)


def test_the_search_finds_the_top_of_a_quadratic():
    """`max -x'Qx/2 + c'x`: the signal and a plain move, as in the method; the top is where the gradient is 0."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        factor = rng.standard_normal((8, 8))
        Q, c = jnp.asarray(factor @ factor.T + 0.1 * np.eye(8)), jnp.asarray(rng.standard_normal(8))
        signal = QuasiNewton()
        y = jnp.zeros(8, jnp.float64)
        memory = Memory(y, signal.init(y, jnp.asarray(1e-3)))
        one = jax.jit(lambda y, memory: signal(c - Q @ y, memory._replace(primal=y)))
        for _ in range(80):
            u, memory = one(y, memory)
            y = y + u
        np.testing.assert_allclose(y, jnp.linalg.solve(Q, c), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pdopt.SemiDual(every=0), InvalidOption, "every is 0"),
        (lambda: pdopt.SemiDual(patience=0), InvalidOption, "patience is 0"),
        (lambda: pdopt.SemiDual(smoothing=-1.0), InvalidOption, "smoothing is -1.0"),
        (lambda: pdopt.SemiDual(signal="lbfgs"), InvalidOption, "signal is 'lbfgs'"),
        (lambda: QuasiNewton(memory=0), InvalidOption, "memory is 0"),
        (lambda: QuasiNewton(trials=0), InvalidOption, "trials is 0"),
        (lambda: QuasiNewton(curvature=2.0), InvalidOption, "curvature is 2.0"),
        (lambda: solved(2, a=A, b=2 * B), InvalidProblem, "a has the total 1, b 2"),
        (lambda: solved(2, pdopt.PDHG()), UnsupportedProblem, "view"),
        (
            lambda: pdopt.solve(pdopt.Transport(COST, dtype=jnp.float64), pdopt.SemiDual()),
            UnsupportedProblem,
            "no dual view; expected Quadratic or KSparse",
        ),
        (lambda: solved(2, unbalanced=(1.0, np.inf)), UnsupportedProblem, "unbalanced"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
