"""A quadratic program for the methods of multipliers: both inner problems solved exactly, by linear algebra.

    minimiser(y)                  Q x = R'y - c                                      Q positive definite
    augmented_minimiser(y, rho)   (Q + rho A'A) x = A'y + rho A'b - c                rows A x = b only, no bounds

Bounds on x are rows too: `R = [A; M]` with M the rows of the identity that have a finite bound (0 for the others),
and y holds one signed multiplier for each. So the Lagrangian is a smooth quadratic in x, and the sides rl, ru, l and u
are held by the move. With an inequality row the *augmented* Lagrangian would be piecewise quadratic in
x: `quadratic_pieces.py` minimises that, and `require_equalities` refuses such problems here.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from pdopt.errors import UnsupportedProblem
from pdopt.geometry.moves import Interval
from pdopt.operators.convert import dense
from pdopt.problems.checks import concrete
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.runtime.precision import precision_scope
from pdopt.types import Pair, record


@record
class QuadraticConstrained:
    """`min x'Qx/2 + c'x` with rows `R x` in intervals; dense, `O(n^3)` once and `O(n^2)` a step.

    Attributes:
        Q: `(n, n)`; c, lower, upper: `(n,)`; offset: a number.
        rows: R, `(m + n, n)`; sides: the move that holds their intervals.
        factor: lower Cholesky factor of Q; NaN where Q is not positive definite, which then reaches the status.
        equalities: whether every row is an equality and no variable is bounded.
    """

    Q: Any
    c: Any
    offset: Any
    rows: Any
    sides: Interval
    factor: Any
    equalities: Any

    @staticmethod
    def make(qp: QuadraticProgram) -> "QuadraticConstrained":
        """The view of a minimisation."""
        Q, A = dense(qp.Q), dense(qp.A)
        bounded = jnp.isfinite(qp.lower) | jnp.isfinite(qp.upper)
        rows = jnp.concatenate([A, jnp.diag(bounded.astype(Q.dtype))])
        sides = Interval(jnp.concatenate([qp.row_lower, qp.lower]), jnp.concatenate([qp.row_upper, qp.upper]))
        equalities = jnp.all(qp.row_lower == qp.row_upper) & ~jnp.any(bounded)
        return QuadraticConstrained(Q, qp.c, qp.offset, rows, sides, jnp.linalg.cholesky(Q), equalities)

    @property
    def own(self) -> int:
        """m: the rows of the user's problem; those after it are bounds."""
        return self.rows.shape[0] - self.c.shape[0]

    def start(self) -> Pair:
        """Zeros."""
        return Pair(jnp.zeros_like(self.c), jnp.zeros(self.rows.shape[0], self.c.dtype))

    def into(self, pair: Pair) -> Pair:
        """A pair of the problem; multipliers of bounds are the reduced costs, all with signs that their rows allow."""
        x, y = pair
        if y.shape[0] == self.own:
            reduced = self.c + self.Q @ x - y @ self.rows[: self.own]
            y = jnp.concatenate([y, reduced])
        low, high = jnp.isfinite(self.sides.row_lower), jnp.isfinite(self.sides.row_upper)
        return Pair(x, jnp.clip(y, jnp.where(high, -jnp.inf, 0), jnp.where(low, jnp.inf, 0)))

    def back(self, pair: Pair) -> Pair:
        """The pair without the multipliers of the bounds, which the problem finds again as reduced costs."""
        return Pair(pair.x, pair.y[: self.own])

    def objective(self, x: Any) -> Any:
        """`x'Qx/2 + c'x + offset`."""
        return x @ (self.Q @ x) / 2 + self.c @ x + self.offset

    def violation(self, x: Any) -> Any:
        """`-R x`; the intervals are held by the move (design, section 7)."""
        return -(self.rows @ x)

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """The prox of the two-sided rows at `y + step v`; for an equality `y + step (b - a'x)`."""
        return self.sides(y, v, step)

    def minimiser(self, y: Any) -> Any:
        """`argmin_x x'Qx/2 + c'x - y'R x`, from the factor of Q."""
        return cho_solve((self.factor, True), y @ self.rows - self.c)

    def augmented(self, x: Any, y: Any, rho: Any) -> Any:
        """`f(x) + penalty(y, v(x), rho)`; for equalities `f + y'(b - Ax) + rho |b - Ax|^2 / 2`."""
        return self.objective(x) + self.sides.penalty(y, self.violation(x), rho)

    def augmented_minimiser(self, y: Any, rho: Any) -> Any:
        """The argmin over x of `augmented(x, y, rho)`, for equalities; NaN for data that have anything else."""
        A, b, y = self.rows[: self.own], self.sides.row_lower[: self.own], y[: self.own]
        factor = jnp.linalg.cholesky(self.Q + rho * A.T @ A)
        x = cho_solve((factor, True), (y + rho * b) @ A - self.c)
        return jnp.where(self.equalities, x, jnp.nan)

    def smoothness(self) -> Any:
        """`|R Q^-1 R'|_2`: the dual gradient `-R minimiser(y)` is Lipschitz with this constant."""
        half = solve_triangular(self.factor, self.rows.T, lower=True)
        return jnp.max(jnp.linalg.eigvalsh(half @ half.T), initial=0)

    def stiffness(self, x: Any = None) -> Any:
        """A penalty at which the rows weigh ten times the objective: `10 |Q|_F / |A|_F^2`, 1 where one of them is 0."""
        curvature, weight = jnp.linalg.norm(self.Q), jnp.sum(self.rows[: self.own] ** 2)
        both = (curvature > 0) & (weight > 0)
        return jnp.where(both, 10 * curvature / jnp.where(both, weight, 1), 1)


def require_strictly_convex(qp: QuadraticProgram) -> None:
    """Raise `UnsupportedProblem` unless Q is positive definite (negative for a maximisation); traced data pass."""
    least = _least_eigenvalue(qp, with_rows=False)
    if least is not None:
        raise UnsupportedProblem(
            f"Q is not definite (smallest eigenvalue {least:.3g}), so the Lagrangian of this QuadraticProgram has no "
            "unique minimiser in x; AugmentedLagrangian needs only Q + A'A definite"
        )


def require_equalities(qp: QuadraticProgram) -> None:
    """Raise `UnsupportedProblem` unless all rows are equalities, no variable is bounded and Q + A'A is definite."""
    low, high = concrete(qp.row_lower), concrete(qp.row_upper)
    if low is not None and high is not None and (low != high).any():
        at = int(np.argmax(low != high))
        raise UnsupportedProblem(
            f"row {at} is {low[at]:g} <= a'x <= {high[at]:g}; the augmented Lagrangian takes equality rows only here, "
            "as an exact minimiser for inequality rows is missing; inner=PiecewiseNewton() takes them, and DualAscent"
        )
    for name, absent in (("lower", -np.inf), ("upper", np.inf)):
        bound = concrete(getattr(qp, name))
        if bound is not None and (bound != absent).any():
            at = int(np.argmax(bound != absent))
            raise UnsupportedProblem(
                f"{name} is {bound[at]:g} at index {at}; the augmented Lagrangian takes free variables only here, as "
                "an exact minimiser within bounds is missing; inner=PiecewiseNewton() takes them, and DualAscent"
            )
    least = _least_eigenvalue(qp, with_rows=True)
    if least is not None:
        raise UnsupportedProblem(
            f"Q + A'A is singular (smallest eigenvalue {least:.3g}), so the augmented Lagrangian has no unique "
            "minimiser in x"
        )


def _least_eigenvalue(qp: QuadraticProgram, with_rows: bool) -> float | None:
    """The smallest eigenvalue of Q (of Q + A'A, rows scaled to the size of Q) where it is not clearly positive."""
    with precision_scope(qp):
        Q, A = concrete(dense(qp.Q)), concrete(dense(qp.A))
    if Q is None or A is None or not Q.size:
        return None
    matrix, eps = qp.sense * Q.astype(np.float64), np.finfo(Q.dtype).eps
    if with_rows:
        A = A.astype(np.float64)
        size = max(np.sum(A * A), np.finfo(np.float64).tiny)
        matrix = matrix + A.T @ A * (np.linalg.norm(Q) or 1.0) / size
    values = np.linalg.eigvalsh(matrix)
    return float(values[0]) if values[0] <= 10 * eps * len(values) * max(values[-1], 0) else None
