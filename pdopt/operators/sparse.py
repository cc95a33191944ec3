"""A sparse matrix: entries `(row, column, value)` for looking at it, split sliced ELL (`layout`) for multiplying.

`Sparse` is what a problem holds: one differentiable leaf `values`, and the plans of both products. Its own products
sum the entries by segment: a few operations to compile, two to three times slower than the layout, right for residuals
that are looked at now and then. A solver asks for `Sparse.ordered()`: `Sliced`, the values put in place in the layout's
own order of rows and columns, and the two orders, so that it permutes its vectors once and both products of its loop
are plain concatenations.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.core import Tracer

from pdopt.errors import InvalidProblem
from pdopt.operators.base import Order, take
from pdopt.operators.laid import Laid
from pdopt.operators.layout import Layout, Plan, make_plan, multiply, place
from pdopt.operators.sums import Change, inner
from pdopt.runtime.precision import as_array
from pdopt.types import record

_INSIDE: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}


@record
class Sliced:
    """Both products of a sparse matrix in its layout's order of rows and columns."""

    forward: Layout
    adjoint: Layout

    def matvec(self, x: Any) -> Any:
        """`A x`."""
        return multiply(self.forward, x)

    def rmatvec(self, y: Any) -> Any:
        """`A' y`."""
        return multiply(self.adjoint, y)

    def vdot(self, a: Change, b: Change) -> Any:
        """`a'b`, for the vectors beside the products."""
        return inner(a, b)


@record(static=("shape",))
class Sparse:
    """The operator of a sparse `(m, n)` matrix; differentiable in `values`, the stored entries in row-major order.

    Attributes:
        values: `(nnz,)`; `row`, `column`: int32 `(nnz,)`, sorted by row, then column.
        forward, adjoint: plans of the two products; rows, columns: the orders in which the plans work.

    Example:
        >>> A = Sparse.from_entries([0, 1, 1], [1, 0, 1], [2.0, 1.0, 3.0], (2, 2), jnp.float32)
        >>> print(A.matvec(jnp.ones(2)), A.rmatvec(jnp.ones(2)))
        [2. 4.] [1. 5.]
    """

    values: Any
    row: Any
    column: Any
    forward: Plan
    adjoint: Plan
    rows: Order
    columns: Order
    shape: tuple[int, int]

    @staticmethod
    def from_entries(row: Any, column: Any, values: Any, shape: tuple[int, int], dtype: Any) -> "Sparse":
        """From coordinates, in any order; duplicates are summed and explicit zeros dropped.

        The pattern must be concrete (it decides the layout); `values` may be traced when the coordinates are already
        sorted by row and column without duplicates, else they are sorted and summed on the host.

        Raises:
            InvalidProblem: an index outside the shape (JAX itself would clamp or drop it silently).
        """
        m, n = (int(size) for size in shape)
        row, column = np.asarray(row, np.int64), np.asarray(column, np.int64)
        for name, index, size in (("row", row, m), ("column", column, n)):
            if index.size and (index.min() < 0 or index.max() >= size):
                bad = int(np.flatnonzero((index < 0) | (index >= size))[0])
                raise InvalidProblem(f"A has {name} index {index[bad]} at entry {bad}; expected 0 to {size - 1}")
        if not isinstance(values, Tracer):
            matrix = sp.csr_matrix((np.asarray(values), (row, column)), shape=(m, n))
            matrix.sum_duplicates()
            matrix.eliminate_zeros()
            coo = matrix.tocoo()
            row, column, values = coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data
        elif np.any(np.diff(row * n + column) <= 0):
            raise InvalidProblem("traced values need entries sorted by row and column, without duplicates")
        entry = np.arange(row.size)
        row_start = np.searchsorted(row, np.arange(m + 1))
        by_column = np.argsort(column, kind="stable")
        column_start = np.searchsorted(column[by_column], np.arange(n + 1))
        forward = make_plan(row_start, column, entry, row.size)
        adjoint = make_plan(column_start, row[by_column], by_column, row.size)
        rows, columns = _order(forward.order, m), _order(adjoint.order, n)
        return Sparse(
            as_array("A", values, dtype),
            row.astype(np.int32),
            column.astype(np.int32),
            _renumber(forward.plan, columns.rank),
            _renumber(adjoint.plan, rows.rank),
            rows,
            columns,
            (m, n),
        )

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.values.dtype

    @property
    def entries(self) -> Any:
        """All stored values, to look at (finite, largest)."""
        return self.values

    def place(self, entry: int) -> tuple[int, int]:
        """Row and column of a stored entry, for messages."""
        return int(self.row[entry]), int(self.column[entry])

    def astype(self, dtype: Any) -> "Sparse":
        """The same matrix in another floating dtype."""
        return self if self.dtype == dtype else _with_values(self, as_array("A", self.values, dtype))

    def matvec(self, x: Any) -> Any:
        """`A x` from the entries as they stand: quick to compile, for a product now and then."""
        return _segment_sum(self.values * take(x, self.column), self.row, self.shape[0], indices_are_sorted=True)

    def rmatvec(self, y: Any) -> Any:
        """`A' y`, likewise."""
        return _segment_sum(self.values * take(y, self.row), self.column, self.shape[1])

    def row_norms(self, kind: str) -> Any:
        """Norm of every row, 0 for empty ones."""
        return _segment_norm(kind, self.values, self.row, self.shape[0])

    def column_norms(self, kind: str) -> Any:
        """Norm of every column, 0 for empty ones."""
        return _segment_norm(kind, self.values, self.column, self.shape[1])

    def scale(self, row: Any, column: Any) -> "Sparse":
        """`diag(row) A diag(column)`, same pattern."""
        return _with_values(self, take(row, self.row) * self.values * take(column, self.column))

    def ordered(self) -> tuple[Sliced, Order | None, Order | None]:
        """The same map in the layout's order, with the orders of rows and columns."""
        return Sliced(place(self.forward, self.values), place(self.adjoint, self.values)), self.rows, self.columns

    def laid(self) -> Laid:
        """The same map, whose own products take the layout too."""
        return Laid(self, *self.ordered())

    def toarray(self) -> Any:
        """The dense matrix, for small ones."""
        return jnp.zeros(self.shape, self.dtype).at[self.row, self.column].add(self.values)


def _with_values(operator: Sparse, values: Any) -> Sparse:
    return Sparse(
        values, operator.row, operator.column, operator.forward, operator.adjoint, operator.rows, operator.columns,
        operator.shape,
    )  # fmt: skip


def _order(order: np.ndarray, size: int) -> Order:
    rank = np.empty(size, np.int32)
    rank[order] = np.arange(size, dtype=np.int32)
    return Order(order.astype(np.int32), rank)


def _renumber(plan: Plan, rank: np.ndarray) -> Plan:
    """The plan with its input positions counted in the other side's order."""
    long = (_renumber(plan.long[0], rank), plan.long[1]) if plan.long else ()
    return Plan(tuple(rank[i] for i in plan.index), plan.position, long, plan.empty, plan.padding)


def _segment_sum(values: Any, owner: Any, size: int, **facts: Any) -> Any:
    """Sums of the values of each owner, whose places lie inside."""
    return jnp.zeros(size, values.dtype).at[owner].add(values, **_INSIDE, **facts)


def _segment_norm(kind: str, values: Any, owner: Any, size: int) -> Any:
    magnitude = jnp.abs(values)
    if kind == "linf":
        return jnp.zeros(size, values.dtype).at[owner].max(magnitude, **_INSIDE)
    if kind == "l1":
        return _segment_sum(magnitude, owner, size)
    if kind == "l2":
        return jnp.sqrt(_segment_sum(magnitude * magnitude, owner, size))
    raise ValueError(f"norm kind is {kind!r}; expected 'l1', 'l2' or 'linf'")
