"""Transport without a regulariser, a linear program: the plan is stored, the bound is proved by c-transforms.

g_j = min_i (C_ij - f_i),  then  f_i = min_j (C_ij - g_j):   <f, a> + <g, b> is a lower bound for every f
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.operators.dense import Dense
from pdopt.problems.couplings import Marginals, Potentials, marginal_error
from pdopt.problems.regularisers import Regulariser
from pdopt.types import Optimality, Pair, Residuals, record


@record
class Unregularised(Regulariser):
    """`R = 0`: the plan T is the primal iterate, `(n, m)`."""

    def shapes(self, problem: Any) -> Any:
        """The plan."""
        return jax.ShapeDtypeStruct(problem.shape, problem.cost.dtype)

    def inside(self, problem: Any, y: Any) -> Any:
        """The product plan, which is feasible."""
        return problem.a[:, None] * problem.b[None, :] / jnp.sum(problem.b)

    def plan(self, problem: Any, pair: Pair) -> Dense:
        """The plan, stored."""
        return Dense(pair.x)

    def optimality(self, problem: Any, pair: Pair) -> Optimality:
        """L1 error of both marginals, and the gap to the bound that c-transforms of the potentials prove."""
        cost, a, b = problem.cost, problem.a, problem.b
        T = pair.x
        error = marginal_error(Marginals(jnp.sum(T, axis=1), jnp.sum(T, axis=0)), a, b)
        proved = c_transform(cost, pair.y.f)
        objective = jnp.vdot(cost.todense(), T)
        bound = jnp.vdot(proved.f, a) + jnp.vdot(proved.g, b)
        gap = jnp.abs(objective - bound)
        primal, zero = error.row + error.column, jnp.zeros((), T.dtype)
        relative = gap / (jnp.finfo(T.dtype).tiny + jnp.abs(objective) + jnp.abs(bound))
        residuals = Residuals(primal / jnp.sum(a), zero, relative, primal, zero, gap, jnp.maximum(*error))
        return Optimality(residuals, objective, bound, error)

    def lagrangian(self, problem: Any, pair: Pair) -> Any:
        """`<C - f(+)g, T> + <f, a> + <g, b>`."""
        y, T = pair.y, pair.x
        return (
            jnp.vdot(problem.cost.todense(), T)
            + jnp.vdot(y.f, problem.a - jnp.sum(T, axis=1))
            + jnp.vdot(y.g, problem.b - jnp.sum(T, axis=0))
        )


def c_transform(cost: Any, f: Any) -> Potentials:
    """The best feasible potentials with which f agrees: `g_j = min_i (C_ij - f_i)`, `f_i = min_j (C_ij - g_j)`.

    Example:
        >>> from pdopt.problems.costs import DenseCost
        >>> print(c_transform(DenseCost(jnp.array([[0.0, 2.0], [3.0, 1.0]])), jnp.zeros(2)).g)
        [0. 1.]
    """
    g = cost.transpose().min_rows(f)
    return Potentials(cost.min_rows(g), g)
