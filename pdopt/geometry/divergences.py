"""Bregman divergences with conjugates: `D(x, z) = h(x) - h(z) - <h'(z), x - z>` for a convex potential h.

    divergence          h(x)                               h'(x) (mirror map)    inverse                 h*(y)
    SquaredEuclidean    x^2 / 2                            x                     y                       y^2 / 2
    KullbackLeibler     x log x - x,  x >= 0               log x                 exp y                   exp y
    ItakuraSaito        -log x,  x > 0                     -1 / x                -1 / y,  y < 0          -1 - log(-y)
    FermiDirac(l, u)    (x-l) log(x-l) + (u-x) log(u-x)    log((x-l) / (u-x))    l + (u-l) sigmoid(y)    see there

(summed over entries and leaves). Divergences are computed in forms that do not subtract potentials, so that they are
accurate where x and z nearly agree. Three-point identity: `D(x, z) = D(x, w) + D(w, z) + <h'(w) - h'(z), x - w>`.
Sources: Bregman (1967); Bauschke and Borwein, "Legendre functions and the method of random Bregman projections" (1997).
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pdopt.geometry.checks import require_order, require_sign
from pdopt.geometry.points import floating, inner, like, total
from pdopt.types import record


class Divergence(abc.ABC):
    """A Bregman divergence of two points (arrays or pytrees of equal structure), with its potential and mirror maps."""

    def __call__(self, x: Any, z: Any) -> jax.Array:
        """`D(x, z) >= 0`, a scalar; 0 only at `x = z`. Infinite where x or z leaves the domain."""
        return total(jax.tree.map(lambda a, b: jnp.sum(self._divergence(*_pair(a, b))), x, z))

    def potential(self, x: Any) -> jax.Array:
        """`h(x)`, a scalar; infinite outside the domain."""
        return total(jax.tree.map(lambda leaf: jnp.sum(self._potential(floating(leaf))), x))

    def conjugate(self, y: Any) -> jax.Array:
        """`h*(y) = sup_x <x, y> - h(x)`, a scalar."""
        return total(jax.tree.map(lambda leaf: jnp.sum(self._conjugate(floating(leaf))), y))

    def gradient(self, x: Any) -> Any:
        """The mirror map `h'(x)`, from points to multipliers, entry by entry."""
        return jax.tree.map(lambda leaf: self._gradient(floating(leaf)), x)

    def inverse(self, y: Any) -> Any:
        """The inverse mirror map `(h')^-1 (y) = (h*)'(y)`, entry by entry."""
        return jax.tree.map(lambda leaf: self._inverse(floating(leaf)), y)

    @abc.abstractmethod
    def _divergence(self, x: jax.Array, z: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _potential(self, x: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _conjugate(self, y: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _gradient(self, x: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _inverse(self, y: jax.Array) -> jax.Array: ...


@record
class SquaredEuclidean(Divergence):
    """`|x - z|^2 / 2`.

    Example:
        >>> float(SquaredEuclidean()(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])))
        2.0
    """

    def _divergence(self, x: jax.Array, z: jax.Array) -> jax.Array:
        return (x - z) ** 2 / 2

    def _potential(self, x: jax.Array) -> jax.Array:
        return x**2 / 2

    def _conjugate(self, y: jax.Array) -> jax.Array:
        return y**2 / 2

    def _gradient(self, x: jax.Array) -> jax.Array:
        return x

    def _inverse(self, y: jax.Array) -> jax.Array:
        return y


@record
class KullbackLeibler(Divergence):
    """`sum x log(x/z) - x + z` for `x, z >= 0` (unnormalised), with `0 log 0 = 0`; infinite where `z = 0 < x`.

    Example:
        >>> float(KullbackLeibler()(jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0])))
        2.0
    """

    def _divergence(self, x: jax.Array, z: jax.Array) -> jax.Array:
        return relative_entropy(x, z)

    def _potential(self, x: jax.Array) -> jax.Array:
        return x_log_x(x) - x

    def _conjugate(self, y: jax.Array) -> jax.Array:
        return jnp.exp(y)

    def _gradient(self, x: jax.Array) -> jax.Array:
        return jnp.log(x)

    def _inverse(self, y: jax.Array) -> jax.Array:
        return jnp.exp(y)


@record
class ItakuraSaito(Divergence):
    """`sum x/z - log(x/z) - 1` for `x, z > 0`: depends on ratios only (the Burg entropy; Itakura, Saito 1968).

    Example:
        >>> round(float(ItakuraSaito()(jnp.array([2.0]), jnp.array([1.0]))), 4)
        0.3069
    """

    def _divergence(self, x: jax.Array, z: jax.Array) -> jax.Array:
        inside = (x > 0) & (z > 0)
        excess = jnp.where(inside, (x - z) / jnp.where(inside, z, 1), 0)
        return jnp.where(inside, excess - jnp.log1p(excess), jnp.inf)

    def _potential(self, x: jax.Array) -> jax.Array:
        return jnp.where(x > 0, -jnp.log(jnp.where(x > 0, x, 1)), jnp.inf)

    def _conjugate(self, y: jax.Array) -> jax.Array:
        return jnp.where(y < 0, -1 - jnp.log(jnp.where(y < 0, -y, 1)), jnp.inf)

    def _gradient(self, x: jax.Array) -> jax.Array:
        return -1 / x

    def _inverse(self, y: jax.Array) -> jax.Array:
        return -1 / y


@record
class FermiDirac(Divergence):
    """`sum (x-l) log((x-l)/(z-l)) + (u-x) log((u-x)/(u-z))` on the box `l <= x <= u` (both finite, `l < u`).

    `h*(y) = l y + w log(1 + e^y) - w log w` with `w = u - l`. The mirror map of a box, as Kullback-Leibler is of the
    orthant.

    Attributes:
        lower: finite scalar or array.
        upper: finite scalar or array, above `lower`.

    Raises:
        InvalidProblem: bounds that are NaN or out of order.
        InvalidOption: `upper - lower` not finite and positive.

    Example:
        >>> print(FermiDirac(0.0, 2.0).inverse(FermiDirac(0.0, 2.0).gradient(jnp.array([1.0]))))
        [1.]
    """

    lower: Any = 0.0
    upper: Any = 1.0

    def __post_init__(self) -> None:
        require_order("lower", self.lower, "upper", self.upper)
        require_sign("upper - lower", jnp.subtract(self.upper, self.lower), positive=True)

    def _divergence(self, x: jax.Array, z: jax.Array) -> jax.Array:
        l, u = like(self.lower, x), like(self.upper, x)
        return relative_entropy(x - l, z - l) + relative_entropy(u - x, u - z)

    def _potential(self, x: jax.Array) -> jax.Array:
        return x_log_x(x - like(self.lower, x)) + x_log_x(like(self.upper, x) - x)

    def _conjugate(self, y: jax.Array) -> jax.Array:
        l, w = like(self.lower, y), like(self.upper, y) - like(self.lower, y)
        return l * y + w * jax.nn.softplus(y) - w * jnp.log(w)

    def _gradient(self, x: jax.Array) -> jax.Array:
        return jnp.log(x - like(self.lower, x)) - jnp.log(like(self.upper, x) - x)

    def _inverse(self, y: jax.Array) -> jax.Array:
        l, u = like(self.lower, y), like(self.upper, y)
        return l + (u - l) * jax.nn.sigmoid(y)


@record(static=("potential",))
class Bregman:
    """The divergence of any differentiable convex potential, its mirror map by `jax.grad`.

    It subtracts potentials, so it loses about `eps |h|` where x and z nearly agree; the ones above do not. There is
    no inverse mirror map: that needs the conjugate, which a potential given as a function does not reveal.

    Attributes:
        potential: `h(x) -> scalar`, a function of a point (array or pytree); static, so define it once.

    Example:
        >>> float(Bregman(lambda x: jnp.sum(x**2) / 2)(jnp.array([3.0]), jnp.array([1.0])))
        2.0
    """

    potential: Callable[[Any], jax.Array]

    def gradient(self, x: Any) -> Any:
        """The mirror map `h'(x)`."""
        return jax.grad(self.potential)(jax.tree.map(floating, x))

    def __call__(self, x: Any, z: Any) -> jax.Array:
        """`h(x) - h(z) - <h'(z), x - z>`."""
        x, z = jax.tree.map(floating, x), jax.tree.map(floating, z)
        value, slope = jax.value_and_grad(self.potential)(z)
        return self.potential(x) - value - inner(slope, jax.tree.map(jnp.subtract, x, z))


def x_log_x(x: jax.Array) -> jax.Array:
    """`x log x`, 0 at 0 and infinite below.

    Example:
        >>> print(x_log_x(jnp.array([0.0, 1.0, -1.0])))
        [ 0.  0. inf]
    """
    positive = x > 0
    value = x * jnp.log(jnp.where(positive, x, 1))
    return jnp.where(positive, value, jnp.where(x < 0, jnp.inf, jnp.where(x == 0, 0, x)))


def relative_entropy(x: jax.Array, z: jax.Array) -> jax.Array:
    """`x log(x/z) - x + z` entry by entry, by `log1p` where x and z nearly agree, so that the logarithm is exact there.

    Example:
        >>> print(relative_entropy(jnp.array([0.0, 1.0, 1.0]), jnp.array([2.0, 1.0, 0.0])))
        [ 2.  0. inf]
    """
    inside = (x > 0) & (z > 0)
    safe_x, safe_z = jnp.where(inside, x, 1), jnp.where(inside, z, 1)
    gap = safe_x - safe_z
    near = jnp.abs(gap) < 0.5 * safe_z
    # x log(x/z) = -x log1p((z - x)/x); the same number, and exact to first order where x and z nearly agree.
    close = -safe_x * jnp.log1p(jnp.where(near, -gap / safe_x, 0)) - gap
    far = safe_x * (jnp.log(safe_x) - jnp.log(safe_z)) - gap
    outside = jnp.where((x < 0) | (z < 0) | ((z == 0) & (x > 0)), jnp.inf, z)
    return jnp.where(inside, jnp.maximum(jnp.where(near, close, far), 0), jnp.where(x == x, outside, x))


def _pair(x: Any, z: Any) -> tuple[jax.Array, jax.Array]:
    x = floating(x)
    return x, like(z, x)
