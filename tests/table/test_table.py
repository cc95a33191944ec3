"""Every method on every problem: solved and checked against an independent reference, or refused with a reason.

A method joins by a line in METHODS (what it accepts, and to which tolerance in float64 and float32), a problem by a
line in PROBLEMS (how it is made, and who else solves it). References: HiGHS (through SciPy) for linear programs and
games, a KKT system in NumPy for equality rows, Clarabel for the rest.

How close an answer must be follows from its residuals, not from habit. For a convex program with reference (x*, y*,
z*), value f*, and a pair with absolute residuals (primal, dual, gap):

    -|(y*, z*)| primal  <=  P - f*  <=  gap + |x*| dual         (weak duality, and the prices of what is broken)
    lambda |x - x*|^2 / 2  <=  gap + |x*| dual + |(y*, z*)| primal,      lambda the smallest eigenvalue of Q
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog

import pdopt
from pdopt.errors import UnsupportedProblem
from pdopt.rules.acceleration import Averaged, Plain, Relaxed
from pdopt.types import Pair, Status
from tests.problems.conic_family import by_clarabel as by_conic_clarabel
from tests.problems.conic_family import conic

INFINITE = np.inf


class Reference(NamedTuple):
    """What somebody else found: value, x, and the norm of all its multipliers."""

    value: float
    x: np.ndarray
    prices: float


# The problems: functions of a seed that give the keyword data of a problem, float64 NumPy.


def linear(seed: int) -> dict[str, Any]:
    """All kinds of rows and bounds, feasible by construction, bounded by its box."""
    rng = np.random.default_rng(seed)
    m, n = 6, 9
    A, inside = rng.standard_normal((m, n)), rng.uniform(0.2, 0.8, n)
    low, high = A @ inside - rng.uniform(0, 1, m), A @ inside + rng.uniform(0, 1, m)
    low[0] = high[0] = A[0] @ inside
    low[1], high[2] = -INFINITE, INFINITE
    low[3], high[3] = -INFINITE, INFINITE
    return {
        "c": rng.standard_normal(n), "A": A, "row_lower": low, "row_upper": high,
        "lower": np.zeros(n), "upper": np.ones(n), "offset": 1.5,
    }  # fmt: skip


def game(seed: int) -> dict[str, Any]:
    return {"payoff": np.random.default_rng(seed).standard_normal((4, 3))}


def quadratic(seed: int) -> dict[str, Any]:
    """Strictly convex with all kinds of rows and bounds."""
    rng = np.random.default_rng(seed)
    data = linear(seed)
    n = data["c"].size
    M = rng.standard_normal((n, n))
    data["lower"][2], data["upper"][2], data["upper"][4] = -INFINITE, INFINITE, INFINITE
    return {**data, "Q": M @ M.T / n + np.eye(n)}


def equalities(seed: int) -> dict[str, Any]:
    data = quadratic(seed)
    rows = {"row_lower": data["A"] @ np.linspace(0, 1, 9), "row_upper": data["A"] @ np.linspace(0, 1, 9)}
    return {**data, **rows, "lower": np.full(9, -INFINITE), "upper": np.full(9, INFINITE)}


def maximised(seed: int) -> dict[str, Any]:
    data = equalities(seed)
    return {**data, "Q": -data["Q"], "maximise": True}


def semidefinite(seed: int) -> dict[str, Any]:
    """Curved in four directions only; the rows hold the rest, so the minimiser is still unique."""
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((9, 4))
    return {**equalities(seed), "Q": M @ M.T}


def entropic(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.2, 1, 7), rng.uniform(0.2, 1, 5)
    return {
        "cost": rng.uniform(0, 1, (7, 5)), "a": a / a.sum(), "b": b / b.sum(), "regulariser": pdopt.Entropy(0.05),
    }  # fmt: skip


def by_scaling(data: dict[str, Any]) -> Reference:
    """The textbook iteration, long enough for float64; the prices are the potentials."""
    C, a, b, epsilon = data["cost"], data["a"], data["b"], 0.05
    K = np.exp(-C / epsilon)
    v = np.ones_like(b)
    for _ in range(20_000):
        u = 1 / (K @ (b * v))
        v = 1 / (K.T @ (a * u))
    T = np.outer(a * u, b * v) * K
    value = (C * T).sum() + epsilon * (T * np.log(T / np.outer(a, b))).sum()
    return Reference(value, T, epsilon * float(np.linalg.norm(np.log(np.concatenate([u, v])))))


def by_highs(data: dict[str, Any]) -> Reference:
    A, low, high = data["A"], data["row_lower"], data["row_upper"]
    up, down = np.isfinite(high), np.isfinite(low)
    rows, sides = np.vstack([A[up], -A[down]]), np.concatenate([high[up], -low[down]])
    found = linprog(data["c"], rows, sides, bounds=np.stack([data["lower"], data["upper"]], 1), method="highs")
    assert found.status == 0
    prices = [found.ineqlin.marginals, found.lower.marginals, found.upper.marginals]
    return Reference(found.fun + data["offset"], found.x, float(np.linalg.norm(np.concatenate(prices))))


def by_highs_as_game(data: dict[str, Any]) -> Reference:
    """min v subject to A'x <= v, x in the simplex."""
    A = data["payoff"]
    m, n = A.shape
    found = linprog(
        np.r_[np.zeros(m), 1.0], np.c_[A.T, -np.ones(n)], np.zeros(n), np.c_[np.ones((1, m)), 0.0], [1.0],
        bounds=[(0, None)] * m + [(None, None)], method="highs",
    )  # fmt: skip
    assert found.status == 0
    return Reference(found.fun, found.x[:m], 1.0)


def by_kkt(data: dict[str, Any]) -> Reference:
    Q, A, m = data["Q"], data["A"], data["A"].shape[0]
    matrix = np.block([[Q, -A.T], [A, np.zeros((m, m))]])
    x, y = np.split(np.linalg.solve(matrix, np.r_[-data["c"], data["row_lower"]]), [Q.shape[0]])
    return Reference(x @ Q @ x / 2 + data["c"] @ x + data["offset"], x, float(np.linalg.norm(y)))


def by_clarabel(data: dict[str, Any]) -> Reference:
    n = data["c"].size
    rows = np.vstack([data["A"], np.eye(n)])
    low, high = np.r_[data["row_lower"], data["lower"]], np.r_[data["row_upper"], data["upper"]]
    up, down = np.isfinite(high), np.isfinite(low)
    G, h = np.vstack([rows[up], -rows[down]]), np.r_[high[up], -low[down]]
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.tol_gap_rel, settings.tol_gap_abs, settings.tol_feas = False, 1e-10, 1e-10, 1e-10
    cones = [clarabel.NonnegativeConeT(h.size)]
    found = clarabel.DefaultSolver(
        sp.csc_matrix(np.triu(data["Q"])), data["c"], sp.csc_matrix(G), h, cones, settings
    ).solve()
    x = np.array(found.x)
    return Reference(found.obj_val + data["offset"], x, float(np.linalg.norm(found.z)))


def as_nonlinear(**data: Any) -> pdopt.NonlinearProgram:
    """The quadratic program with equality rows, written as functions."""
    dtype = data.pop("dtype")
    with jax.enable_x64(dtype == np.float64):
        numbers = tuple(jnp.asarray(data[name], dtype) for name in ("Q", "c", "A", "row_lower", "offset"))
        return pdopt.NonlinearProgram(curved, jnp.zeros_like(numbers[1]), numbers, equality=rows)


def curved(x: Any, Q: Any, c: Any, A: Any, b: Any, offset: Any) -> Any:
    return x @ Q @ x / 2 + c @ x + offset


def rows(x: Any, Q: Any, c: Any, A: Any, b: Any, offset: Any) -> Any:
    return b - A @ x


@dataclass(frozen=True)
class Case:
    make: Callable[..., Any]
    data: Callable[[int], dict[str, Any]]
    reference: Callable[[dict[str, Any]], Reference]


PROBLEMS = {
    "linear": Case(pdopt.LinearProgram, linear, by_highs),
    "game": Case(pdopt.MatrixGame, game, by_highs_as_game),
    "quadratic": Case(pdopt.QuadraticProgram, quadratic, by_clarabel),
    "equalities": Case(pdopt.QuadraticProgram, equalities, by_kkt),
    "maximised": Case(pdopt.QuadraticProgram, maximised, by_kkt),
    "semidefinite": Case(pdopt.QuadraticProgram, semidefinite, by_kkt),
    "entropic": Case(pdopt.Transport, entropic, by_scaling),
    "conic": Case(pdopt.ConicProgram, conic, lambda data: Reference(*by_conic_clarabel(data))),
    "nonlinear": Case(as_nonlinear, equalities, by_kkt),
}


@dataclass(frozen=True)
class Entry:
    """A method, what it accepts, and the tolerances it is asked for (those of slow means are loose)."""

    method: Any
    accepts: tuple[str, ...]
    wide: float = 1e-6
    narrow: float = 1e-4

    def tolerance(self, dtype: Any) -> float:
        return self.wide if dtype == np.float64 else self.narrow


FIRST_ORDER = ("linear", "game")
STRICT = ("quadratic", "equalities", "maximised")
CURVED = (*STRICT, "semidefinite")
PLANES = ("equalities", "maximised", "semidefinite")
METHODS = {
    "PDHG": Entry(pdopt.PDHG(), (*FIRST_ORDER, *CURVED, "conic")),
    "PDHG constant": Entry(pdopt.PDHG.constant(), (*FIRST_ORDER, *CURVED, "conic")),
    "PDHG averaged": Entry(pdopt.PDHG.averaged(), (*FIRST_ORDER, *CURVED, "conic")),
    "PDHG relaxed": Entry(pdopt.PDHG(acceleration="relaxed"), (*FIRST_ORDER, *CURVED, "conic")),
    "PDHG plain": Entry(pdopt.PDHG(acceleration="plain"), (*FIRST_ORDER, *CURVED, "conic")),
    "PDHG lean": Entry(pdopt.PDHG.lean(), (*FIRST_ORDER, *CURVED, "conic")),
    "AverageSpectrum": Entry(pdopt.AverageSpectrum(), (*FIRST_ORDER, "conic")),
    "DualAscent": Entry(pdopt.DualAscent(), STRICT),
    "DualAscent relaxed": Entry(pdopt.DualAscent(acceleration=Relaxed(1.5)), STRICT),
    "DualAscent averaged": Entry(pdopt.DualAscent(acceleration=Averaged()), STRICT),
    "AugmentedLagrangian": Entry(pdopt.AugmentedLagrangian(), (*PLANES, "nonlinear")),
    "AugmentedLagrangian fixed": Entry(pdopt.AugmentedLagrangian(penalty=5.0, growth=1.0), (*PLANES, "nonlinear")),
    "AugmentedLagrangian pieces": Entry(pdopt.AugmentedLagrangian(inner=pdopt.PiecewiseNewton()), CURVED),
    "ExactAugmentedLagrangian direct": Entry(pdopt.ExactAugmentedLagrangian(), ("nonlinear",)),
    "ExactAugmentedLagrangian minres": Entry(pdopt.ExactAugmentedLagrangian(linear=pdopt.MinRes()), ("nonlinear",)),
    "ExactAugmentedLagrangian sketch": Entry(
        pdopt.ExactAugmentedLagrangian(linear=pdopt.BlockSketch(block=16)), ("nonlinear",)
    ),
    "Sinkhorn": Entry(pdopt.Sinkhorn(), ("entropic",)),
    "Sinkhorn plain": Entry(pdopt.Sinkhorn(omega=1.0, anneal=False, mode="streamed"), ("entropic",)),
    # Their solved side is in tests/methods: k-sparse plans are operators, and a balancing is judged by integer loads.
    "SemiDual": Entry(pdopt.SemiDual(), ()),
    "Dual": Entry(pdopt.Dual(), ()),
    "Balancer": Entry(pdopt.Balancer(), ()),
    # Bilevel programs are judged by their own certificate: tests/methods/test_bilevel.py.
    "LVHBA": Entry(pdopt.LVHBA(), ()),
    "ImplicitGradient": Entry(pdopt.ImplicitGradient(), ()),
    "ValuePenalty": Entry(pdopt.ValuePenalty(), ()),
    "MirrorDescent": Entry(pdopt.MirrorDescent(), ("game",), 1e-3, 1e-3),
    "MirrorDescent Euclidean": Entry(pdopt.MirrorDescent(move=pdopt.Euclidean()), ("game",), 1e-3, 1e-3),
    "MirrorDescent last": Entry(pdopt.MirrorDescent(acceleration=Plain()), ("game",), 1e-4, 1e-4),
    "MirrorDescent best response": Entry(pdopt.MirrorDescent.best_response(), ("game",), 1e-2, 1e-2),
}

ALL = [(method, problem) for method in METHODS for problem in PROBLEMS]
SOLVED = [pair for pair in ALL if pair[1] in METHODS[pair[0]].accepts]
REFUSED = [pair for pair in ALL if pair[1] not in METHODS[pair[0]].accepts]
# One variant a class and problem: what jit, vmap and a warm start go through is the same for the others.
CLASSES = [
    pair for pair in SOLVED if pair[0] in ("PDHG", "DualAscent", "AugmentedLagrangian", "MirrorDescent", "Sinkhorn")
]
# A nonlinear program takes seconds to compile: what it shares with `tests/test_minimise.py` is slow here.
# PDHG on quadratic and conic programs is in tests of their own: one of each is enough here.
REPEATED = [
    pair for pair in SOLVED
    if pair[0].startswith(("PDHG", "AverageSpectrum", "AugmentedLagrangian p")) and pair[1] in (*CURVED, "conic")
    and pair not in (("PDHG", "quadratic"), ("PDHG", "conic"), ("AugmentedLagrangian pieces", "quadratic"))
]  # fmt: skip
MARKED = [
    pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] in ("nonlinear", "conic") or pair in REPEATED else [])
    for pair in CLASSES
]
LIMIT = 200_000
NONLINEAR = pdopt.NonlinearProgram
# In float32 the variants of a class are slow tests: they share with it all but a few lines that float64 goes through.
RUNS = [
    pytest.param(
        *pair, dtype, id="-".join((*pair, dtype.__name__)),
        marks=[pytest.mark.slow] if (dtype is np.float32) + (" " in pair[0]) + (pair[1] in ("nonlinear", "conic")) > 1
        or pair in REPEATED else [],
    )
    for pair in SOLVED
    for dtype in (np.float64, np.float32)
]  # fmt: skip


def build(problem: str, seed: int, dtype: Any) -> Any:
    case = PROBLEMS[problem]
    return case.make(**case.data(seed), dtype=dtype)


def plain(x: Any) -> np.ndarray:
    """A solution's x as an array: a plan is an operator."""
    return np.asarray(x.todense() if hasattr(x, "todense") else x)


def zeros(problem: Any) -> Pair:
    return jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), problem.pair_shapes())


def near(solution: Any, problem: Any, data: dict[str, Any], reference: Reference, dtype: Any) -> None:
    """The inequalities at the head of this file; rounding may add what adding up the objective costs."""
    residuals = jax.tree.map(float, solution.residuals)
    sense = problem.sense
    value, dual_value = sense * float(solution.objective), sense * float(solution.dual_objective)
    best = sense * reference.value
    size = 1 + abs(value) + np.linalg.norm(reference.x) + reference.prices
    rounding = 100 * float(jnp.finfo(dtype).eps) * size + 1e-8 * size  # what the references themselves are accurate to
    # Nonlinear programs are judged by the largest entry: of k entries the Euclidean norm is sqrt(k) times that at most.
    spread = lambda part: np.sqrt(sum(map(np.size, jax.tree.leaves(part)))) if isinstance(problem, NONLINEAR) else 1
    below = spread(solution.y) * reference.prices * residuals.primal_absolute + rounding
    off = spread(solution.x) * np.linalg.norm(reference.x) * residuals.dual_absolute
    above = residuals.gap_absolute + off + rounding
    assert -below <= value - best <= above
    assert -(above + below) <= dual_value - best <= above
    if "Q" in data:
        curvature = np.linalg.eigvalsh(sense * data["Q"])[0]
        distance = np.linalg.norm(np.asarray(solution.x, np.float64) - reference.x)
        assert curvature * distance**2 / 2 <= above + below + 1e-12 * size


@pytest.mark.parametrize(("method", "problem", "dtype"), RUNS)
def test_solves(method: str, problem: str, dtype: Any) -> None:
    entry, case = METHODS[method], PROBLEMS[problem]
    data = case.data(1)
    built = build(problem, 1, dtype)
    tolerance = entry.tolerance(dtype)
    options = {"tolerance": tolerance, "max_iterations": LIMIT, "gradient": "none"}
    solution = pdopt.solve(built, entry.method, start=zeros(built), **options)
    assert solution.reason is Status.OPTIMAL, (solution.reason, int(solution.iterations), solution.residuals)
    assert float(built.residuals(solution.pair).error) <= tolerance * 1.01
    assert {leaf.dtype for leaf in jax.tree.leaves(solution.pair)} == {np.dtype(dtype)}
    near(solution, built, data, case.reference(data), dtype)
    # A warm start at the solution takes no step, and comes back as it was.
    again = pdopt.solve(built, entry.method, start=solution, **{**options, "tolerance": 2 * tolerance})
    assert int(again.iterations) == 0
    assert again.reason is Status.OPTIMAL
    with jax.enable_x64(dtype == np.float64):
        x, same = plain(solution.x), plain(again.x)
    rounding = 10 * float(jnp.finfo(dtype).eps) * (1 + np.abs(x).max())
    np.testing.assert_allclose(same, x, rtol=0, atol=rounding)


@pytest.mark.parametrize(("method", "problem"), REFUSED)
def test_refuses(method: str, problem: str) -> None:
    with pytest.raises(
        UnsupportedProblem, match=r"view|definite|equality|free variables|expected Balancing|solves a BilevelProgram"
    ):
        pdopt.solve(build(problem, 1, np.float64), METHODS[method].method)


@pytest.mark.parametrize(("method", "problem"), MARKED)
def test_jit_and_vmap(method: str, problem: str) -> None:
    """A batch of three, compiled from outside, against one solve after the other; uneven members stay unharmed."""
    entry = METHODS[method]
    problems = [build(problem, seed, np.float64) for seed in (1, 2, 3)]
    with jax.enable_x64(True):
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
        options = {"tolerance": entry.wide, "max_iterations": LIMIT, "gradient": "none"}
        together = jax.jit(jax.vmap(lambda p: pdopt.solve(p, entry.method, **options)))(batch)
    for k, single in enumerate(problems):
        alone = pdopt.solve(single, entry.method, **options)
        assert int(together.status[k]) == int(alone.status) == Status.OPTIMAL
        # A batch rounds differently, which moves a stop by a check or, where a step or a restart is decided by a
        # comparison (PDHG), sends the run along another path of about the same length.
        counts = int(together.iterations[k]), int(alone.iterations)
        slack = max(entry.method.every, max(counts) // 2 if method == "PDHG" else 0)
        assert abs(counts[0] - counts[1]) <= slack, counts
        with jax.enable_x64(True):
            member = jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf)[k], together.pair)
            x, expected = plain(member.x), plain(alone.x)
        assert float(single.residuals(Pair(*member)).error) <= entry.wide * 1.01
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(x, expected, rtol=0, atol=20 * entry.wide**0.5 * scale)


@pytest.mark.parametrize(("method", "problem"), MARKED)
def test_steps_without_jit(method: str, problem: str) -> None:
    """Three steps in plain Python and compiled are the same up to rounding."""
    chosen = METHODS[method].method
    with jax.enable_x64(True):
        built = build(problem, 1, np.float64).minimised()
        view = chosen.view(built)

        def run() -> Any:
            state = chosen.init(view, view.start())
            for _ in range(3):
                state, visit = chosen.step(view, state)
            return view.back(chosen.pair(view, chosen.check(view, state, visit), visit))

        compiled = jax.jit(run)()
        with jax.disable_jit():
            plain = run()
        for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(plain)):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_every_pair_is_in_the_table() -> None:
    assert len(SOLVED) + len(REFUSED) == len(METHODS) * len(PROBLEMS)
    assert {problem for _, problem in SOLVED} == set(PROBLEMS), "a problem that no method solves"
    public = {
        name
        for name in pdopt.__all__
        if hasattr(getattr(pdopt, name), "view") and hasattr(getattr(pdopt, name), "init")
    }
    assert public == {type(entry.method).__name__ for entry in METHODS.values()}, "a public method outside the table"
