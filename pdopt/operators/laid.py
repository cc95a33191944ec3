"""A matrix whose products are taken by a copy of it that is laid out for many products, reordered and perhaps scaled.

    A x = r . B(s . x),    A'y = s . B'(r . y)        B = diag(1/r) A diag(1/s)

The copy is a solver's own, and so are the factors; its judge, on the user's data, asks for products now and then. By
`Sparse` itself those took as long as eight iterations a check on a program of 140 000 nonzeros, and with a batch along
the last axis, where XLA sums by segments one entry after the other, thirty times as long as this.
"""

from typing import Any

from pdopt.operators.base import Order, back, put
from pdopt.types import record


@record
class Laid:
    """The map of `matrix`, by way of `copy`.

    Attributes:
        matrix: the matrix itself, in the user's order, for its facts; copy: B, in its own order of rows and columns.
        rows, columns: the orders, or None; row, column: r and s, in them, or None where B is A.

    Example:
        >>> import jax.numpy as jnp
        >>> from pdopt.operators.dense import Dense
        >>> A, B = Dense(jnp.array([[2.0, 6.0]])), Dense(jnp.array([[1.0, 1.0]]))
        >>> print(Laid(A, B, row=jnp.array([2.0]), column=jnp.array([1.0, 3.0])).matvec(jnp.ones(2)))
        [8.]
    """

    matrix: Any
    copy: Any
    rows: Order | None = None
    columns: Order | None = None
    row: Any = None
    column: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.matrix.dtype

    @property
    def entries(self) -> Any:
        """All stored values."""
        return self.matrix.entries

    def matvec(self, x: Any) -> Any:
        """`A x`."""
        return back(self.rows, _times(self.row, self.copy.matvec(_times(self.column, put(self.columns, x)))))

    def rmatvec(self, y: Any) -> Any:
        """`A' y`."""
        return back(self.columns, _times(self.column, self.copy.rmatvec(_times(self.row, put(self.rows, y)))))

    def row_norms(self, kind: str) -> Any:
        """Norm of every row."""
        return self.matrix.row_norms(kind)

    def column_norms(self, kind: str) -> Any:
        """Norm of every column."""
        return self.matrix.column_norms(kind)

    def scale(self, row: Any, column: Any) -> Any:
        """`diag(row) A diag(column)`, without the copy."""
        return self.matrix.scale(row, column)

    def ordered(self) -> tuple[Any, Order | None, Order | None]:
        """The matrix prepared for many products, with its orders."""
        return self.matrix.ordered()


def _times(factor: Any, v: Any) -> Any:
    return v if factor is None else factor * v
