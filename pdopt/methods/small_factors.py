"""Cholesky factors and solves; of small matrices written out, so that a batch of them is arithmetic on whole arrays.

LAPACK takes one matrix at a time: for 256 matrices of order 4 that is 256 calls of which each costs more than its 30
multiplications. Written out, each column is one elementwise operation over the batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

SMALL = 12  # orders up to this are written out: the program has a line a column, and compiles as long


def cholesky(matrix: Any) -> Any:
    """The lower factor L of `matrix = L L'`, `(n, n)`; not finite where the matrix is not positive definite.

    Only the lower half is read.

    Example:
        >>> print(cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]])))
        [[2. 0.]
         [1. 2.]]
        >>> print(jnp.isfinite(cholesky(jnp.array([[1.0, 2.0], [2.0, 1.0]]))).all())
        False
    """
    order = matrix.shape[0]
    if order > SMALL:
        return jnp.linalg.cholesky(matrix)
    columns: list[Any] = []
    for j in range(order):
        column = matrix[j:, j]
        for k, before in enumerate(columns):
            column = column - before[j - k] * before[j - k :]
        columns.append(column / jnp.sqrt(column[0]))
    return jnp.stack([jnp.pad(column, (j, 0)) for j, column in enumerate(columns)], axis=1)


def cholesky_solve(factor: Any, right: Any) -> Any:
    """x with `L L' x = right`, `(n,)`, from the lower factor.

    Example:
        >>> print(cholesky_solve(jnp.array([[2.0, 0.0], [1.0, 2.0]]), jnp.array([8.0, 12.0])))
        [1. 2.]
    """
    order = factor.shape[0]
    if order > SMALL:
        return jax.scipy.linalg.cho_solve((factor, True), right)
    rest, forward = right, []
    for k in range(order):
        forward.append(rest[0] / factor[k, k])
        rest = rest[1:] - forward[-1] * factor[k + 1 :, k]
    rest, found = jnp.stack(forward), []
    for k in reversed(range(order)):
        found.append(rest[k] / factor[k, k])
        rest = rest[:k] - found[-1] * factor[k, :k]
    return jnp.stack(found[::-1])
