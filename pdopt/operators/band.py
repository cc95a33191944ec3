"""Cholesky factors of block-tridiagonal matrices: band matrices in blocks at least as wide as the band.

    H = [ D_0  B_0'        ]        L = [ C_0               ]       C_k C_k' = D_k - W_k W_k'
        [ B_0  D_1  B_1'   ]            [ W_1  C_1          ]       W_{k+1}  = B_k C_k'^-1
        [      B_1  D_2 .. ]            [      W_2  C_2  .. ]

N blocks of width b cost `7/3 N b^3` to factor and `8 N b^2` a solve, one block after the other (`lax.scan`); a dense
matrix is the case N = 1. JAX has no sparse factorisation that runs on every device; this one is dense in its blocks.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular

LEAF = 32


class BlockFactor(NamedTuple):
    """`inverse`: C_k^-1, so that a solve is products alone (C_0 itself where N = 1); `below`: W_k, W_0 = 0.

    Both `(N, b, b)`.
    """

    inverse: Any
    below: Any


def factorise(diagonal: Any, below: Any) -> BlockFactor:
    """The factor of a positive definite matrix; NaN where it is not.

    Args:
        diagonal: D, `(N, b, b)`, of which the lower triangles count; below: B, `(N, b, b)`, whose last block is not
            looked at.

    Example:
        >>> factor = factorise(jnp.array([[[4.0]], [[2.0]]]), jnp.array([[[2.0]], [[0.0]]]))
        >>> print(solve(factor, jnp.array([6.0, 4.0])))
        [1. 1.]
    """
    count, width, _ = diagonal.shape
    if count == 1:
        return BlockFactor(_cholesky(diagonal[0])[None], jnp.zeros_like(diagonal))

    def block(carry: tuple[Any, Any], given: tuple[Any, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        inverse, link = carry
        W = link @ inverse.T
        here = inverse_factor(given[0] - W @ W.T)
        return (here, given[1]), (here, W)

    eye = jnp.eye(width, dtype=diagonal.dtype)
    return BlockFactor(*lax.scan(block, (eye, jnp.zeros_like(eye)), (diagonal, below))[1])


def inverse_factor(matrix: Any) -> Any:
    """`C^-1` of `C C' = matrix`, by halves: products but for blocks of `LEAF`.

        [A   ]   C_A^-1 = inverse_factor(A),  W = B C_A^-T,  C_S^-1 = inverse_factor(S - W W')
        [B  S]   C^-1 = [C_A^-1, 0; -C_S^-1 W C_A^-1, C_S^-1]

    The library behind factors and triangular solves on a CPU starts threads at a width of some 50, and on a busy
    machine these were a hundred times slower at width 100 than the products here.

    Example:
        >>> print(inverse_factor(jnp.array([[4.0, 2.0], [2.0, 2.0]])))
        [[ 0.5  0. ]
         [-0.5  1. ]]
    """
    n = matrix.shape[0]
    if n <= LEAF:
        return solve_triangular(_cholesky(matrix), jnp.eye(n, dtype=matrix.dtype), lower=True)
    half = n // 2
    first = inverse_factor(matrix[:half, :half])
    W = matrix[half:, :half] @ first.T
    last = inverse_factor(matrix[half:, half:] - W @ W.T)
    return jnp.block([[first, jnp.zeros((half, n - half), matrix.dtype)], [-last @ (W @ first), last]])


def _cholesky(block: Any) -> Any:
    return jnp.linalg.cholesky(block, symmetrize_input=False)


def solve(factor: BlockFactor, v: Any) -> Any:
    """`H^-1 v`, `(N b,)`."""
    inverse, below = factor
    count, width, _ = inverse.shape
    parts = v.reshape(count, width)
    if count == 1:
        return cho_solve((inverse[0], True), v)

    def down(before: Any, given: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        C, W, part = given
        here = C @ (part - W @ before)
        return here, here

    def up(after: tuple[Any, Any], given: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any], Any]:
        C, W, part = given
        here = C.T @ (part - after[0].T @ after[1])
        return (W, here), here

    zero = jnp.zeros(width, v.dtype)
    _, middle = lax.scan(down, zero, (inverse, below, parts))
    _, out = lax.scan(up, (jnp.zeros_like(below[0]), zero), (inverse, below, middle), reverse=True)
    return out.reshape(-1)
