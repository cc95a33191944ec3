"""Prediction and correction (He, Yuan 2012): a step that need not converge, and a shorter way along a bent direction.

The prediction `w~ = (x~, y~)` is the saddle step with theta = 0 (Arrow, Hurwicz 1958) and steps 1/r, 1/s. With
`d = w - w~`, K the linear part of the violation, and H = diag(r I, s I):

    phi = d'Q d = r |dx|^2 + s |dy|^2 - <dx, K'dy>,          M d = (dx - K'dy / r, dy),       psi = |M d|_H^2
    w <- w - gamma (phi / psi) M d,       |w+ - w*|_H^2 <= |w - w*|_H^2 - gamma (2 - gamma) phi^2 / psi

for gamma in (0, 2), as long as phi > 0, which holds when `t = |K'dy|^2 / (r s |dy|^2) < 4`: so r s need only exceed a
quarter of the spectrum that the iterates meet, where Chambolle and Pock need all of |K|^2 (the frame of Xu, He 2026,
arXiv 2603.00644, worked out from its abstract; linear spec, section 10).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.types import Pair


class Bend(NamedTuple):
    """What a prediction met: `|dx|^2`, `|dy|^2`, `<dx, K'dy>` and `|K'dy|^2`."""

    primal: Any
    dual: Any
    cross: Any
    square: Any

    def ratio(self, r: Any, s: Any) -> Any:
        """`t = |K'dy|^2 / (r s |dy|^2)`, 0 where y stood still."""
        return jnp.where(self.dual > 0, self.square / (r * s * jnp.where(self.dual > 0, self.dual, 1)), 0)

    def phi(self, r: Any, s: Any) -> Any:
        """`d'Q d`: the progress that is promised."""
        return r * self.primal + s * self.dual - self.cross

    def psi(self, r: Any, s: Any) -> Any:
        """`|M d|_H^2`: the square of the way."""
        return r * self.primal - 2 * self.cross + self.square / r + s * self.dual

    def shift(self, r: Any, s: Any, gamma: Any) -> Any:
        """`gamma phi / psi`, 0 at a fixed point.

        Example:
            >>> one = jnp.float32(1)
            >>> print(Bend(one, one, 0 * one, one).shift(one, one, 1.5))
            1.0
        """
        phi, psi = self.phi(r, s), self.psi(r, s)
        return jnp.where(psi > 0, gamma * phi / jnp.where(psi > 0, psi, 1), 0)

    def imbalance(self, r: Any, s: Any) -> Any:
        """`log(sqrt(s) |dy| / (sqrt(r) |dx|))`: positive where the dual has farther to go."""
        tiny = jnp.finfo(self.primal.dtype).tiny
        return 0.5 * (jnp.log(s * self.dual + tiny) - jnp.log(r * self.primal + tiny))


def imaged(move: Any, dual: Any) -> Any:
    """A move of multipliers that carry an image: `dual(moved point)` remakes both."""
    return lambda y, v, step: dual(move(y.point, v, step))


def towards(before: Any, after: Any, shift: Any) -> Any:
    """`w - shift (w - w~)` of every affine part of a pair: y, and images of x and y that were carried along."""
    return jax.tree.map(lambda w, ahead: w - shift * (w - ahead), before, after)


def correct(pair: Pair, predicted: Pair, pull: Any, shift: Any, r: Any) -> Pair:
    """`w - shift M d`.

    Args:
        pair: `(x, y)`; predicted: `(x~, y~)`, both pytrees.
        pull: `K'dy`, of the structure of x.
        shift: `gamma phi / psi`.

    Example:
        >>> one = jnp.float32(1)
        >>> correct(Pair(one, one), Pair(0 * one, 0 * one), one, 0.5, 2.0).x.item()
        0.75
    """
    x = jax.tree.map(lambda w, ahead, pull: w - shift * (w - ahead - pull / r), pair.x, predicted.x, pull)
    return Pair(x, towards(pair.y, predicted.y, shift))
