"""Transport without a regulariser, a linear program: judged by a feasible plan and a proved bound.

    primal   the plan rounded to its marginals (`rounding.py`): feasible, so its cost is an upper bound
    dual     g_j = min_i (C_ij - f_i),  then  f_i = min_j (C_ij - g_j):   <f, a> + <g, b> is a lower bound for every f

The gap between the two is a certificate whatever the pair was; it says nothing of how far the pair itself is from its
marginals, which is rounded away.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.operators.dense import Dense
from pdopt.problems.costs import DenseCost
from pdopt.problems.couplings import Potentials
from pdopt.problems.regularisers import Regulariser
from pdopt.problems.rounding import judged, round_plan, rounded_plan
from pdopt.types import Optimality, Pair, Residuals, record


class TransportProof(NamedTuple):
    """What a solution of exact transport shows: `solution.certificate`.

    `row`, `column`: L1 errors of both marginals of the returned plan. `integral`: whether the plan is a permutation
    times the one mass; `permutation (n,)`: the column of each row then, else -1.
    """

    row: Any
    column: Any
    integral: Any
    permutation: Any


@record
class Unregularised(Regulariser):
    """`R = 0`: the plan T is the primal iterate, `(n, m)`."""

    def shapes(self, problem: Any) -> Any:
        """The plan."""
        return jax.ShapeDtypeStruct(problem.shape, problem.cost.dtype)

    def inside(self, problem: Any, y: Any) -> Any:
        """The product plan, which is feasible."""
        return product_plan(problem)

    def adopt(self, problem: Any, x: Any, y: Any) -> Any:
        """A plan to begin from: a matrix, a plan of an earlier solution, or None for the product plan."""
        if x is None:
            return self.inside(problem, y)
        return x.todense() if hasattr(x, "todense") else x

    def plan(self, problem: Any, pair: Pair) -> Dense:
        """The feasible plan that rounding makes of x, stored."""
        return Dense(rounded_plan(problem, pair.x, round_plan(problem, pair.x, pair.y)))

    def potentials(self, problem: Any, y: Potentials) -> Potentials:
        """The feasible potentials whose value is the bound."""
        return c_transform(problem.cost, y.f)

    def optimality(self, problem: Any, pair: Pair) -> Optimality:
        """Residuals and objectives of the rounded plan and the c-transformed potentials; the dual residual is 0."""
        cost, a, b = problem.cost, problem.a, problem.b
        proved = c_transform(cost, pair.y.f)
        bound = jnp.vdot(proved.f, a) + jnp.vdot(proved.g, b)
        rounded = round_plan(problem, pair.x, proved)
        objective, error = rounded.objective, rounded.error
        gap = jnp.abs(objective - bound)
        primal, zero = error.row + error.column, jnp.zeros((), a.dtype)
        relative = gap / (jnp.finfo(a.dtype).tiny + jnp.maximum(jnp.abs(objective), jnp.abs(bound)))
        residuals = Residuals(primal / jnp.sum(a), zero, relative, primal, zero, gap, jnp.maximum(*error))
        return Optimality(residuals, objective, bound, TransportProof(*error, rounded.integral, rounded.permutation))

    def lagrangian(self, problem: Any, pair: Pair) -> Any:
        """`<C - f(+)g, T> + <f, a> + <g, b>` at the returned plan and potentials."""
        still = lax.stop_gradient(problem)
        T = self.plan(still, pair).todense()
        y = self.potentials(still, pair.y)
        paid = jnp.sum(problem.cost.rows(lambda C, T: jnp.sum(C * T, axis=1), T))
        return (
            paid
            + jnp.vdot(y.f, problem.a - jnp.sum(T, axis=1))
            + jnp.vdot(y.g, problem.b - jnp.sum(T, axis=0))
        )  # fmt: skip


def product_plan(problem: Any) -> Any:
    """`a b' / |b|_1`, `(n, m)`: feasible, and knows nothing of the cost."""
    total = jnp.sum(problem.b)
    return problem.a[:, None] * (problem.b / jnp.where(total > 0, total, 1))


def min_columns(cost: Any, f: Any) -> Any:
    """`min_i (C_ij - f_i)`, `(m,)`, by one pass over blocks of rows."""
    n, size = cost.shape[0], cost.block_rows
    least = lambda start, f: jnp.min(cost.block(start, size) - f[:, None], axis=0)
    if size == n:
        return least(0, f)

    def one(best: Any, number: Any) -> Any:
        start = jnp.minimum(number * size, n - size)
        return jnp.minimum(best, least(start, lax.dynamic_slice_in_dim(f, start, size))), None

    start = jnp.full(cost.shape[1], jnp.inf, cost.dtype)
    return lax.scan(one, start, jnp.arange(-(-n // size)))[0]


def c_transform(cost: Any, f: Any) -> Potentials:
    """The best feasible potentials with which f agrees: `g_j = min_i (C_ij - f_i)`, `f_i = min_j (C_ij - g_j)`.

    Example:
        >>> from pdopt.problems.costs import DenseCost
        >>> print(c_transform(DenseCost(jnp.array([[0.0, 2.0], [3.0, 1.0]])), jnp.zeros(2)).g)
        [0. 1.]
    """
    # A stored matrix is read block by block: its transpose, or C - f, would be one more of it.
    if isinstance(cost, DenseCost):
        cost = judged(cost)
        g = min_columns(cost, f)
    else:
        g = cost.transpose().min_rows(f)
    return Potentials(cost.min_rows(g), g)
