"""A diagonal matrix: one entry a row, products entry by entry."""

from typing import Any

import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.operators.base import Order
from pdopt.runtime.precision import as_array
from pdopt.types import record


@record
class Diagonal:
    """The operator of `diag(diagonal)`, `(n, n)`; differentiable in its entries.

    Example:
        >>> Q = Diagonal.make([2.0, 0.0], jnp.float32)
        >>> print(Q.matvec(jnp.array([3.0, 5.0])))
        [6. 0.]
    """

    diagonal: Any

    @staticmethod
    def make(diagonal: Any, dtype: Any) -> "Diagonal":
        """From anything that becomes a one-dimensional array of `dtype`."""
        array = as_array("diagonal", diagonal, dtype)
        if array.ndim != 1:
            raise InvalidProblem(f"diagonal has shape {array.shape}; expected one dimension")
        return Diagonal(array)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, n)`."""
        n = self.diagonal.shape[-1]
        return n, n

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.diagonal.dtype

    @property
    def entries(self) -> Any:
        """All stored values, to look at (finite, largest)."""
        return self.diagonal

    def place(self, entry: int) -> tuple[int, int]:
        """Row and column of a stored entry, for messages."""
        return entry, entry

    def astype(self, dtype: Any) -> "Diagonal":
        """The same matrix in another floating dtype."""
        return Diagonal(as_array("diagonal", self.diagonal, dtype))

    def matvec(self, x: Any) -> Any:
        """`A x`."""
        return self.diagonal * x

    def rmatvec(self, y: Any) -> Any:
        """`A' y`, the same."""
        return self.diagonal * y

    def row_norms(self, kind: str) -> Any:
        """Norm of every row: the size of its entry, whatever the norm."""
        return jnp.abs(self.diagonal)

    def column_norms(self, kind: str) -> Any:
        """Norm of every column, the same."""
        return jnp.abs(self.diagonal)

    def scale(self, row: Any, column: Any) -> "Diagonal":
        """`diag(row) A diag(column)`."""
        return Diagonal(row * self.diagonal * column)

    def ordered(self) -> tuple["Diagonal", Order | None, Order | None]:
        """Itself: no order is better than another."""
        return self, None, None

    def toarray(self) -> Any:
        """The dense matrix, for small ones."""
        return jnp.diag(self.diagonal)
