"""Linear programs: residuals and certificates against NumPy, rays against HiGHS, the sense, and validation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import pdopt
from pdopt.operators.dense import Dense
from pdopt.operators.sparse import Sparse
from pdopt.problems.linear import RAY_TOLERANCE
from pdopt.types import Pair

INF = np.inf


def bounds_of_all_kinds(rng, size, centre):
    """Two sides, one, none, or both equal, all of which `centre` satisfies."""
    kind = rng.integers(0, 5, size)
    gap_low, gap_high = rng.uniform(0, 1, size), rng.uniform(0, 1, size)
    low = np.where((kind == 1) | (kind == 3), -INF, centre - gap_low)
    high = np.where((kind == 2) | (kind == 3), INF, centre + gap_high)
    fixed = kind == 4
    return np.where(fixed, centre, low), np.where(fixed, centre, high)


def random_lp(seed, m=4, n=6, **changes):
    """A feasible problem with bounds of every kind, its data in NumPy and a feasible point."""
    rng = np.random.default_rng(seed)
    A, x = rng.normal(size=(m, n)), rng.normal(size=n)
    rl, ru = bounds_of_all_kinds(rng, m, A @ x)
    l, u = bounds_of_all_kinds(rng, n, x)
    data = {
        "c": rng.normal(size=n),
        "A": A,
        "row_lower": rl,
        "row_upper": ru,
        "lower": l,
        "upper": u,
        "offset": rng.normal(),
    } | changes
    return data, x


def make(data, **options):
    return pdopt.LinearProgram(**data, **options)


def linprog_rows(data):
    """One-sided rows `G x <= h` and the bounds, as SciPy takes them."""
    A, rl, ru = data["A"], data["row_lower"], data["row_upper"]
    G = np.vstack([A[np.isfinite(ru)], -A[np.isfinite(rl)]])
    h = np.concatenate([ru[np.isfinite(ru)], -rl[np.isfinite(rl)]])
    return G, h, np.stack([data["lower"], data["upper"]], axis=1)


def plus(v):
    return np.maximum(v, 0)


def finite(v):
    return np.where(np.isfinite(v), v, 0.0)


def expected_optimality(data, x, y):
    """The formulas of the docstring, entry by entry in loops where that is clearer."""
    A, c, rl, ru, l, u = (np.asarray(data[k]) for k in ("A", "c", "row_lower", "row_upper", "lower", "upper"))
    row, primal_objective = A @ x, c @ x + data["offset"]
    broken = np.concatenate([plus(rl - row) + plus(row - ru), plus(l - x) + plus(x - u)])
    b = [max([abs(side) for side in sides if np.isfinite(side)], default=0.0) for sides in zip(rl, ru)]
    primal = np.sqrt(np.sum(broken**2))
    wrong_y = [
        abs(yi) if (yi > 0 and low == -INF) or (yi < 0 and high == INF) else 0.0 for yi, low, high in zip(y, rl, ru)
    ]
    y_valid = np.where(np.array(wrong_y) > 0, 0, y)
    r = c - A.T @ y
    by_sign = np.array(
        [rj if (rj > 0 and np.isfinite(lo)) or (rj < 0 and np.isfinite(hi)) else 0 for rj, lo, hi in zip(r, l, u)]
    )
    side = np.where(r > 0, l, u)
    near = np.array([abs(xj - s) <= abs(xj) if np.isfinite(s) else False for xj, s in zip(x, side)])
    found = []
    for z in (by_sign, np.where(near, by_sign, 0)):
        dual_objective = sum(yi * (low if yi > 0 else high) for yi, low, high in zip(y_valid, rl, ru) if yi != 0)
        dual_objective += sum(zj * (lo if zj > 0 else hi) for zj, lo, hi in zip(z, l, u) if zj != 0) + data["offset"]
        dual = np.sqrt(np.sum((r - z) ** 2) + np.sum(np.square(wrong_y)))
        gap = abs(primal_objective - dual_objective)
        relative = dual / (1 + np.linalg.norm(c)), gap / (1 + abs(primal_objective) + abs(dual_objective))
        found.append((max(relative), relative, dual, gap, dual_objective, z))
    best = found[1] if found[1][0] < found[0][0] else found[0]
    _, (dual_relative, gap_relative), dual, gap, dual_objective, z = best
    numbers = (
        primal / (1 + np.linalg.norm(b)),
        dual_relative,
        gap_relative,
        primal,
        dual,
        gap,
        broken.max(initial=0.0),
    )
    return numbers, primal_objective, dual_objective, z


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_optimality_equals_numpy(seed, maximise, spread):
    data, x = random_lp(seed)
    rng = np.random.default_rng(seed + 1)
    x, y = x + spread * rng.normal(size=6), rng.normal(size=4) * (rng.uniform(size=4) < 0.7)
    sign = -1.0 if maximise else 1.0
    flipped = data | {"c": sign * data["c"], "offset": sign * data["offset"]}
    with jax.enable_x64(True):
        found = make(flipped, maximise=maximise).optimality(Pair(jnp.asarray(x), jnp.asarray(sign * y)))
    numbers, primal, dual, z = expected_optimality(data, x, y)
    # Sums of ten products of normal numbers: 1e-13 is 500 units of rounding.
    np.testing.assert_allclose(np.array(found.residuals), numbers, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        [found.objective, found.dual_objective], [sign * primal, sign * dual], rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(found.proof, sign * z, atol=1e-13)


def test_the_second_certificate_rescues_a_bound_that_is_far_away():
    # min x, x >= 1 as a row, and a bound at -1e6 that plays no part: y = 1 - 1e-9 leaves z = 1e-9 at that bound.
    data = {"c": [1.0], "A": [[1.0]], "row_lower": [1.0], "row_upper": [INF], "lower": [-1e6], "upper": [INF]}
    with jax.enable_x64(True):
        found = make(data).optimality(Pair(jnp.array([1.0]), jnp.array([1 - 1e-9])))
        assert float(found.residuals.gap) < 1e-8
        assert float(found.proof[0]) == 0.0
        assert float(found.residuals.dual) == pytest.approx(1e-9 / 2, rel=1e-5)
        close = make(data | {"lower": [0.5]}).optimality(Pair(jnp.array([1.0]), jnp.array([0.9])))
        assert float(close.proof[0]) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(8))
def test_an_optimal_pair_of_highs_has_no_residual(seed):
    data, _ = random_lp(seed, lower=np.full(6, -2.0), upper=np.full(6, 2.0))
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, 6)
    rl, ru = bounds_of_all_kinds(rng, 4, data["A"] @ x)
    data |= {"row_lower": rl, "row_upper": ru}
    G, h, box = linprog_rows(data)
    best = linprog(data["c"], G, h, bounds=box)
    upper, lower = np.isfinite(ru), np.isfinite(rl)
    y = np.zeros(4)
    y[upper] += best.ineqlin.marginals[: upper.sum()]
    y[lower] -= best.ineqlin.marginals[upper.sum() :]
    with jax.enable_x64(True):
        found = make(data).optimality(Pair(jnp.asarray(best.x), jnp.asarray(y)))
    assert float(found.residuals.error) < 1e-9  # HiGHS solves a vertex to rounding
    np.testing.assert_allclose(found.proof, best.lower.marginals + best.upper.marginals, atol=1e-9)


# --- rays ------------------------------------------------------------------------------------------------------------


def least_violation(A, rl, ru, l, u):
    """The least total violation of the rows over the box, and the multipliers of that problem (HiGHS)."""
    m, n = A.shape
    c = np.concatenate([np.zeros(n), np.ones(2 * m)])
    wide = np.hstack([A, np.eye(m), -np.eye(m)])
    up, low = np.isfinite(ru), np.isfinite(rl)
    G, h = np.vstack([wide[up], -wide[low]]), np.concatenate([ru[up], -rl[low]])
    best = linprog(c, G, h, bounds=[*zip(l, u), *[(0, None)] * (2 * m)])
    y = np.zeros(m)
    y[up] += best.ineqlin.marginals[: up.sum()]
    y[low] -= best.ineqlin.marginals[up.sum() :]
    return best.fun, y


def infeasible_systems(count, m=5, n=4):
    rng = np.random.default_rng(11)
    while count:
        A = rng.normal(size=(m, n))
        rl, ru = bounds_of_all_kinds(rng, m, rng.normal(size=m) * 2)
        l, u = bounds_of_all_kinds(rng, n, rng.normal(size=n))
        violation, y = least_violation(A, rl, ru, l, u)
        if violation > 1e-3:
            count -= 1
            yield (
                {"c": rng.normal(size=n), "A": A, "row_lower": rl, "row_upper": ru, "lower": l, "upper": u},
                violation,
                y,
            )


def test_rays_of_60_infeasible_systems_are_accepted_and_their_mirror_is_not():
    with jax.enable_x64(True):
        judge = jax.jit(lambda lp, x, y: lp.rays(Pair(x, y)))
        for data, violation, y in infeasible_systems(60):
            lp, nowhere = make(data), jnp.zeros(4)
            found = judge(lp, nowhere, jnp.asarray(y))
            assert bool(found.primal_infeasible)
            assert not bool(judge(lp, nowhere, jnp.asarray(-y)).primal_infeasible)
            # The value of the ray is the least total violation, up to the scale that the ray was brought to.
            dy = np.asarray(found.ray.y)
            z = -data["A"].T @ dy
            q = finite(data["row_lower"]) @ plus(dy) - finite(data["row_upper"]) @ plus(-dy)
            q += finite(data["lower"]) @ plus(z) - finite(data["upper"]) @ plus(-z)
            scale = abs(dy).max() / abs(y).max()
            assert q == pytest.approx(violation * scale, rel=1e-6)


def test_no_direction_proves_a_feasible_system_infeasible():
    rng = np.random.default_rng(12)
    directions = jnp.asarray(rng.normal(size=(300, 5)), jnp.float32)
    with jax.enable_x64(True):
        judge = jax.jit(jax.vmap(lambda lp, x, y: lp.rays(Pair(x, y)), in_axes=(None, 0, 0)))
        for seed in range(10):
            data, _ = random_lp(seed, m=5, n=4)
            found = judge(make(data), jnp.zeros((300, 4)), directions.astype(jnp.float64))
            assert not np.any(found.primal_infeasible)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_no_proof(dtype):
    """Feasible systems without interior have directions of value exactly 0; their rounding must not count."""
    rng = np.random.default_rng(13)
    with jax.enable_x64(True):
        judge = jax.jit(jax.vmap(lambda lp, x, y: lp.rays(Pair(x, y)), in_axes=(None, 0, 0)))
        for _ in range(20):
            A = np.abs(rng.normal(size=(5, 8))).astype(dtype)
            b = (A @ np.ones(8, dtype)).astype(dtype)  # every row at its largest value over the box
            lp = pdopt.LinearProgram(rng.normal(size=8), A, b, np.full(5, INF), np.zeros(8), np.ones(8), dtype=dtype)
            directions = jnp.asarray(np.abs(rng.normal(size=(100, 5))), dtype)
            assert not np.any(judge(lp, jnp.zeros((100, 8), dtype), directions).primal_infeasible)
            # c'dx = 0 along a line of the recession cone: no descent either.
            c = np.array([0.1, 0.2, -0.3] + [0.0] * 5)
            free = pdopt.LinearProgram(c, np.zeros((5, 8)), b, np.full(5, INF), dtype=dtype)
            line = jnp.asarray(rng.normal(size=(100, 1)) * ([1.0] * 8), dtype)
            assert not np.any(judge(free, line, jnp.zeros((100, 5), dtype)).dual_infeasible)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_descending_direction_is_a_ray_only_inside_the_recession_cone(dtype):
    data = {"c": [-1.0, 0.5], "A": [[1.0, -1.0]], "row_lower": [-INF], "row_upper": [2.0], "lower": [0.0, 0.0]}
    with jax.enable_x64(True):
        lp = make(data, dtype=dtype)
        direction = lambda x: lp.rays(Pair(jnp.asarray(x, dtype), jnp.zeros(1, dtype)))
        good = direction([3.0, 3.0])
        assert bool(good.dual_infeasible)
        assert not bool(good.primal_infeasible)
        np.testing.assert_array_equal(good.ray.x, [1.0, 1.0])  # largest entry 1
        assert not bool(direction([1.0, 0.5]).dual_infeasible)  # the row grows
        assert not bool(direction([1.0, 3.0]).dual_infeasible)  # the objective grows
        assert not bool(direction([-1.0, 3.0]).dual_infeasible)  # clipped to (0, 3)
        assert not bool(direction([0.0, 0.0]).dual_infeasible)
        bounded = make(data | {"upper": [1.0, 1.0]}, dtype=dtype)
        assert not bool(bounded.rays(Pair(jnp.ones(2, dtype), jnp.zeros(1, dtype))).dual_infeasible)


def test_what_is_dropped_from_z_counts_against_a_ray():
    # x free, x >= 1 and x <= 0 as rows: dy must be (1, -1) exactly for z = 0.
    with jax.enable_x64(True):
        lp = pdopt.LinearProgram([0.0], [[1.0], [1.0]], [1.0, -INF], [INF, 0.0])
        judge = lambda dy: bool(lp.rays(Pair(jnp.zeros(1), jnp.array(dy))).primal_infeasible)
        assert judge([1.0, -1.0])
        assert judge([1.0, -1.0 + RAY_TOLERANCE / 2])
        assert not judge([1.0, -1.0 + 3 * RAY_TOLERANCE])
        assert not judge([1.0, 0.0])
        assert not judge([-1.0, 1.0])


# --- sense and Lagrangian --------------------------------------------------------------------------------------------


def test_maximising_mirrors_minimising():
    data, x = random_lp(3)
    with jax.enable_x64(True):
        least = make(data)
        most = make(data | {"c": -data["c"], "offset": -data["offset"]}, maximise=True)
        pair = Pair(jnp.asarray(x), jnp.arange(4.0))
        assert most.minimised().maximise is False
        assert least.minimised() is least
        for a, b in zip(jax.tree.leaves(most.minimised()), jax.tree.leaves(least)):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(most.flip(most.flip(pair)).y, pair.y)  # its own inverse
        assert float(most.objective(pair.x)) == -float(least.objective(pair.x))
        ours, theirs = most.optimality(most.flip(pair)), least.optimality(pair)
        np.testing.assert_array_equal(np.array(ours.residuals), np.array(theirs.residuals))
        np.testing.assert_array_equal(ours.proof, -theirs.proof)
        ray = most.certificate(theirs.proof, pair)
        np.testing.assert_array_equal(ray.ray.y, -pair.y)
        np.testing.assert_array_equal(ray.z, -theirs.proof)


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_the_gradient_of_the_lagrangian_is_the_envelope(storage):
    data, x = random_lp(5)
    rng = np.random.default_rng(5)
    y, z = rng.normal(size=4), rng.normal(size=6)
    with jax.enable_x64(True):
        row, column = np.nonzero(data["A"])
        A = Dense.make(data["A"], jnp.float64)
        if storage == "sparse":
            A = Sparse.from_entries(row, column, data["A"][row, column], (4, 6), jnp.float64)
        lp = make(data | {"A": A})
        slope = jax.grad(
            lambda lp: lp.lagrangian(Pair(jnp.asarray(x), jnp.asarray(y)), jnp.asarray(z)), allow_int=True
        )(lp)
    expected = {
        "c": x,
        "offset": 1.0,
        "row_lower": np.where(np.isfinite(data["row_lower"]), plus(y), 0),
        "row_upper": np.where(np.isfinite(data["row_upper"]), -plus(-y), 0),
        "lower": np.where(np.isfinite(data["lower"]), plus(z), 0),
        "upper": np.where(np.isfinite(data["upper"]), -plus(-z), 0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(slope, name), value, atol=1e-14, err_msg=name)
    outer = -np.outer(y, x)
    np.testing.assert_allclose(slope.A.entries, outer if storage == "dense" else outer[row, column], atol=1e-14)
