"""The subspace of vectors that sum to zero: prices that matter only up to a constant.

C = { y : sum_j y_j = 0 },   project(x) = x - mean(x),   support(y) = 0 where y is constant, else infinite
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pdopt.geometry.points import like
from pdopt.geometry.sets import ArraySet
from pdopt.types import record


@record
class ZeroSum(ArraySet):
    """Rows (last axis) that sum to zero: the multipliers of constraints whose violations always sum to zero.

    Moving such a multiplier by `Euclidean(ZeroSum())` is the plain step with its constant part removed: it keeps one
    representative of each class of multipliers that price the same, so a step that is not orthogonal to the constants
    (signs of violations, rounding) cannot make them drift.

    Example:
        >>> print(ZeroSum().project(jnp.array([1.0, 2.0, 6.0])), ZeroSum().support(jnp.array([2.0, 2.0])))
        [-2. -1.  3.] 0.0
    """

    is_cone: ClassVar[bool] = True

    def _project(self, x: jax.Array) -> jax.Array:
        return x - jnp.mean(x, axis=-1, keepdims=True)

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        outside = jnp.max(jnp.abs(self._project(y)), initial=0) > like(tolerance, y)
        return jnp.where(outside, jnp.full((), jnp.inf, y.dtype), jnp.zeros((), y.dtype))
