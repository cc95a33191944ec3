"""A plan with few entries in each column, stored as values and the rows they stand in."""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.runtime.precision import precision_scope
from pdopt.types import record


@record(static=("rows",))
class SparseColumns:
    """An `(n, m)` plan of at most s entries a column, as an operator: `O(s m)` memory.

    Attributes:
        values: `(m, s)`, >= 0; unused slots hold 0.
        indices: `(m, s)`, the row of each value; the rows of one column differ.
        rows: n.

    Example:
        >>> plan = SparseColumns(jnp.array([[1.0], [2.0]]), jnp.array([[0], [2]]), 3)
        >>> print(plan.matvec(jnp.ones(2)), plan.rmatvec(jnp.ones(3)))
        [1. 0. 2.] [1. 2.]
    """

    values: Any
    indices: Any
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.rows, self.values.shape[-2]

    @property
    def dtype(self) -> Any:
        """Dtype of the values."""
        return self.values.dtype

    def matvec(self, v: Any) -> Any:
        """`T v`, `(n,)`."""
        with precision_scope(self.values):
            return jnp.zeros(self.rows, self.dtype).at[self.indices].add(self.values * v[:, None])

    def rmatvec(self, u: Any) -> Any:
        """`T'u`, `(m,)`."""
        with precision_scope(self.values):
            return jnp.sum(self.values * u[self.indices], axis=1)

    def row_sums(self) -> Any:
        """`T 1`."""
        with precision_scope(self.values):
            return jnp.zeros(self.rows, self.dtype).at[self.indices].add(self.values)

    def column_sums(self) -> Any:
        """`T'1`."""
        with precision_scope(self.values):
            return jnp.sum(self.values, axis=1)

    def nonzeros(self) -> Any:
        """Entries that are not 0 in each column, `(m,)`."""
        with precision_scope(self.values):
            return jnp.sum(self.values > 0, axis=1)

    def todense(self) -> Any:
        """The plan, `(n, m)`."""
        with precision_scope(self.values):
            column = lambda place, value: jnp.zeros(self.rows, self.dtype).at[place].add(value)
            return jax.vmap(column, out_axes=1)(self.indices, self.values)


@record
class TransposedColumns:
    """The transpose of a plan of few entries a column: few entries a row.

    Example:
        >>> plan = TransposedColumns(SparseColumns(jnp.array([[1.0]]), jnp.array([[2]]), 3))
        >>> print(plan.todense(), plan.shape)
        [[0. 0. 1.]] (1, 3)
    """

    plan: SparseColumns

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        n, m = self.plan.shape
        return m, n

    @property
    def dtype(self) -> Any:
        """Dtype of the values."""
        return self.plan.dtype

    def matvec(self, v: Any) -> Any:
        """`T v`."""
        return self.plan.rmatvec(v)

    def rmatvec(self, u: Any) -> Any:
        """`T'u`."""
        return self.plan.matvec(u)

    def todense(self) -> Any:
        """The plan."""
        return self.plan.todense().T
