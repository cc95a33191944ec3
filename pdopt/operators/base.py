"""What every method may ask of a linear map `A: R^n -> R^m`, and the one function that makes one.

Methods never touch storage: they see `matvec` (`A x`), `rmatvec` (`A' y`) and a few facts. Dense, sparse, implicit
and scaled operators are pytrees, so they pass through `jit`, `vmap` and `grad` like any array.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import scipy.sparse as sp

# Below this many entries a dense product beats any sparse layout on a CPU (linear spec, section 15: about 60 x 100).
DENSE_ENTRIES = 6000


@runtime_checkable
class Operator(Protocol):
    """A linear map with its adjoint.

    `row_norms(kind)` and `column_norms(kind)` give the l1, l2 or linf norm of every row or column (for scaling);
    `scale(row, column)` is `diag(row) A diag(column)`; `ordered()` is the same map prepared
    for many products, in the storage's favourite order of rows and columns, with the orders (or None).
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> Any: ...

    def matvec(self, x: Any) -> Any: ...

    def rmatvec(self, y: Any) -> Any: ...

    def row_norms(self, kind: str) -> Any: ...

    def column_norms(self, kind: str) -> Any: ...

    def scale(self, row: Any, column: Any) -> Any: ...

    def ordered(self) -> "tuple[Any, Order | None, Order | None]": ...


class Order:
    """A permutation and its inverse, as a pytree: `put(v)` goes to the storage's order, `back(v)` returns."""

    def __init__(self, order: Any, rank: Any) -> None:
        self.order, self.rank = order, rank

    def put(self, v: Any) -> Any:
        """`v` in the storage's order."""
        return v[self.order]

    def back(self, v: Any) -> Any:
        """The inverse of `put`."""
        return v[self.rank]


jax.tree_util.register_pytree_node(Order, lambda o: ((o.order, o.rank), None), lambda _, leaves: Order(*leaves))


def reduce_norm(kind: str, values: Any, axis: int) -> Any:
    """The l1, l2 or linf norm of a dense array along an axis (0 for an empty axis)."""
    xp = jax.numpy
    size = xp.abs(values)
    if kind == "linf":
        return xp.max(size, axis=axis, initial=0.0)
    if kind == "l1":
        return xp.sum(size, axis=axis)
    if kind == "l2":
        return xp.sqrt(xp.sum(size * size, axis=axis))
    raise ValueError(f"norm kind is {kind!r}; expected 'l1', 'l2' or 'linf'")


def as_operator(matrix: Any, dtype: Any) -> Any:
    """An operator from what users have: an operator, a SciPy sparse matrix, a BCOO, or a dense array.

    Small sparse matrices (up to 6 000 entries, zeros included) become dense: faster to compile and to multiply.

    Args:
        matrix: `(m, n)`; a dense array (NumPy, JAX, traced), `scipy.sparse`, `jax.experimental.sparse.BCOO`, or an
            object that has the verbs of `Operator`.
        dtype: floating dtype of the values.

    Raises:
        InvalidProblem: not two-dimensional, or indices outside the shape.

    Example:
        >>> as_operator(np.eye(2, dtype=np.float32), np.float32).shape
        (2, 2)
    """
    from pdopt.operators.dense import Dense
    from pdopt.operators.sparse import Sparse

    if isinstance(matrix, Operator) and not isinstance(matrix, (np.ndarray, jax.Array)):
        return matrix
    if (
        hasattr(matrix, "indices")
        and hasattr(matrix, "todense")
        and isinstance(getattr(matrix, "data", None), jax.Array)
    ):
        index = np.asarray(matrix.indices)
        matrix = sp.coo_matrix((np.asarray(matrix.data), (index[:, 0], index[:, 1])), shape=matrix.shape)
    if sp.issparse(matrix):
        if matrix.shape[0] * matrix.shape[1] <= DENSE_ENTRIES:
            return Dense.make(matrix.toarray(), dtype)
        coo = matrix.tocoo()
        return Sparse.from_entries(coo.row, coo.col, coo.data, coo.shape, dtype)
    return Dense.make(matrix, dtype)
