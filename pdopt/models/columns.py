"""Attention with its gradient by hand, for a CPU: no matrix of scores is ever turned round.

    W' = exp(c K Q' - max),   z = sum_s W',   O' = V' W' / z             ' is turned: a column for each query
    dV = W' (dO / z),   dS' = W' (V dO' - sum_e O' dO') / z,   dK = c dS' Q,   dQ' = c K' dS'

With a column for each query every product reads the large matrices, `(keys, queries)`, as they lie, and only those of
`(tokens, e)` are turned; left to its own rules the compiler copies the large ones several times. As an autodiff rule of
its own it has no forward mode: `jax.jvp` wants the kernel "xla".
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Added to the score of a key that is not seen: finite, and so large that scores vanish beside it.
UNSEEN = -1e30


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_columns(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    """`softmax(scale q k' + mask) v`, as `attention.attend`: scores and softmax in float32.

    Args:
        q: `(b, t, heads, e)`; k, v: `(b, s, kv_heads, e)`.
        mask: `(b, t, s)`; a query that sees no key sees all evenly.
        scale: of the scores.

    Example:
        >>> one = jnp.ones((1, 2, 1, 4))
        >>> print(attend_columns(one, one, one, jnp.ones((1, 2, 2), bool), 0.5)[0, :, 0, 0])
        [1. 1.]
    """
    return _forward(q, k, v, mask, scale)[0]


def _forward(q: Any, k: Any, v: Any, mask: Any, scale: float) -> tuple[Any, Any]:
    (b, t, heads, _), (_, s, kv_heads, _) = q.shape, k.shape
    scores = _product(k.transpose(0, 2, 1, 3), _queries(q * jnp.asarray(scale, q.dtype), kv_heads))
    unseen = jnp.where(mask, 0, jnp.asarray(UNSEEN, scores.dtype)).swapaxes(1, 2)[:, None, :, None, :]
    scores = scores.reshape(b, kv_heads, s, heads // kv_heads, t) + unseen
    weights = jnp.exp(scores - jnp.max(scores, axis=2, keepdims=True))
    total = jnp.sum(weights, axis=2).reshape(b, kv_heads, 1, -1)
    weights = weights.reshape(b, kv_heads, s, -1)
    found = _product(v.transpose(0, 2, 3, 1), weights.astype(v.dtype)) / total
    return _tokens(found, q.shape).astype(q.dtype), (q, k, v, mask, weights, total, found)


def _backward(scale: float, kept: Any, cotangent: Any) -> tuple[Any, Any, Any, None]:
    q, k, v, mask, weights, total, found = kept
    kv_heads, factor = k.shape[2], jnp.asarray(scale, q.dtype)
    turned = lambda x: x.swapaxes(2, 3)
    share = _queries(cotangent.astype(jnp.float32), kv_heads) / total
    dv = _product(weights.astype(v.dtype), turned(share).astype(v.dtype))
    # A query that sees nothing has even weights whatever its scores are.
    sees = jnp.broadcast_to(jnp.any(mask, axis=2)[:, :, None, None], (*q.shape[:3], 1))
    share = share * _queries(sees.astype(share.dtype), kv_heads)
    # The barrier keeps the sum out of the loop over all scores, where it would be made again for every key.
    level = lax.optimization_barrier(jnp.sum(found * share, axis=2, keepdims=True))
    slope = (weights * (_product(v.transpose(0, 2, 1, 3), share.astype(v.dtype)) - level)).astype(k.dtype)
    dk = _product(slope, turned(_queries(q * factor, kv_heads)))
    dq = _product(k.transpose(0, 2, 3, 1), slope) * factor
    keys = lambda x, like: x.transpose(0, 2, 1, 3).astype(like.dtype)
    return _tokens(dq, q.shape).astype(q.dtype), keys(dk, k), keys(dv, v), None


attend_columns.defvjp(_forward, _backward)


def _product(a: Any, b: Any) -> Any:
    """`a b` of each row and head, in float32."""
    return lax.dot_general(a, b, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _queries(x: Any, kv_heads: int) -> Any:
    """`(b, t, heads, e)` as `(b, kv_heads, e, group t)`: a column for each query of a key head."""
    b, t, heads, e = x.shape
    return x.reshape(b, t, kv_heads, heads // kv_heads, e).transpose(0, 2, 4, 3, 1).reshape(b, kv_heads, e, -1)


def _tokens(x: Any, shape: tuple[int, ...]) -> Any:
    """Back from `_queries`."""
    b, t, _, e = shape
    return x.reshape(b, x.shape[1], e, -1, t).transpose(0, 4, 1, 3, 2).reshape(shape)
