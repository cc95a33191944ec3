"""Entropic moves: multiplicative ascent, whose distance is an entropy and which never leaves the set's interior.

    set                divergence         y'                              penalty(y, v, rho)
    Orthant            Kullback-Leibler   y exp(step v)                   sum y (exp(rho v) - 1) / rho
    Simplex(total)     Kullback-Leibler   total softmax(log y + step v)   total/rho log sum (y/total) exp(rho v)
    Box(l, u) finite   Fermi-Dirac        l + w p e / (1 - p + p e)       sum l v + w/rho log(1 - p + p e)

with `w = u - l`, `p = (y - l)/w`, `e = exp(step v)` or `exp(rho v)`. An entry at 0 (or at a bound of the box) stays
there: start inside. With a `scale` s > 0 for each entry the entropy is `sum s_i h(y_i)` and a step is divided by it,
`y exp(step v / s)`: with s in the units of the violation the step has none. Exponents are kept in the range of the
dtype, so a huge violation gives the largest finite number, never an infinity or a NaN.
Sources: Kivinen and Warmuth (1997); Beck and Teboulle (2003); Balseiro, Lu and Mirrokni (2020) for the dual form.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption
from pdopt.geometry.balls import Simplex
from pdopt.geometry.checks import concrete, require_sign
from pdopt.geometry.divergences import FermiDirac, KullbackLeibler
from pdopt.geometry.moves import Move
from pdopt.geometry.points import finite, floating, like, per_row, spread, total
from pdopt.geometry.sets import Box, ConvexSet, Orthant
from pdopt.types import record


@record
class Rate:
    """The scale that a problem with a rate fills in with its own: what `Entropic(scale="rate")` holds until then."""


@record
class Entropic(Move):
    """Mirror ascent by the entropy of the set.

    Attributes:
        set: `Orthant()`, `Simplex(total)` (rows on the last axis) or a `Box` with finite bounds.
        scale: positive weights of the entropy, a scalar or one for each entry (orthant and box); None for 1; "rate"
            for the rate of the problem that is solved, which its view fills in (`scaled`).

    Raises:
        InvalidOption: another set, a box with an infinite or empty side, a scale that is not positive or that the set
            has no use for, or, when it is called, one that was never filled in.

    Example:
        >>> y = Entropic(Simplex())(jnp.array([0.5, 0.5]), jnp.log(jnp.array([3.0, 1.0])), 1.0)
        >>> print(y.round(4))
        [0.75 0.25]
        >>> print(Entropic(scale=jnp.array([1.0, 2.0]))(jnp.ones(2), jnp.log(jnp.array([4.0, 4.0])), 1.0).round(4))
        [4. 2.]
    """

    set: ConvexSet = Orthant()
    scale: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            if self.scale != "rate":
                raise InvalidOption(f"scale is {self.scale!r}; expected positive numbers, None or 'rate'")
            object.__setattr__(self, "scale", Rate())
        if self.scale is not None and isinstance(self.set, Simplex):
            raise InvalidOption(f"scale is {self.scale!r} and set is {self.set!r}; expected no scale on a simplex")
        if self.scale is not None and not isinstance(self.scale, Rate):
            require_sign("scale", self.scale, positive=True)
        if isinstance(self.set, ConvexSet) and not isinstance(self.set, Orthant | Simplex | Box):
            raise InvalidOption(f"set is {self.set!r}; expected Orthant, Simplex or Box: the ones with an entropy here")
        if isinstance(self.set, Box) and concrete(self.set):
            require_sign("upper - lower of the box", jnp.subtract(self.set.upper, self.set.lower), positive=True)

    def __call__(self, y: Any, v: Any, step: Any) -> Any:
        return jax.tree.map(self._move, y, v, spread(self._divided(step), y))

    def penalty(self, y: Any, v: Any, rho: Any) -> jax.Array:
        """The Moreau envelope in the entropy's divergence; closed forms as in the table above."""
        return total(jax.tree.map(self._penalty, y, v, spread(self._divided(rho), y)))

    def divergence(self, y: Any, z: Any) -> jax.Array:
        """Kullback-Leibler on the orthant and the simplex, Fermi-Dirac on a box; each entry times its scale."""
        if self.scale is not None:
            # Both divergences are homogeneous of degree 1, so weights can go inside; at once a scale left open is met.
            times = lambda p: jax.tree.map(lambda leaf: floating(leaf) / self._divided(jnp.ones_like(leaf)), p)
            y, z = times(y), times(z)
        if isinstance(self.set, Box):
            lower, upper = (b if self.scale is None else b * self.scale for b in (self.set.lower, self.set.upper))
            return FermiDirac(lower, upper)(y, z)
        return KullbackLeibler()(y, z)

    def scaled(self, rate: Any) -> "Entropic":
        """This move with "rate" replaced by the numbers; any other scale is kept."""
        return Entropic(self.set, rate) if isinstance(self.scale, Rate) else self

    def _divided(self, step: Any) -> Any:
        """The step in the entropy's own weights."""
        if isinstance(self.scale, Rate):
            raise InvalidOption("scale is 'rate'; expected numbers here: only a problem that has a rate fills it in")
        return step if self.scale is None else jax.tree.map(lambda s: s / like(self.scale, floating(s)), step)

    def _move(self, y: Any, v: Any, step: Any) -> jax.Array:
        y = floating(y)
        exponent = like(step, y) * like(v, y)
        if isinstance(self.set, Orthant):
            return _grow(y, exponent)
        exponent = finite(exponent)
        if isinstance(self.set, Simplex):
            return per_row(self.set.total, y) * softmax_from(y, exponent)
        if isinstance(self.set, Box):
            l, w = like(self.set.lower, y), like(self.set.upper, y) - like(self.set.lower, y)
            return l + w * _odds(jnp.clip((y - l) / w, 0, 1), exponent)
        raise InvalidOption(f"set is {self.set!r}; expected Orthant, Simplex or Box: the ones with an entropy here")

    def _penalty(self, y: Any, v: Any, rho: Any) -> jax.Array:
        y = floating(y)
        v, rho = finite(like(v, y)), like(rho, y)
        exponent = finite(rho * v)
        if isinstance(self.set, Simplex):
            mass, rho = per_row(self.set.total, y), rho if rho.ndim == 0 else rho[..., :1]
            safe = jnp.where(mass > 0, mass, jnp.ones_like(mass))
            return jnp.sum(mass / rho * _log_mean(jnp.maximum(y, 0) / safe, exponent))
        if isinstance(self.set, Box):
            l, w = like(self.set.lower, y), like(self.set.upper, y) - like(self.set.lower, y)
            return jnp.sum(l * v + w / rho * _log_odds(jnp.clip((y - l) / w, 0, 1), exponent))
        # expm1 keeps the digits of small exponents; large ones may overflow where y exp(exponent) does not.
        small = exponent < 1
        rise = jnp.where(small, y * jnp.expm1(jnp.minimum(exponent, 1)), _grow(y, exponent) - y)
        return jnp.sum(rise / rho)


def softmax_from(y: jax.Array, exponent: jax.Array) -> jax.Array:
    """`y e^exponent / sum y e^exponent` on the last axis, in the log domain; entries with `y <= 0` stay 0.

    A row with no positive entry becomes uniform: there is no direction to normalise.

    Example:
        >>> print(softmax_from(jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.array([[0.0, 1e30], [0.0, 0.0]])))
        [[0.  1. ]
         [0.5 0.5]]
    """
    weights = jnp.exp(_shifted(y, exponent)[0])
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _shifted(y: jax.Array, exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`log y + exponent` less its row maximum, and that maximum; -inf where y is 0, all 0 in a row without mass."""
    positive = y > 0
    alive = jnp.any(positive, axis=-1, keepdims=True)
    score = jnp.where(positive, finite(jnp.log(jnp.where(positive, y, jnp.ones_like(y))) + exponent), -jnp.inf)
    score = jnp.where(alive, score, jnp.zeros_like(score))
    largest = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    return score - largest, largest


def _log_mean(y: jax.Array, exponent: jax.Array) -> jax.Array:
    """`log sum y e^exponent` on the last axis (kept), 0 for a row without mass."""
    score, largest = _shifted(y, exponent)
    value = largest + jnp.log(jnp.sum(jnp.exp(score), axis=-1, keepdims=True))
    return jnp.where(jnp.any(y > 0, axis=-1, keepdims=True), value, jnp.zeros_like(value))


def _grow(y: jax.Array, exponent: jax.Array) -> jax.Array:
    """`y e^exponent` for y >= 0, finite: the exponential in two halves, as y may be tiny where it is huge.

    One bound is enough: halves that are too small underflow as they should, and a product that overflows half-way has
    a half above 1, so that it stays infinite until the last minimum. (Each further minimum cost a tenth of a step of
    online mirror descent.)
    """
    largest = jnp.finfo(y.dtype).max
    room = 0.999 * jnp.log(jnp.asarray(largest, y.dtype))
    half = jnp.exp(jnp.minimum(exponent / 2, room))
    return jnp.minimum(y * half * half, largest)


def _odds(p: jax.Array, exponent: jax.Array) -> jax.Array:
    """`p e / (1 - p + p e)` for `e = exp(exponent)`, with an exponential that is never above 1."""
    up = exponent >= 0
    e = jnp.exp(jnp.where(up, -exponent, exponent))
    e = jnp.maximum(e, jnp.finfo(p.dtype).tiny)
    kept, lost = jnp.where(up, p, p * e), jnp.where(up, (1 - p) * e, 1 - p)
    return kept / (kept + lost)


def _log_odds(p: jax.Array, exponent: jax.Array) -> jax.Array:
    """`log(1 - p + p exp(exponent))`, without overflow and exact where the exponent is small."""
    up = exponent >= 0
    less = jnp.maximum(jnp.expm1(jnp.where(up, -exponent, exponent)), -1 + jnp.finfo(p.dtype).eps)
    return jnp.where(up, exponent, jnp.zeros_like(exponent)) + jnp.log1p(jnp.where(up, 1 - p, p) * less)
