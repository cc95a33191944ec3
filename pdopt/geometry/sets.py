"""Convex sets that act on each entry by itself: the reals, the orthant, the box, the l-infinity ball.

A set C knows

    project(x)  = argmin { |z - x|_2 : z in C }
    support(y)  = sup { <y, z> : z in C }        infinite outside the barrier cone of C
    distance(x) = |x - project(x)|_2

and declares facts that hold for every instance of its class. A point is an array of any shape, or a pytree of arrays:
then C means the product of one copy of the set for each leaf. Different sets for different leaves: `products.Product`.
Sets of rows (simplex, l1 and l2 balls, second-order cone) are in `balls.py` and `cones.py`.

The orthant and the box use `optax.projections` (optax 0.2.8): right for infinite bounds, for 1e30 and under `vmap`,
once the bounds have the dtype of the point, which is done here. See `balls.py` for the ones that are not used.
"""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from optax import projections

from pdopt.geometry.checks import require_order, require_sign
from pdopt.geometry.points import floating, l2_norm, like, total
from pdopt.types import record


class ConvexSet(abc.ABC):
    """What every set offers.

    Attributes:
        is_cone: `x in C` implies `a x in C` for every `a >= 0`.
        bounded: the set is bounded, so its support function is finite everywhere.
        separable: the set is a product over entries, so it may be projected on in any diagonal metric.
    """

    is_cone: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    separable: ClassVar[bool] = False

    @abc.abstractmethod
    def project(self, x: Any) -> Any:
        """The nearest point of the set in the l2 norm. Differentiable almost everywhere."""

    @abc.abstractmethod
    def support(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """`sup { <y, z> : z in C }`, a scalar, summed over rows and leaves.

        Args:
            y: array or pytree of the shape of a point.
            tolerance: absolute slack allowed when deciding whether `y` lies in the barrier cone; the part of `y`
                within the slack counts as 0. A computed `y` needs a few units of rounding.
        """

    def distance(self, x: Any) -> jax.Array:
        """`|x - project(x)|_2` over all entries and leaves; its gradient inside the set is 0."""
        return l2_norm(jax.tree.map(lambda a, b: _gap(floating(a), b), x, self.project(x)))

    def contains(self, x: Any, tolerance: Any = 0.0) -> jax.Array:
        """Whether `distance(x) <= tolerance` (absolute, l2)."""
        return self.distance(x) <= tolerance


class ArraySet(ConvexSet):
    """A set of arrays; a pytree of points means one copy for each leaf. A subclass writes the two array functions."""

    def project(self, x: Any) -> Any:
        """The nearest point of the set, leaf by leaf."""
        return jax.tree.map(lambda leaf: self._project(floating(leaf)), x)

    def support(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """The support function, summed over leaves."""
        return total(jax.tree.map(lambda leaf: self._support(floating(leaf), tolerance), y))

    @abc.abstractmethod
    def _project(self, x: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array: ...


@record
class Reals(ArraySet):
    """Every point: the multipliers of equalities. `project(x) = x`; `support(y) = 0` at `y = 0`, else infinite.

    Example:
        >>> print(Reals().project(jnp.array([-1.0, 2.0])), Reals().support(jnp.array([1.0])))
        [-1.  2.] inf
    """

    is_cone: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def _project(self, x: jax.Array) -> jax.Array:
        return x

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return _zero_if(jnp.all(jnp.abs(y) <= like(tolerance, y)), y)


@record
class Orthant(ArraySet):
    """`x >= 0`: the multipliers of inequalities. `support(y) = 0` for `y <= 0`, else infinite.

    The derivative of the projection at 0 is 0: a multiplier at the boundary counts as inactive.

    Example:
        >>> print(Orthant().project(jnp.array([-1.0, 2.0])))
        [0. 2.]
    """

    is_cone: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def _project(self, x: jax.Array) -> jax.Array:
        return projections.projection_non_negative(x)

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return _zero_if(jnp.all(y <= like(tolerance, y)), y)


@record
class Box(ArraySet):
    """`lower <= x <= upper`, entry by entry; bounds broadcast against the point and may be infinite.

    A scalar point makes it an interval. `support(y) = sum_j (u_j [y_j]+ - l_j [-y_j]+)`, where an infinite bound
    contributes nothing at `y_j = 0`.

    Attributes:
        lower: scalar or array, -inf where there is no bound.
        upper: scalar or array, +inf where there is no bound.

    Raises:
        InvalidProblem: NaN, or bounds that leave no number between them.

    Example:
        >>> box = Box(jnp.array([0.0, -jnp.inf]), 1.0)
        >>> print(box.project(jnp.array([-2.0, -2.0])), box.support(jnp.array([3.0, 0.0])))
        [ 0. -2.] 3.0
    """

    lower: Any
    upper: Any
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_order("lower", self.lower, "upper", self.upper)

    def _project(self, x: jax.Array) -> jax.Array:
        return projections.projection_box(x, like(self.lower, x), like(self.upper, x))

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        side = jnp.where(y > 0, like(self.upper, y), like(self.lower, y))
        absent = (y == 0) | (jnp.isinf(side) & (jnp.abs(y) <= like(tolerance, y)))
        return jnp.sum(jnp.where(absent, jnp.zeros_like(y), y * jnp.where(absent, jnp.ones_like(side), side)))


@record
class LinfBall(ArraySet):
    """`max |x_j| <= radius`. `support(y) = radius |y|_1`.

    Attributes:
        radius: finite, >= 0; a scalar, or an array that broadcasts against the point.

    Raises:
        InvalidOption: a radius that is negative, infinite or NaN.

    Example:
        >>> print(LinfBall(2.0).project(jnp.array([-3.0, 1.0])), LinfBall(2.0).support(jnp.array([-3.0, 1.0])))
        [-2.  1.] 8.0
    """

    radius: Any = 1.0
    bounded: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_sign("radius", self.radius)

    def _project(self, x: jax.Array) -> jax.Array:
        radius = like(self.radius, x)
        return projections.projection_box(x, -radius, radius)

    def _support(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return jnp.sum(like(self.radius, y) * jnp.abs(y))


def _zero_if(inside: jax.Array, y: jax.Array) -> jax.Array:
    """The support function of a cone: 0 on the polar cone, infinite elsewhere."""
    return jnp.where(inside, jnp.zeros((), y.dtype), jnp.full((), jnp.inf, y.dtype))


def _gap(x: jax.Array, nearest: jax.Array) -> jax.Array:
    """`x - nearest`, and 0 where both are the same infinity."""
    same = x == nearest
    return jnp.where(same, jnp.zeros_like(x), x - jnp.where(same, jnp.zeros_like(x), nearest))
