"""Products with a plan held fixed, for linear solves: `P v`, `P'u`, and the Schur product `P' diag(1/r) P v`.

    P = a b' exp((f (+) g - C) / epsilon)

Small and dense plans are stored once; others are made again, block by block, at every product, and the Schur product
makes each block once for both of its halves. On a grid the products go axis by axis.
"""

from functools import singledispatch
from typing import Any

import jax.numpy as jnp
from jax import lax

from pdopt.problems.costs import Cost
from pdopt.problems.couplings import Potentials
from pdopt.problems.entropic_dual import log_mass
from pdopt.problems.grid_cost import Grid
from pdopt.types import record


@record
class Stored:
    """A plan as a matrix P `(n, m)`."""

    P: Any

    def forward(self, v: Any) -> Any:
        """`P v`."""
        return _times(self.P, v)

    def back(self, u: Any) -> Any:
        """`P'u`."""
        return _times(self.P.T, u)

    def schur(self, v: Any, r: Any) -> Any:
        """`P'((P v) / r)`."""
        return self.back(self.forward(v) / r)


@record
class Streamed:
    """A plan whose rows are made block by block."""

    cost: Cost
    a: Any
    b: Any
    y: Potentials
    epsilon: Any

    def forward(self, v: Any) -> Any:
        """`P v`."""
        return self.cost.rows(lambda block, f, a: _times(self._entries(block, f, a), v), self.y.f, self.a)

    def back(self, u: Any) -> Any:
        """`P'u`."""
        total = lambda block, f, a, u, present: _times(self._entries(block, f, a).T, u * present)
        return self.cost.sums(total, self.y.f, self.a, u)

    def schur(self, v: Any, r: Any) -> Any:
        """`P'((P v) / r)` in one pass."""

        def total(block: Any, f: Any, a: Any, r: Any, present: Any) -> Any:
            entries = self._entries(block, f, a)
            return _times(entries.T, present * _times(entries, v) / r)

        return self.cost.sums(total, self.y.f, self.a, r)

    def _entries(self, block: Any, f: Any, a: Any) -> Any:
        return a[:, None] * self.b * jnp.exp((f[:, None] + self.y.g - block) / self.epsilon)


@record
class Gridded:
    """A plan between two grids: the positive and the negative part of a vector go through soft minima, axis by axis."""

    cost: Grid
    a: Any
    b: Any
    y: Potentials
    epsilon: Any

    def forward(self, v: Any) -> Any:
        """`P v`."""
        return self.a * _signed(self.cost, self.y.f, self.y.g, self.b * v, self.epsilon)

    def back(self, u: Any) -> Any:
        """`P'u`."""
        return self.b * _signed(self.cost.transpose(), self.y.g, self.y.f, self.a * u, self.epsilon)

    def schur(self, v: Any, r: Any) -> Any:
        """`P'((P v) / r)`."""
        return self.back(self.forward(v) / r)


@singledispatch
def plan_products(cost: Cost, a: Any, b: Any, y: Potentials, epsilon: Any) -> Any:
    """Products with the plan of y, in the way that suits the cost.

    Example:
        >>> from pdopt.problems.costs import DenseCost
        >>> y = Potentials(jnp.zeros(2), jnp.zeros(1))
        >>> print(plan_products(DenseCost(jnp.zeros((2, 1))), jnp.ones(2), jnp.ones(1), y, 1.0).back(jnp.ones(2)))
        [2.]
    """
    streamed = Streamed(cost, a, b, y, epsilon)
    if cost.block_rows < cost.shape[0]:
        return streamed
    return Stored(streamed._entries(cost.todense(), y.f, a))


@plan_products.register
def _(cost: Grid, a: Any, b: Any, y: Potentials, epsilon: Any) -> Any:
    return Gridded(cost, a, b, y, epsilon)


def _times(matrix: Any, v: Any) -> Any:
    # Reduced-precision matrix units would cost a linear solve its last digits.
    return jnp.matmul(matrix, v, precision=lax.Precision.HIGHEST)


def _signed(cost: Grid, f: Any, g: Any, v: Any, epsilon: Any) -> Any:
    """`sum_j v_j exp((f_i + g_j - C_ij) / epsilon)` for v of any sign."""
    part = lambda w: jnp.exp((f - cost.softmin_rows(log_mass(w) + g / epsilon, epsilon)) / epsilon)
    return part(jnp.maximum(v, 0)) - part(jnp.maximum(-v, 0))
