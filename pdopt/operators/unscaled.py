"""A matrix whose products are taken by a scaled and reordered copy of it that is laid out for many products.

    A x = r . B(s . x),    A'y = s . B'(r . y)        B = diag(1/r) A diag(1/s)

The factors are a solver's, and so is the copy: its judge asks for products now and then, by `Sparse` itself half an
iteration each, or eight iterations a check on a program of 140 000 nonzeros.
"""

from typing import Any

from pdopt.operators.base import Order, back, put
from pdopt.types import record


@record
class Unscaled:
    """The map of `matrix`, by way of `scaled`.

    Attributes:
        matrix: the matrix itself, for its facts; scaled: B, in its own order of rows and columns.
        row, column: r and s, in that order; rows, columns: the orders, or None.

    Example:
        >>> import jax.numpy as jnp
        >>> from pdopt.operators.dense import Dense
        >>> A, B = Dense(jnp.array([[2.0, 6.0]])), Dense(jnp.array([[1.0, 1.0]]))
        >>> print(Unscaled(A, B, jnp.array([2.0]), jnp.array([1.0, 3.0])).matvec(jnp.ones(2)))
        [8.]
    """

    matrix: Any
    scaled: Any
    row: Any
    column: Any
    rows: Order | None = None
    columns: Order | None = None

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
        return back(self.rows, self.row * self.scaled.matvec(self.column * put(self.columns, x)))

    def rmatvec(self, y: Any) -> Any:
        """`A' y`."""
        return back(self.columns, self.column * self.scaled.rmatvec(self.row * put(self.rows, y)))

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
