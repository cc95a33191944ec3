"""A matrix stored whole: products are `A @ x` and `y @ A`."""

from typing import Any

from pdopt.errors import InvalidProblem
from pdopt.operators.base import Order, reduce_norm
from pdopt.runtime.precision import as_array
from pdopt.types import record


@record
class Dense:
    """The operator of a dense `(m, n)` array; differentiable in its entries.

    Example:
        >>> import jax.numpy as jnp
        >>> A = Dense.make([[1.0, 2.0], [0.0, 1.0]], jnp.float32)
        >>> print(A.matvec(jnp.ones(2)), A.rmatvec(jnp.ones(2)))
        [3. 1.] [1. 3.]
    """

    matrix: Any

    @staticmethod
    def make(matrix: Any, dtype: Any) -> "Dense":
        """From anything that becomes a two-dimensional array of `dtype`."""
        array = as_array("A", matrix, dtype)
        if array.ndim != 2:
            raise InvalidProblem(f"A has shape {array.shape}; expected two dimensions (rows, columns)")
        return Dense(array)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.matrix.shape[-2:]

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.matrix.dtype

    @property
    def entries(self) -> Any:
        """All stored values, to look at (finite, largest)."""
        return self.matrix

    def todense(self) -> Any:
        """The array itself."""
        return self.matrix

    def astype(self, dtype: Any) -> "Dense":
        """The same matrix in another floating dtype."""
        return Dense(as_array("A", self.matrix, dtype))

    def matvec(self, x: Any) -> Any:
        """`A x`."""
        return self.matrix @ x

    def rmatvec(self, y: Any) -> Any:
        """`A' y`."""
        return y @ self.matrix

    def row_norms(self, kind: str) -> Any:
        """Norm of every row."""
        return reduce_norm(kind, self.matrix, 1)

    def column_norms(self, kind: str) -> Any:
        """Norm of every column."""
        return reduce_norm(kind, self.matrix, 0)

    def scale(self, row: Any, column: Any) -> "Dense":
        """`diag(row) A diag(column)`."""
        return Dense(row[:, None] * self.matrix * column[None, :])

    def ordered(self) -> tuple["Dense", Order | None, Order | None]:
        """Itself: a dense matrix has no favourite order."""
        return self, None, None
