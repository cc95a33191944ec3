"""A linear map given by two functions: never stored, only applied."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem
from pdopt.runtime.precision import as_array
from pdopt.types import record


@record(static=("forward", "adjoint", "shape", "norms", "precision"))
class Implicit:
    """The operator `x -> forward(data, x)` with adjoint `y -> adjoint(data, y)`.

    Args:
        data: pytree of arrays that both functions read (traced; put here what would else be a closure).
        forward, adjoint: module-level functions (a fresh lambda at every call would recompile).
        shape: `(m, n)`.
        norms: optional `norms(data, kind, row, column)`, the "l1", "l2" or "linf" norms of all rows and of all columns
            of `diag(row) A diag(column)`; without it they count as 1, i.e. the operator is not scaled.
        precision: floating dtype of the products where `data` has no floating leaf; a problem sets it.

    Example:
        >>> def difference(data, x):
        ...     return x[1:] - x[:-1]
        >>> def transposed(data, y):
        ...     return jnp.pad(y, (1, 0)) - jnp.pad(y, (0, 1))
        >>> A = Implicit((), difference, transposed, (2, 3))
        >>> print(A.matvec(jnp.array([1.0, 2.0, 4.0])), A.rmatvec(jnp.array([1.0, 1.0])))
        [1. 2.] [-1.  0.  1.]
    """

    data: Any
    forward: Callable[[Any, Any], Any]
    adjoint: Callable[[Any, Any], Any]
    shape: tuple[int, int]
    norms: Callable[[Any, str, Any, Any], tuple[Any, Any]] | None = None
    precision: Any = None

    @property
    def dtype(self) -> Any:
        """The widest floating dtype among the data, else `precision`, else JAX's default float."""
        leaves = [jnp.result_type(leaf) for leaf in jax.tree.leaves(self.data) if _is_floating(leaf)]
        if leaves:
            return jnp.result_type(*leaves)
        return jnp.result_type(float) if self.precision is None else self.precision

    def astype(self, dtype: Any) -> "Implicit":
        """The same map with the floating leaves of its data in another dtype."""
        data = jax.tree.map(lambda leaf: as_array("A", leaf, dtype) if _is_floating(leaf) else leaf, self.data)
        return Implicit(data, self.forward, self.adjoint, self.shape, self.norms, np.dtype(dtype))

    def matvec(self, x: Any) -> Any:
        """`A x`."""
        return self.forward(self.data, x)

    def rmatvec(self, y: Any) -> Any:
        """`A' y`."""
        return self.adjoint(self.data, y)

    def row_norms(self, kind: str) -> Any:
        """Norm of every row, 1 where unknown."""
        return self._unscaled().row_norms(kind)

    def column_norms(self, kind: str) -> Any:
        """Norm of every column, 1 where unknown."""
        return self._unscaled().column_norms(kind)

    def _unscaled(self) -> "Scaled":
        return Scaled(self, jnp.ones(self.shape[0], self.dtype), jnp.ones(self.shape[1], self.dtype))

    def scale(self, row: Any, column: Any) -> "Scaled":
        """`diag(row) A diag(column)`, applied on the fly."""
        return Scaled(self, row, column)

    def ordered(self) -> tuple["Implicit", None, None]:
        """Itself."""
        return self, None, None


@record
class Scaled:
    """`diag(row) A diag(column)` for an implicit operator, which cannot change its own entries."""

    inner: Implicit
    row: Any
    column: Any

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.inner.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the inner operator."""
        return self.inner.dtype

    def matvec(self, x: Any) -> Any:
        """`diag(row) A diag(column) x`."""
        return self.row * self.inner.matvec(self.column * x)

    def rmatvec(self, y: Any) -> Any:
        """`diag(column) A' diag(row) y`."""
        return self.column * self.inner.rmatvec(self.row * y)

    def row_norms(self, kind: str) -> Any:
        """Norm of every row, 1 where unknown."""
        norms = self.inner.norms
        return norms(self.inner.data, kind, self.row, self.column)[0] if norms else jnp.ones(self.shape[0], self.dtype)

    def column_norms(self, kind: str) -> Any:
        """Norm of every column, 1 where unknown."""
        norms = self.inner.norms
        return norms(self.inner.data, kind, self.row, self.column)[1] if norms else jnp.ones(self.shape[1], self.dtype)

    def astype(self, dtype: Any) -> "Scaled":
        """The same map in another floating dtype."""
        return Scaled(self.inner.astype(dtype), as_array("A", self.row, dtype), as_array("A", self.column, dtype))

    def scale(self, row: Any, column: Any) -> "Scaled":
        """Scaled once more."""
        return Scaled(self.inner, self.row * row, self.column * column)

    def ordered(self) -> tuple["Scaled", None, None]:
        """Itself."""
        return self, None, None


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def check_adjoint(operator: Any, x: Any, y: Any) -> Any:
    """`<A x, y> - <x, A'y>`, zero up to rounding for a true adjoint pair.

    Raises:
        InvalidProblem: a product of the wrong shape.

    Example:
        >>> from pdopt.operators.dense import Dense
        >>> print(check_adjoint(Dense(jnp.ones((2, 3))), jnp.ones(3), jnp.ones(2)))
        0.0
    """
    image, back = operator.matvec(x), operator.rmatvec(y)
    if image.shape != y.shape or back.shape != x.shape:
        raise InvalidProblem(
            f"A x has shape {image.shape}, expected {y.shape}; A'y has {back.shape}, expected {x.shape}"
        )
    return jnp.vdot(image, y) - jnp.vdot(x, back)
