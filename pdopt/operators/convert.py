"""The one function that makes an operator from what users have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.core import Tracer

from pdopt.errors import InvalidProblem
from pdopt.operators.base import Operator
from pdopt.operators.dense import Dense
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.sparse import Sparse

# Below this many entries a dense product beats any sparse layout on a CPU (linear spec, section 15: about 60 x 100).
DENSE_ENTRIES = 6000


def as_operator(matrix: Any, dtype: Any) -> Any:
    """An operator from what users have: an operator, a SciPy sparse matrix, a BCOO, or a dense array.

    Small sparse matrices (up to 6 000 entries, zeros included) become dense: faster to compile and to multiply. An
    operator keeps its storage and takes the dtype. A BCOO may hold traced values, sorted and without duplicates; its
    pattern must be concrete.

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
    if sp.issparse(matrix):
        if matrix.shape[0] * matrix.shape[1] <= DENSE_ENTRIES:
            return Dense.make(matrix.toarray(), dtype)
        coo = matrix.tocoo()
        return Sparse.from_entries(coo.row, coo.col, coo.data, coo.shape, dtype)
    if isinstance(matrix, Operator) and not isinstance(matrix, (np.ndarray, jax.Array)):
        return matrix.astype(dtype) if hasattr(matrix, "astype") else matrix  # pyright: ignore[reportAttributeAccessIssue]
    if (
        hasattr(matrix, "indices")
        and hasattr(matrix, "todense")
        and isinstance(getattr(matrix, "data", None), jax.Array)
    ):
        return _from_bcoo(matrix, dtype)
    return Dense.make(matrix, dtype)


def dense(operator: Any) -> Any:
    """An operator as a dense array, `(m, n)`.

    Example:
        >>> from pdopt.operators.dense import Dense
        >>> print(dense(Dense(jnp.array([[1.0, 2.0]]))))
        [[1. 2.]]
    """
    if hasattr(operator, "matrix"):
        return operator.matrix
    if hasattr(operator, "toarray"):
        return operator.toarray()
    return jax.vmap(operator.matvec, out_axes=1)(jnp.eye(operator.shape[1], dtype=operator.dtype))


def to_scipy(operator: Any) -> Any:
    """A dense, sparse or diagonal operator as a SciPy matrix by columns, in float64, on the host; None for others.

    Example:
        >>> to_scipy(as_operator(np.eye(2), np.float32)).nnz
        2
    """
    if isinstance(operator, Sparse):
        entries = np.asarray(operator.values, np.float64), (np.asarray(operator.row), np.asarray(operator.column))
        return sp.csc_matrix(entries, shape=operator.shape)
    if isinstance(operator, Diagonal):
        return sp.diags(np.asarray(operator.diagonal, np.float64), format="csc")
    return sp.csc_matrix(np.asarray(operator.matrix, np.float64)) if isinstance(operator, Dense) else None


def _from_bcoo(matrix: Any, dtype: Any) -> Any:
    if len(matrix.shape) != 2 or matrix.indices.ndim != 2 or matrix.indices.shape[-1] != 2:
        raise InvalidProblem(
            f"A is a BCOO of shape {matrix.shape} with batch or dense dimensions; expected a plain matrix"
        )
    if isinstance(matrix.indices, Tracer):
        raise InvalidProblem(
            "A is a BCOO whose indices are traced; its pattern decides the layout and must be concrete"
        )
    m, n = matrix.shape
    index = np.asarray(matrix.indices)
    # JAX pads a BCOO with entries at (m, n); any other place outside the shape is a mistake.
    kept = np.flatnonzero(~((index[:, 0] == m) & (index[:, 1] == n)))
    data = matrix.data if kept.size == index.shape[0] else matrix.data[kept]
    sparse = Sparse.from_entries(index[kept, 0], index[kept, 1], data, (m, n), dtype)
    return Dense(sparse.toarray()) if m * n <= DENSE_ENTRIES else sparse
