"""Methods that theory says coincide, run beside each other: ten iterates equal to 1e-12 in float64.

Each named method against a plain NumPy loop or against another method with settings that make both the same; and three
mutants (theta, the sign of the violation, the order of the halves), each of which must break an equality.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.geometry import Entropic, Euclidean, Reals, Simplex
from pdopt.operators.scaling import Scaling
from pdopt.rules.acceleration import Plain
from pdopt.rules.saddle import Parts, advance, respond, row, saddle_step
from pdopt.rules.stepsize import ConstantStep
from pdopt.types import Memory, Pair

TEN = 10
UNSCALED = Scaling(ruiz=0, pock_chambolle=False, bound_objective=False)


def close(a: Any, b: Any) -> None:
    """Equal to 1e-12 of their size: rounding of ten steps with data of size 1."""
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * (1 + np.abs(np.asarray(b)).max()))


def iterates(method: Any, problem: Any, start: Pair | None = None) -> list[Pair]:
    """The pair after each of ten steps, in the problem's units; checks are left out."""
    with jax.enable_x64(True):
        view = method.view(problem)
        state = method.init(view, view.start() if start is None else view.into(start))
        found = []
        for _ in range(TEN):
            state, visit = method.step(view, state)
            pair = visit.after
            pair = Pair(pair.x.point, pair.y) if hasattr(pair.x, "point") else pair
            found.append(jax.tree.map(np.asarray, view.back(pair)))
        return found


def quadratic_data(seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    M, A = rng.standard_normal((6, 6)), rng.standard_normal((3, 6))
    return M @ M.T / 6 + np.eye(6), rng.standard_normal(6), A, rng.standard_normal(3)


def equality_program(Q: Any, c: Any, A: Any, b: Any) -> pdopt.QuadraticProgram:
    return pdopt.QuadraticProgram(Q, c, A, b, b, dtype=jnp.float64)


def payoff(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 3))


def test_theta_0_with_an_exact_primal_is_dual_ascent() -> None:
    """`x = Q^-1 (A'y - c)`, `y' = y + s (b - A x)`, written out in NumPy."""
    Q, c, A, b = quadratic_data()
    step, y = 0.1, np.zeros(3)
    for pair in iterates(pdopt.DualAscent(stepsize=step), equality_program(Q, c, A, b)):
        x = np.linalg.solve(Q, A.T @ y - c)
        y = y + step * (b - A @ x)
        close(pair.x, x)
        close(pair.y, y)


def test_dual_ascent_on_two_sided_rows_is_proximal_gradient_on_the_dual() -> None:
    """The move of an interval is soft thresholding of the unconstrained step towards it."""
    Q, c, A, b = quadratic_data()
    low, high = b - 0.1, b + 0.2
    program = pdopt.QuadraticProgram(Q, c, A, low, high, dtype=jnp.float64)
    step, y = 0.1, np.zeros(3)
    for pair in iterates(pdopt.DualAscent(stepsize=step), program):
        x = np.linalg.solve(Q, A.T @ y - c)
        y = y + step * (np.clip(A @ x - y / step, low, high) - A @ x)
        close(pair.x, x)
        close(pair.y, y)


def test_bounds_are_rows_to_dual_ascent() -> None:
    """Bounds on x, and the same bounds written as rows of A, give the same x."""
    Q, c, A, b = quadratic_data()
    low, high = np.full(6, -0.2), np.full(6, 0.3)
    inside = pdopt.QuadraticProgram(Q, c, A, b, b, low, high, dtype=jnp.float64)
    rows = np.vstack([A, np.eye(6)])
    written = pdopt.QuadraticProgram(Q, c, rows, np.r_[b, low], np.r_[b, high], dtype=jnp.float64)
    zero = Pair(np.zeros(6), np.zeros(9))
    method = pdopt.DualAscent(stepsize=0.1)
    # A start given by the user has the reduced costs as multipliers of the bounds; the view's own start has zeros.
    for one, other in zip(iterates(method, inside), iterates(method, written, zero)):
        close(one.x, other.x)
        close(one.y, other.y[:3])


@pytest.mark.parametrize("rho", [0.3, 10.0])
def test_augmented_lagrangian_is_dual_ascent_on_the_penalised_objective(rho: float) -> None:
    """`f + rho/2 |Ax - b|^2` has Q + rho A'A and c - rho A'b; the step is rho."""
    Q, c, A, b = quadratic_data()
    penalised = equality_program(Q + rho * A.T @ A, c - rho * A.T @ b, A, b)
    one = iterates(pdopt.AugmentedLagrangian(penalty=rho, growth=1.0), equality_program(Q, c, A, b))
    other = iterates(pdopt.DualAscent(stepsize=rho), penalised)
    for a, d in zip(one, other):
        close(a.x, d.x)
        close(a.y, d.y)


def test_augmented_lagrangian_is_the_proximal_point_method_on_the_dual() -> None:
    """`y' = argmax d(z) - |z - y|^2 / (2 rho)` with `d(z) = -(A'z - c)'Q^-1(A'z - c)/2 + b'z` (Rockafellar 1976)."""
    Q, c, A, b = quadratic_data()
    rho, y = 2.0, np.zeros(3)
    S = A @ np.linalg.solve(Q, A.T)
    for pair in iterates(pdopt.AugmentedLagrangian(penalty=rho, growth=1.0), equality_program(Q, c, A, b)):
        y = np.linalg.solve(S + np.eye(3) / rho, b + A @ np.linalg.solve(Q, c) + y / rho)
        close(pair.y, y)


def linear_data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    A, inside = rng.standard_normal((4, 6)), rng.uniform(0.2, 0.8, 6)
    row_lower, row_upper = A @ inside - 0.3, A @ inside + 0.4
    row_lower[0], row_upper[1] = -np.inf, np.inf
    row_upper[2] = row_lower[2]
    data = {"c": rng.standard_normal(6), "A": A, "row_lower": row_lower, "row_upper": row_upper}
    return {**data, "lower": np.zeros(6), "upper": np.ones(6)}


def numpy_pdhg(data: dict[str, np.ndarray], size: float, theta: float = 1.0, sign: float = 1.0) -> list[Pair]:
    """Chambolle and Pock's algorithm as in the linear spec, section 3, with tau = sigma = size."""
    c, A = data["c"], data["A"]
    x, y, found = np.zeros(6), np.zeros(4), []
    for _ in range(TEN):
        new = np.clip(x - size * (c - A.T @ y), data["lower"], data["upper"])
        s = y / size - sign * A @ (new + theta * (new - x))
        x, y = new, size * (s - np.clip(s, -data["row_upper"], -data["row_lower"]))
        found.append(Pair(x, y))
    return found


def pdhg_iterates(data: dict[str, np.ndarray]) -> tuple[list[Pair], float]:
    """Ten plain steps of PDHG with tau = sigma, and that size."""
    method = pdopt.PDHG(acceleration=Plain(), stepsize=ConstantStep(1.0), scaling=UNSCALED)
    problem = pdopt.LinearProgram(**data, dtype=jnp.float64)
    with jax.enable_x64(True):
        view = method.view(problem)
        view = view.replace(balance=jnp.ones_like(view.balance))
        state = method.init(view, view.start())
        found = []
        for _ in range(TEN):
            state, visit = method.step(view, state)
            found.append(jax.tree.map(np.asarray, Pair(visit.after.x.point, visit.after.y)))
        return found, float(state.size.eta)


def test_pdhg_is_chambolle_and_pocks_algorithm() -> None:
    data = linear_data()
    ours, size = pdhg_iterates(data)
    for a, b in zip(ours, numpy_pdhg(data, size)):
        close(a.x, b.x)
        close(a.y, b.y)


@pytest.mark.parametrize("mutant", [{"theta": 0.0}, {"theta": -1.0}, {"sign": -1.0}])
def test_another_theta_or_sign_is_another_method(mutant: dict[str, float]) -> None:
    data = linear_data()
    ours, size = pdhg_iterates(data)
    wrong = numpy_pdhg(data, size, **mutant)
    assert max(np.abs(a.y - b.y).max() for a, b in zip(ours, wrong)) > 1e-3


def test_pdhg_on_a_game_is_extrapolated_projected_descent() -> None:
    """`MirrorDescent(move=Euclidean())` with theta = 1 and PDHG with the same constant steps."""
    game = pdopt.MatrixGame(payoff(), dtype=jnp.float64)
    size = 0.998 / np.linalg.norm(payoff(), 2)
    exact = pdopt.MirrorDescent(stepsize=size, move=Euclidean(), theta=1.0, acceleration=Plain())
    with jax.enable_x64(True):
        norm = float(exact.view(game).norm())
    pdhg = pdopt.PDHG(acceleration=Plain(), stepsize=ConstantStep(size * norm))
    for a, b in zip(iterates(exact, game), iterates(pdhg, game)):
        close(a.x, b.x)
        close(a.y, b.y)


def project(v: np.ndarray) -> np.ndarray:
    """The slow twin of the simplex projection: bisection on the threshold."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - (low + high) / 2, 0)


def softmax_step(p: np.ndarray, v: np.ndarray) -> np.ndarray:
    weights = p * np.exp(v)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("move", "step"),
    [(Euclidean(), lambda p, v: project(p + v)), (Entropic(), softmax_step)],
    ids=["ascent", "weights"],
)
@pytest.mark.parametrize("theta", [0.0, 1.0, -1.0])
def test_mirror_descent_is_projected_ascent_or_multiplicative_weights(
    move: Any, step: Callable[[np.ndarray, np.ndarray], np.ndarray], theta: float
) -> None:
    A, s = payoff(), 0.2
    x, y = np.full(4, 1 / 4), np.full(3, 1 / 3)
    method = pdopt.MirrorDescent(stepsize=s, move=move, theta=theta, acceleration=Plain())
    for pair in iterates(method, pdopt.MatrixGame(A, dtype=jnp.float64)):
        new = step(x, -s * A @ y)
        y = step(y, s * A.T @ (new + theta * (new - x)))
        x = new
        close(pair.x, x)
        close(pair.y, y)


def test_best_response_is_dual_ascent_of_the_game() -> None:
    """`d(y) = min_i (A y)_i` has the supergradient A'e_i at the best response; steps fall as 1/sqrt(k)."""
    A, y = payoff(), np.full(3, 1 / 3)
    found = iterates(pdopt.MirrorDescent.best_response(stepsize=0.3), pdopt.MatrixGame(A, dtype=jnp.float64))
    for k, pair in enumerate(found):
        best = np.eye(4)[np.argmin(A @ y)]
        y = softmax_step(y, 0.3 / np.sqrt(1 + k) * A.T @ best)
        close(pair.x, best)
        close(pair.y, y)


def trainer(parts: Parts, step: Any, pair: Pair, first: bool = True) -> list[Pair]:
    """`respond` on the present batch, then `advance` on it: the order of a trainer that measures x before it moves."""
    memory, found, before = Memory(), [], pair.x
    x, y = pair
    if first:
        x, memory = advance(parts, pair, memory)
    for _ in range(TEN):
        seen = jax.tree.map(lambda new, old: new + parts.theta * (new - old), x, before)
        y, memory = respond(parts, y, seen, step, memory)
        found.append(Pair(x, y))
        before = x
        x, memory = advance(parts, Pair(x, y), memory)
    return found


@pytest.mark.parametrize("theta", [0.0, 1.0, 0.5])
def test_a_trainers_order_gives_the_same_sequence(theta: float) -> None:
    """Half a beat later: the trainer's x is advanced once before its first response, against the same y."""
    Q, c, A, b = quadratic_data()
    with jax.enable_x64(True):
        Q, c, A, b = (jnp.asarray(v) for v in (Q, c, A, b))
        parts = row(lambda x, y: x - 0.1 * (Q @ x + c + A.T @ y), lambda x: A @ x - b, Euclidean(Reals()), theta=theta)
        pair = Pair(jnp.ones(6), jnp.zeros(3))
        late, skipped = trainer(parts, 0.2, pair), trainer(parts, 0.2, pair, first=False)
        for a in late:
            pair, _ = saddle_step(parts, 0.2, pair)
            close(a.x, pair.x)
            close(a.y, pair.y)
        # Without the first advance it is another sequence: the dual half sees the old point.
        assert float(jnp.abs(skipped[-1].y - pair.y).max()) > 1e-3


def test_the_order_of_the_halves_matters() -> None:
    """Moving y first and x after it, from the same pair, is the mutant with theta = -1: simultaneous in y."""
    Q, c, A, b = quadratic_data()
    with jax.enable_x64(True):
        Q, c, A, b = (jnp.asarray(v) for v in (Q, c, A, b))
        primal, violation = lambda x, y: x - 0.1 * (Q @ x + c + A.T @ y), lambda x: A @ x - b
        move = Euclidean(Reals())
        pair = swapped = Pair(jnp.ones(6), jnp.zeros(3))
        for _ in range(TEN):
            pair, _ = saddle_step(row(primal, violation, move), 0.2, pair)
            y = move(swapped.y, violation(swapped.x), 0.2)
            swapped = Pair(primal(swapped.x, y), y)
        assert float(jnp.abs(pair.y - swapped.y).max()) > 1e-3
        simultaneous, _ = saddle_step(row(primal, violation, move, theta=-1), 0.2, Pair(jnp.ones(6), jnp.zeros(3)))
        close(simultaneous.y, move(jnp.zeros(3), violation(jnp.ones(6)), 0.2))


@pytest.mark.parametrize("name", ["dual_ascent", "augmented_lagrangian"])
def test_a_multiplier_with_the_wrong_sign_never_gets_there(name: str) -> None:
    """With the violation negated every step goes down the dual function: the violation grows instead."""
    Q, c, A, b = quadratic_data()
    problem = equality_program(Q, c, A, b)
    with jax.enable_x64(True):
        if name == "dual_ascent":
            method, step = pdopt.DualAscent(), 0.05
            view = method.view(problem)
            parts = method.parts(view)
        else:
            method, step = pdopt.AugmentedLagrangian(penalty=1.0), 1.0
            view = method.view(problem)
            parts = method.parts(view, method.init(view, view.start()))
        right, wrong = view.start(), view.start()
        mutant = parts._replace(move=lambda y, v, s: y - (parts.move(y, v, s) - y))
        for _ in range(5 * TEN):
            right, _ = saddle_step(parts, step, right)
            wrong, _ = saddle_step(mutant, step, wrong)
        gap = lambda pair: float(jnp.linalg.norm(A @ pair.x - b))
        first = gap(saddle_step(parts, step, view.start())[0])
        assert gap(right) < 0.1 * first
        assert gap(wrong) > 10 * first


def test_simplex_moves_keep_pairs_in_their_sets() -> None:
    for move in (Euclidean(), Entropic()):
        for pair in iterates(pdopt.MirrorDescent(move=move), pdopt.MatrixGame(payoff(), dtype=jnp.float64)):
            with jax.enable_x64(True):
                assert float(Simplex().distance(pair.x)) < 1e-14
                assert float(Simplex().distance(pair.y)) < 1e-14
