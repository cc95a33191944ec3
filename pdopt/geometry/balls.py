"""Sets of rows: simplex, l1 ball, l2 ball. Each acts on the last axis; the leading axes hold independent rows.

The simplex by its threshold (Held, Wolfe, Crowder 1974): `project(x) = max(x - tau, 0)` where `tau` makes the row sum
to its total; after sorting, the support is the largest k with `total + sum_{i <= k} (x_(k) - x_(i)) > 0`.

optax 0.2.8 has these projections, and they are not used: its simplex is one flattened vector (no rows), adds entries
of any size before subtracting them (three entries of 1e30 sum to 1.5 in float32, -inf gives NaN) and divides by the
total; its l1 ball branches with `lax.cond` and inherits the above; its l2 ball squares the entries (1e30 overflows
in float32). Here rows are shifted by their largest entry and entries further than `total` below it, which are 0 in
the projection whatever they are, are raised to that level first; infinities count as the largest finite number, so
a row of -inf projects to the uniform one.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.geometry.checks import require_sign
from pdopt.geometry.points import direction, finite, per_row
from pdopt.geometry.sets import ArraySet
from pdopt.types import record


@record
class Simplex(ArraySet):
    """`x >= 0, sum x = total` on the last axis. `support(y) = total max y`.

    Attributes:
        total: finite, >= 0; a scalar, or one number for each row. The projection is differentiable in it.

    Raises:
        InvalidOption: a total that is negative, infinite or NaN.
        InvalidProblem: a point without a last axis, or with an empty one.

    Example:
        >>> print(Simplex().project(jnp.array([[2.0, 1.5], [-jnp.inf, -jnp.inf]])))
        [[0.75 0.25]
         [0.5  0.5 ]]
    """

    total: Any = 1.0
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_sign("total", self.total)

    def _project(self, x: jax.Array) -> jax.Array:
        total = per_row(self.total, x)
        if x.shape[-1] == 0:
            raise InvalidProblem(f"the point has shape {x.shape}; expected a last axis of length >= 1 for a simplex")
        return simplex_projection(x, jnp.broadcast_to(total, (*x.shape[:-1], 1)))

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return jnp.sum(per_row(self.total, y) * jnp.max(y, axis=-1, keepdims=True))


@record
class L1Ball(ArraySet):
    """`sum |x_j| <= radius` on the last axis. `support(y) = radius max |y|`.

    Outside the ball `project(x) = sign(x) p` with p the projection of |x| on the simplex of total `radius`.

    Attributes:
        radius: finite, >= 0; a scalar, or one number for each row.

    Raises:
        InvalidOption: a radius that is negative, infinite or NaN.

    Example:
        >>> print(L1Ball(1.0).project(jnp.array([2.0, -1.5, 0.0])))
        [ 0.75 -0.25  0.  ]
    """

    radius: Any = 1.0
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_sign("radius", self.radius)

    def _project(self, x: jax.Array) -> jax.Array:
        radius = per_row(self.radius, x)
        if x.shape[-1] == 0:
            return x
        size = jnp.abs(x)
        shrunk = jnp.sign(x) * simplex_projection(size, jnp.broadcast_to(radius, (*x.shape[:-1], 1)))
        return jnp.where(jnp.sum(size, axis=-1, keepdims=True) <= radius, x, shrunk)

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return jnp.sum(per_row(self.radius, y) * jnp.max(jnp.abs(y), axis=-1, keepdims=True, initial=0.0))


@record
class L2Ball(ArraySet):
    """`|x|_2 <= radius` on the last axis. `support(y) = radius |y|_2`; outside, `project(x) = radius x / |x|_2`.

    Attributes:
        radius: finite, >= 0; a scalar, or one number for each row.

    Raises:
        InvalidOption: a radius that is negative, infinite or NaN.

    Example:
        >>> print(L2Ball(2.0).project(jnp.array([0.0, 1e30], jnp.float32)))
        [0. 2.]
    """

    radius: Any = 1.0
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_sign("radius", self.radius)

    def _project(self, x: jax.Array) -> jax.Array:
        radius = per_row(self.radius, x)
        w, n, m = direction(finite(x), axis=-1)
        inside = m * n <= radius
        return jnp.where(inside, x, w / jnp.where(inside, jnp.ones_like(n), n) * radius)

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        radius = per_row(self.radius, y)
        _, n, m = direction(y, axis=-1)
        return jnp.sum(radius * m * n)


@jax.custom_jvp
def simplex_projection(x: jax.Array, total: jax.Array) -> jax.Array:
    """The projection of each row of `x` (..., n) on `{p >= 0, sum p = total}`, `total` (..., 1) of the same dtype.

    Its derivative is `(dx - mean dx) + dtotal / k` on the k entries that are positive, 0 elsewhere.

    Example:
        >>> print(simplex_projection(jnp.array([2.0, 1.5, 0.0]), jnp.array([1.0])))
        [0.75 0.25 0.  ]
    """
    x = finite(x)
    z = jnp.maximum(x - jnp.max(x, axis=-1, keepdims=True), -total)
    down = jnp.flip(jnp.sort(z, axis=-1), axis=-1)
    sums = jnp.cumsum(down, axis=-1)
    rank = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    # The first entry always belongs to the support; for a total of 0 the test alone would find none.
    k = jnp.maximum(jnp.sum(total + rank * down - sums > 0, axis=-1, keepdims=True), 1)
    tau = (jnp.take_along_axis(sums, k - 1, axis=-1) - total) / k.astype(x.dtype)
    return jnp.maximum(z - tau, jnp.zeros((), x.dtype))


@simplex_projection.defjvp
def _simplex_projection_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (x, total), (dx, dtotal) = primals, tangents
    p = simplex_projection(x, total)
    active = (p > 0).astype(x.dtype)
    k = jnp.maximum(jnp.sum(active, axis=-1, keepdims=True), jnp.ones((), x.dtype))
    return p, active * (dx + (dtotal - jnp.sum(active * dx, axis=-1, keepdims=True)) / k)
