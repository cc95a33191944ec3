"""The second-order cone `K = {(t, z) : |z|_2 <= t}` on the last axis; the FIRST entry is the bound t (as in Clarabel
and SCS). It is its own dual: the polar cone is -K.

    project(t, z) = (t, z)                     |z| <= t
                  = 0                          |z| <= -t
                  = (|z| + t)/2 (1, z/|z|)     otherwise
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.geometry.points import direction, finite, like
from pdopt.geometry.sets import ArraySet
from pdopt.types import record


@record
class SecondOrderCone(ArraySet):
    """`x[..., 0] >= |x[..., 1:]|_2`; leading axes hold independent cones. `support(y) = 0` for `-y` in the cone.

    The projection is differentiable inside, outside, and in between, not on the two cones' boundaries. With a last
    axis of length 1 the cone is the half line `t >= 0`.

    Raises:
        InvalidProblem: a point without a last axis, or with an empty one.

    Example:
        >>> print(SecondOrderCone().project(jnp.array([0.0, 3.0, 4.0])))
        [2.5 1.5 2. ]
    """

    is_cone: ClassVar[bool] = True

    def _project(self, x: jax.Array) -> jax.Array:
        t, z = _split(finite(x))
        w, n, m = direction(z, axis=-1)
        size = m * n
        above, below = size <= t, size <= -t
        between = ~(above | below)
        # Halves are added, not the sum halved: both may be near the largest finite number.
        bound = 0.5 * size + 0.5 * t
        unit = w / jnp.where(between, n, jnp.ones_like(n))
        apex = jnp.concatenate([bound, bound * unit], axis=-1)
        return jnp.where(above, x, jnp.where(below, jnp.zeros_like(x), apex))

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        t, z = _split(y)
        _, n, m = direction(z, axis=-1)
        inside = jnp.all(m * n <= -t + like(tolerance, y))
        return jnp.where(inside, jnp.zeros((), y.dtype), jnp.full((), jnp.inf, y.dtype))


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bound `(..., 1)` and the rest `(..., n - 1)`."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise InvalidProblem(f"the point has shape {x.shape}; expected a last axis of length >= 1 (bound first)")
    return x[..., :1], x[..., 1:]
