"""Convex functions with their proximal maps: `prox(x, step) = argmin_z f(z) + |z - x|^2 / (2 step)`.

    function                        f(x)                    prox(x, s)                        conjugate f*(y)
    Zero                            0                       x                                 0 at y = 0
    Linear(c)                       c'x                     x - s c                           0 at y = c
    Quadratic(d, c)                 sum d x^2/2 + c x       (x - s c) / (1 + s d)             sum (y - c)^2 / (2 d)
    L1(w)                           sum w |x|               sign(x) max(|x| - s w, 0)         0 on |y| <= w
    L2(w)         (rows)            w |x|_2                 x max(1 - s w / |x|_2, 0)         0 on |y|_2 <= w
    Linf(w)       (rows)            w max |x|               x - project on |z|_1 <= s w       0 on |y|_1 <= w
    NegativeEntropy(w)              sum w x log x           s w omega(x/(s w) - 1 - log s w)  sum w exp(y/w - 1)

(a conjugate is infinite where nothing is said; omega(a) solves `u + log u = a`, Wright's function.) A point is an array
or a pytree of arrays, over which f is summed; *rows* act on the last axis. A step is a positive scalar, an array that
broadcasts against the point (for rows: one number for each row, of shape `(..., 1)`), or a prefix pytree.
Parameters are not checked where they are traced. Indicators and the calculus of these records: `calculus.py`.
Source: Parikh and Boyd, "Proximal algorithms" (2014); Lambert-type prox: Combettes and Pesquet (2011), table 2.
"""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.geometry.balls import L1Ball
from pdopt.geometry.checks import require_no_nan, require_sign
from pdopt.geometry.divergences import x_log_x
from pdopt.geometry.points import direction, floating, like, per_row, spread, total
from pdopt.types import record


class Function(abc.ABC):
    """A closed convex function with a proximal map.

    Attributes:
        is_indicator: f takes only the values 0 and infinity, so the prox does not depend on the step.
        is_support: `f(a x) = a f(x)` for `a > 0`: f is the support function of a set, its conjugate an indicator.
    """

    is_indicator: ClassVar[bool] = False
    is_support: ClassVar[bool] = False

    @property
    def strong_convexity(self) -> Any:
        """The largest m >= 0 known with `f - m |x|^2/2` convex."""
        return 0.0

    @abc.abstractmethod
    def __call__(self, x: Any) -> jax.Array:
        """`f(x)`, a scalar; infinite outside the domain."""

    @abc.abstractmethod
    def prox(self, x: Any, step: Any) -> Any:
        """`argmin_z f(z) + |z - x|^2 / (2 step)`; keeps the structure and dtypes of x."""

    @abc.abstractmethod
    def conjugate(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """`f*(y) = sup_x <x, y> - f(x)`, a scalar; `tolerance` is the slack in membership of its domain."""


class ArrayFunction(Function):
    """A function of arrays, summed over the leaves of a pytree. A subclass writes the three array functions."""

    def __call__(self, x: Any) -> jax.Array:
        return total(jax.tree.map(lambda leaf: self._value(floating(leaf)), x))

    def prox(self, x: Any, step: Any) -> Any:
        """The proximal map, leaf by leaf."""

        def leaf(x: Any, step: Any) -> jax.Array:
            x = floating(x)
            return self._prox(x, like(step, x))

        return jax.tree.map(leaf, x, spread(step, x))

    def conjugate(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """The conjugate, summed over leaves."""
        return total(jax.tree.map(lambda leaf: self._conjugate(floating(leaf), tolerance), y))

    @abc.abstractmethod
    def _value(self, x: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array: ...


@record
class Zero(ArrayFunction):
    """`f = 0`, the indicator of the whole space.

    Example:
        >>> print(Zero().prox(jnp.array([1.0, -2.0]), 0.5))
        [ 1. -2.]
    """

    is_indicator: ClassVar[bool] = True
    is_support: ClassVar[bool] = True

    def _value(self, x: jax.Array) -> jax.Array:
        return jnp.zeros((), x.dtype)

    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        return x

    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return zero_where(jnp.abs(y) <= like(tolerance, y), y)


@record
class Linear(ArrayFunction):
    """`f(x) = sum c x`.

    Attributes:
        c: scalar or array that broadcasts against the point.

    Raises:
        InvalidProblem: NaN in c.

    Example:
        >>> print(Linear(2.0).prox(jnp.array([1.0, -2.0]), 0.5))
        [ 0. -3.]
    """

    c: Any
    is_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_no_nan(c=self.c)

    def _value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(like(self.c, x) * x)

    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        return x - step * like(self.c, x)

    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return zero_where(jnp.abs(y - like(self.c, y)) <= like(tolerance, y), y)


@record
class Quadratic(ArrayFunction):
    """`f(x) = sum (d x^2 / 2 + c x)` with `d >= 0`; entries with `d = 0` are linear.

    Attributes:
        diagonal: d, scalar or array, finite, >= 0.
        linear: c, scalar or array.

    Raises:
        InvalidOption: a negative or non-finite diagonal.
        InvalidProblem: NaN in the linear part.

    Example:
        >>> print(Quadratic(3.0, 1.0).prox(jnp.array([1.0, 5.0]), 1.0))
        [0. 1.]
    """

    diagonal: Any
    linear: Any = 0.0

    def __post_init__(self) -> None:
        require_sign("diagonal", self.diagonal)
        require_no_nan(linear=self.linear)

    @property
    def strong_convexity(self) -> Any:
        """The smallest entry of the diagonal."""
        return jnp.min(floating(self.diagonal))

    def _value(self, x: jax.Array) -> jax.Array:
        # In this order an entry without curvature never meets an overflowed square.
        return jnp.sum(x * (like(self.diagonal, x) * x / 2 + like(self.linear, x)))

    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        return (x - step * like(self.linear, x)) / (1 + step * like(self.diagonal, x))

    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array:
        d, gap = like(self.diagonal, y), y - like(self.linear, y)
        curved = jnp.broadcast_to(d > 0, gap.shape)
        value = jnp.where(curved, gap**2 / (2 * jnp.where(d > 0, d, 1)), 0)
        return jnp.sum(value) + zero_where(curved | (jnp.abs(gap) <= like(tolerance, y)), y)


@record
class L1(ArrayFunction):
    """`f(x) = sum w |x|`; the prox is soft thresholding.

    Attributes:
        weight: w, scalar or array, finite, >= 0.

    Raises:
        InvalidOption: a weight that is negative or not finite.

    Example:
        >>> print(L1(1.0).prox(jnp.array([3.0, -0.5]), 1.0))
        [ 2. -0.]
    """

    weight: Any = 1.0
    is_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_sign("weight", self.weight)

    def _value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(like(self.weight, x) * jnp.abs(x))

    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - step * like(self.weight, x), 0)

    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array:
        return zero_where(jnp.abs(y) <= like(self.weight, y) + like(tolerance, y), y)


@record
class L2(ArrayFunction):
    """`f(x) = sum over rows of w |x|_2`: the group norm; the prox shrinks each row towards 0.

    Attributes:
        weight: w, scalar or one number for each row, finite, >= 0.

    Raises:
        InvalidOption: a weight that is negative or not finite.

    Example:
        >>> print(L2(2.5).prox(jnp.array([3.0, 4.0]), 1.0))
        [1.5 2. ]
    """

    weight: Any = 1.0
    is_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_sign("weight", self.weight)

    def _value(self, x: jax.Array) -> jax.Array:
        _, n, m = direction(x, axis=-1)
        return jnp.sum(per_row(self.weight, x) * m * n)

    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        reach = _row_step(step, x) * per_row(self.weight, x)
        w, n, m = direction(x, axis=-1)
        # Subtracts along the unit vector, so that a huge row keeps its digits and a short one is exactly 0.
        outside = m * n > reach
        unit = w / jnp.where(outside, n, jnp.ones_like(n))
        return jnp.where(outside, x - reach * unit, jnp.zeros_like(x))

    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array:
        _, n, m = direction(y, axis=-1)
        return zero_where(m * n <= per_row(self.weight, y) + like(tolerance, y), y)


@record
class Linf(ArrayFunction):
    """`f(x) = sum over rows of w max |x|`; the prox clips the largest entries, by Moreau from the l1 ball.

    Attributes:
        weight: w, scalar or one number for each row, finite, >= 0.

    Raises:
        InvalidOption: a weight that is negative or not finite.

    Example:
        >>> print(Linf(1.0).prox(jnp.array([3.0, -2.5, 1.0]), 1.0))
        [ 2.25 -2.25  1.  ]
    """

    weight: Any = 1.0
    is_support: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_sign("weight", self.weight)

    def _value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(per_row(self.weight, x) * jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0))

    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        reach = _row_step(step, x) * per_row(self.weight, x)
        return x - L1Ball(reach[..., 0] if reach.ndim else reach).project(x)

    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array:
        size = jnp.sum(jnp.abs(y), axis=-1, keepdims=True)
        return zero_where(size <= per_row(self.weight, y) + like(tolerance, y), y)


@record
class NegativeEntropy(ArrayFunction):
    """`f(x) = sum w x log x` for `x >= 0`, with `0 log 0 = 0`; the prox is positive for every x.

    It is strongly convex on bounded sets only, so the declared constant is 0.

    Attributes:
        weight: w, scalar or array, finite, > 0.

    Raises:
        InvalidOption: a weight that is not positive and finite.

    Example:
        >>> print(NegativeEntropy(1.0).prox(jnp.array([2.0]), 1.0))
        [1.]
    """

    weight: Any = 1.0

    def __post_init__(self) -> None:
        require_sign("weight", self.weight, positive=True)

    def _value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(like(self.weight, x) * x_log_x(x))

    def _prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        scale = step * like(self.weight, x)
        return scale * jnp.exp(log_omega(x / scale - 1 - jnp.log(scale)))

    def _conjugate(self, y: jax.Array, tolerance: Any) -> jax.Array:
        weight = like(self.weight, y)
        return jnp.sum(weight * jnp.exp(y / weight - 1))


@jax.custom_jvp
def log_omega(a: jax.Array) -> jax.Array:
    """`q` with `exp(q) + q = a`: the logarithm of Wright's omega function, for any finite a.

    Newton's method on a convex increasing function, started at or above the root (at `log a` for `a >= 1`, else at
    `min(a, 0)`), so it decreases to the root; six steps reach float64 rounding from there.

    Example:
        >>> print(log_omega(jnp.array([1.0])))
        [0.]
    """
    q = jnp.where(a >= 1, jnp.log(jnp.maximum(a, 1)), jnp.minimum(a, 0))
    for _ in range(6):
        e = jnp.exp(q)
        q = q - (e + q - a) / (e + 1)
    return q


@log_omega.defjvp
def _log_omega_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    q = log_omega(primals[0])
    return q, tangents[0] / (jnp.exp(q) + 1)


def _row_step(step: jax.Array, x: jax.Array) -> jax.Array:
    """The step of a function of rows; within a row the metric must be a multiple of the identity."""
    if step.ndim and step.shape[-1] != 1:
        raise InvalidProblem(
            f"step has shape {step.shape}; expected a scalar or (..., 1) because f couples the last axis"
        )
    return step


def zero_where(inside: jax.Array, y: jax.Array) -> jax.Array:
    """0 if the condition holds everywhere, else infinity: an indicator's value, in the dtype of y.

    Example:
        >>> print(zero_where(jnp.array([True, False]), jnp.zeros(2)))
        inf
    """
    return jnp.where(jnp.all(inside), jnp.zeros((), y.dtype), jnp.full((), jnp.inf, y.dtype))
