"""What the potentials of quadratic transport define: `T = [f (+) g - C]_+ / gamma`, made block by block."""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.problems.couplings import Marginals, Potentials
from pdopt.runtime.precision import precision_scope
from pdopt.types import record


@record
class QuadraticPlan:
    """`T = [f (+) g - C]_+ / gamma` as an operator; only `todense` stores it.

    Example:
        >>> from pdopt.problems.costs import DenseCost
        >>> plan = QuadraticPlan(DenseCost(jnp.array([[0.0, 2.0]])), jnp.array([1.0]), jnp.zeros(2), 0.5)
        >>> print(plan.matvec(jnp.ones(2)), plan.todense())
        [2.] [[2. 0.]]
    """

    cost: Any
    f: Any
    g: Any
    gamma: Any

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.cost.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.cost.dtype

    def matvec(self, v: Any) -> Any:
        """`T v`, block by block."""
        entries = lambda block, f: jnp.maximum(f[:, None] + self.g - block, 0) @ v
        with precision_scope(self):
            return self.cost.rows(entries, self.f) / self.gamma

    def rmatvec(self, u: Any) -> Any:
        """`T'u`."""
        with precision_scope(self):
            return QuadraticPlan(self.cost.transpose(), self.g, self.f, self.gamma).matvec(u)

    def todense(self) -> Any:
        """The plan, `(n, m)`."""
        with precision_scope(self):
            return jnp.maximum(self.f[:, None] + self.g - self.cost.todense(), 0) / self.gamma


def quadratic_marginals(cost: Any, y: Potentials, gamma: Any) -> Marginals:
    """`(T1, T'1)` of the plan that the potentials define.

    Example:
        >>> from pdopt.problems.costs import DenseCost
        >>> cost = DenseCost(jnp.array([[0.0, 2.0]]))
        >>> print(quadratic_marginals(cost, Potentials(jnp.ones(1), jnp.zeros(2)), 1.0).column)
        [1. 0.]
    """
    one_side = lambda cost, own, other: cost.rows(
        lambda block, own: jnp.sum(jnp.maximum(own[:, None] + other - block, 0), axis=1), own
    )
    return Marginals(one_side(cost, y.f, y.g) / gamma, one_side(cost.transpose(), y.g, y.f) / gamma)


def quadratic_value(problem: Any, y: Potentials, gamma: Any) -> Any:
    """`<f, a> + <g, b> - sum [f (+) g - C]_+^2 / (2 gamma)`, the dual function; blocks are made again going back.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport([[0.0, 2.0]], dtype=jnp.float32)
        >>> print(quadratic_value(problem, Potentials(jnp.ones(1), jnp.zeros(2)), 1.0))
        0.5
    """

    @jax.checkpoint
    def squares(block: Any, f: Any) -> Any:
        return jnp.sum(jnp.square(jnp.maximum(f[:, None] + y.g - block, 0)), axis=1)

    total = jnp.sum(problem.cost.rows(squares, y.f))
    return jnp.vdot(y.f, problem.a) + jnp.vdot(y.g, problem.b) - total / (2 * gamma)


def fill_columns(costs: Any, f: Any, b: Any, gamma: Any) -> Any:
    """The g with which every column of the plan has its mass: `sum_i [f_i + g_j - C_ij]_+ = gamma b_j`.

    Newton's method on a convex, piecewise linear, falling function, from its left: it ends after finitely many steps.

    Args:
        costs: the transposed cost, `(m, n)`.

    Example:
        >>> from pdopt.problems.costs import DenseCost
        >>> print(fill_columns(DenseCost(jnp.array([[0.0, 1.0]])), jnp.zeros(2), jnp.array([2.0]), 1.0))
        [1.5]
    """

    def reduce(block: Any, b: Any) -> Any:
        scores = f - block
        first = jnp.max(scores, axis=1)
        scores = scores - first[:, None]

        def raised(level: Any) -> Any:
            above = scores > level[:, None]
            count = jnp.sum(above, axis=1).astype(level.dtype)
            mass = jnp.sum(jnp.where(above, scores, 0), axis=1) - gamma * b
            return jnp.where(count > 0, jnp.maximum(level, mass / jnp.where(count > 0, count, 1)), level)

        def body(state: tuple[Any, Any]) -> tuple[Any, Any]:
            return raised(state[0]), state[0]

        start = -gamma * b
        level, _ = jax.lax.while_loop(lambda state: jnp.any(state[0] > state[1]), body, (raised(start), start))
        return -(level + first)

    return costs.rows(reduce, b)
