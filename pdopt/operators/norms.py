"""The spectral norm of an operator by power iteration on `A A'`."""

from typing import Any

import jax.numpy as jnp
from jax import lax

POWER_ITERATIONS = 5000  # cuPDLPx's limit
GOLDEN = 0x9E3779B1  # 2^32 over the golden ratio, the odd number next to it


def spectral_norm(
    operator: Any, size: int, dtype: Any, *, tolerance: float = 1e-4, limit: int = POWER_ITERATIONS
) -> Any:
    """`|A|_2` to about `tolerance`, from a fixed scattered start; 0 for a zero operator.

    Stops when `|A A'v - lambda v| < tolerance lambda` with `|v| = 1`, or after `limit` products. Power iteration
    approaches from below, so a step size takes a margin (0.998).

    Args:
        operator: has `matvec` and `rmatvec`.
        size: m, the length of `A x`.

    Example:
        >>> from pdopt.operators.dense import Dense
        >>> print(round(float(spectral_norm(Dense(jnp.diag(jnp.array([3.0, 1.0]))), 2, jnp.float32)), 3))
        3.0
    """
    if size == 0:
        return jnp.zeros((), dtype)
    start = _scattered(size, dtype)

    def body(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        v, _, _, count = carry
        image = operator.matvec(operator.rmatvec(v))
        value = v @ image
        error = jnp.linalg.norm(image - value * v)
        norm = jnp.linalg.norm(image)
        return image / jnp.where(norm > 0, norm, 1), value, error, count + 1

    def unsettled(carry: tuple[Any, Any, Any, Any]) -> Any:
        _, value, error, count = carry
        return (count < limit) & (error > tolerance * value)

    first = (start / jnp.linalg.norm(start), jnp.ones((), dtype), jnp.full((), jnp.inf, dtype), jnp.int32(0))
    return jnp.sqrt(jnp.maximum(lax.while_loop(unsettled, body, first)[1], 0))


def _scattered(size: int, dtype: Any) -> Any:
    """Numbers in [-1/2, 1/2) without a pattern, one cheap kernel: the fractional parts of `i^2` times the golden ratio.

    Computed with integers that wrap around, since a product of floats would have no fractional digits left.
    """
    place = jnp.arange(size, dtype=jnp.uint32)
    return (place * place * jnp.uint32(GOLDEN)).astype(dtype) / 2.0**32 - 0.5
