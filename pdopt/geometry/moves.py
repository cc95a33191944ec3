"""Moves: how a point ascends inside a set, `y' = move(y, v, step)`. Nothing else changes a multiplier.

Every move but `Sign` is a proximal step: for a convex h of y alone and a Bregman divergence D

    move(y, v, step) = argmax_z  <z, v> - h(z) - D(z, y) / step
    penalty(y, v, rho) = max_z   <z, v> - h(z) - D(z, y) / rho          (the Moreau envelope)

so the gradient of the penalty in v is the moved multiplier, `d penalty / dv = move(y, v, rho)`: what an augmented
Lagrangian minimises in x is `f(x) + penalty(y, violation(x), rho)`, and moving y afterwards makes that gradient the one
of the Lagrangian (Rockafellar 1974).

    move                h                             D                              y'  (t = y + step v)
    Euclidean(set)      indicator of the set          |z - y|^2 / 2                  project(t)
    Interval(rl, ru)    support of [-ru, -rl]         |z - y|^2 / 2                  t - step clip(t/step, -ru, -rl)
    Proximal(h)         any record of proximals.py    |z - y|^2 / 2                  h.prox(t, step)
    Entropic(set)       indicator of the set          entropy                        see `entropic.py`
    Sign(set)           indicator of the set          max |z - y| <= step instead    project(y + step sign v)

A step is a scalar, an array that broadcasts against the point, or a pytree that is a prefix of it. Arrays (a diagonal
metric) are right for sets and functions that act on each entry; rows (last axis) need one step a row, `(..., 1)`.
Steps are positive.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption
from pdopt.geometry.checks import require_order
from pdopt.geometry.divergences import SquaredEuclidean
from pdopt.geometry.points import floating, inner, like, spread, total
from pdopt.geometry.sets import ConvexSet, Orthant
from pdopt.types import record


class Move(abc.ABC):
    """What every move offers; `y`, `v` are arrays or pytrees of equal structure, and y' keeps the dtype of y."""

    @abc.abstractmethod
    def __call__(self, y: Any, v: Any, step: Any) -> Any:
        """The moved point."""

    @abc.abstractmethod
    def penalty(self, y: Any, v: Any, rho: Any) -> jax.Array:
        """The Moreau envelope, a scalar; differentiable, with `d/dv = move(y, v, rho)`."""

    def divergence(self, y: Any, z: Any) -> jax.Array:
        """The Bregman divergence `D(y, z)` that the move is a proximal step of."""
        return SquaredEuclidean()(y, z)


@record
class Euclidean(Move):
    """`y' = project(y + step v)`: projected gradient ascent. For the orthant, `max(0, y + step v)`.

    Attributes:
        set: where y lives; `Orthant()` for inequalities, `Reals()` for equalities, a `Product` for both.

    Example:
        >>> print(Euclidean(Orthant())(jnp.array([0.5, 0.5]), jnp.array([1.0, -1.0]), 1.0))
        [1.5 0. ]
    """

    set: ConvexSet = Orthant()

    def __call__(self, y: Any, v: Any, step: Any) -> Any:
        return self.set.project(climb(y, v, step))

    def penalty(self, y: Any, v: Any, rho: Any) -> jax.Array:
        """`<z, v> - |z - y|^2 / (2 rho)` at the moved point z.

        For the orthant `(|max(0, y + rho v)|^2 - |y|^2) / (2 rho)`, for the reals `<y, v> + rho |v|^2 / 2`; the form
        used here does not subtract two large squares. Derivatives of every order are those of the envelope, since z
        is differentiated too.
        """
        z = self(y, v, rho)
        return inner(z, _cast(v, z)) - _proximity(z, y, rho)


@record
class Interval(Move):
    """The move of a two-sided row `row_lower <= a'x <= row_upper`, with violation `v = -A seen`.

        t = y + step v,   y' = t - step clip(t/step, -row_upper, -row_lower)

    y is the signed row dual: `>= 0` where the row is at its lower side, `<= 0` at its upper side, exactly 0 in between.
    Infinite sides need no case: a row without sides has y' = 0. An equality (`row_lower = row_upper = b`) is moved by
    `y + step (b - a'x)`. Computed as `max(t + step row_lower, 0) + min(t + step row_upper, 0)`, which is the same and
    leaves no rounding where the clip is inactive. It moves one array; its domain is not checked (y may start anywhere).

    Attributes:
        row_lower: array or scalar, -inf where there is no lower side.
        row_upper: array or scalar, +inf where there is no upper side.

    Raises:
        InvalidProblem: NaN, or sides out of order.

    Example:
        >>> rows = Interval(jnp.array([1.0, -jnp.inf]), jnp.array([1.0, 2.0]))
        >>> print(rows(jnp.zeros(2), -jnp.array([0.5, 5.0]), 1.0))
        [ 0.5 -3. ]
    """

    row_lower: Any
    row_upper: Any

    def __post_init__(self) -> None:
        require_order("row_lower", self.row_lower, "row_upper", self.row_upper)

    def __call__(self, y: Any, v: Any, step: Any) -> Any:
        t = climb(floating(y), v, step)
        (low, has_low), (high, has_high) = _sides(self.row_lower, t), _sides(self.row_upper, t)
        step = like(step, t)
        zero = jnp.zeros((), t.dtype)
        up = jnp.where(has_low, jnp.maximum(t + step * low, zero), zero)
        down = jnp.where(has_high, jnp.minimum(t + step * high, zero), zero)
        return up + down

    def penalty(self, y: Any, v: Any, rho: Any) -> jax.Array:
        """`<z, v> + rl [z]+ - ru [-z]+ - |z - y|^2 / (2 rho)` at the moved point z."""
        z = self(y, v, rho)
        (low, _), (high, _) = _sides(self.row_lower, z), _sides(self.row_upper, z)
        rows = jnp.where(z > 0, low, high) * z
        return inner(z, like(v, z)) + jnp.sum(rows) - _proximity(z, y, rho)


@record
class Proximal(Move):
    """`y' = prox of step h at (y + step v)`: a regularised multiplier, for any record of `proximals.py`.

    Attributes:
        h: the convex function of y; quadratic for a multiplier that is pulled towards a point.

    Example:
        >>> from pdopt.geometry.proximals import Quadratic
        >>> print(Proximal(Quadratic(1.0))(jnp.array([1.0]), jnp.array([1.0]), 1.0))
        [1.]
    """

    h: Any

    def __call__(self, y: Any, v: Any, step: Any) -> Any:
        return self.h.prox(climb(y, v, step), step)

    def penalty(self, y: Any, v: Any, rho: Any) -> jax.Array:
        """`<z, v> - h(z) - |z - y|^2 / (2 rho)` at the moved point z."""
        z = self(y, v, rho)
        return inner(z, _cast(v, z)) - self.h(z) - _proximity(z, y, rho)


@record
class Sign(Move):
    """`y' = project(y + step sign v)`: steepest ascent in the l-infinity norm (expert balancing by signs).

    It is no Bregman step: the distance to y is a constraint, `max |z - y| <= step`. Its penalty
    `max { <z, v> : z in C, max |z - y| <= rho } = <y', v>` has the moved point as gradient wherever no entry of v is 0;
    for the reals it is `<y, v> + rho |v|_1`, the exact penalty. Its `divergence` is the one of its projection.

    Attributes:
        set: a set that acts on each entry (`separable`).

    Raises:
        InvalidOption: a set that is not separable, where the moved point is not the maximiser.

    Example:
        >>> print(Sign(Orthant())(jnp.array([0.5, 0.5, 0.5]), jnp.array([0.1, -9.0, 0.0]), 1.0))
        [1.5 0.  0.5]
    """

    set: ConvexSet = Orthant()

    def __post_init__(self) -> None:
        if isinstance(self.set, ConvexSet) and not self.set.separable:
            raise InvalidOption(f"set is {self.set!r}; expected one that acts on each entry: Reals, Orthant, Box")

    def __call__(self, y: Any, v: Any, step: Any) -> Any:
        return self.set.project(climb(y, jax.tree.map(jnp.sign, v), step))

    def penalty(self, y: Any, v: Any, rho: Any) -> jax.Array:
        """`<y', v>` for y in the set: the exact penalty with bound rho on each multiplier's change."""
        z = self(y, v, rho)
        return inner(z, _cast(v, z))


def climb(y: Any, v: Any, step: Any) -> Any:
    """`y + step v`, leaf by leaf, in the dtype of y.

    Example:
        >>> print(climb(jnp.array([1.0]), jnp.array([2.0]), 0.5))
        [2.]
    """

    def leaf(y: Any, v: Any, step: Any) -> jax.Array:
        y = floating(y)
        return y + like(step, y) * like(v, y)

    return jax.tree.map(leaf, y, v, spread(step, y))


def _proximity(z: Any, y: Any, rho: Any) -> jax.Array:
    """`|z - y|^2 / (2 rho)`, rho a scalar, an array or a prefix tree."""
    return total(jax.tree.map(lambda a, b, r: jnp.sum((a - like(b, a)) ** 2 / (2 * like(r, a))), z, y, spread(rho, z)))


def _sides(value: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A side of a row with 0 where it is infinite, and whether it is finite."""
    value = like(value, x)
    present = jnp.isfinite(value)
    return jnp.where(present, value, jnp.zeros_like(value)), present


def _cast(v: Any, z: Any) -> Any:
    return jax.tree.map(like, v, z)
