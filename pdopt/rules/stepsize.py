"""Step sizes of a saddle step: `tau = eta / omega` for the primal, `sigma = eta omega` for the dual.

PDHG is safe for `eta |A| <= 1`. What a step really met is smaller: with the movement of one step,

    limit = (omega |dx|^2 + |dy|^2 / omega) / (2 |<dy, dv>|),      dv = v(x') - v(x)

a step of size eta <= limit is admissible (Applegate et al. 2021, arXiv 2106.04756, algorithm 2).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.types import Steps, record


class Movement(NamedTuple):
    """Squares and the cross product of one step: `|dx|^2`, `|dy|^2`, `<dy, dv>`."""

    primal: Any
    dual: Any
    cross: Any

    def error(self, eta: Any, omega: Any) -> Any:
        """Fixed-point error in the metric of PDHG over sqrt(eta), so that different etas compare.

        `sqrt(omega |dx|^2 + |dy|^2 / omega - 2 eta <dy, dv>) / sqrt(eta)`.
        """
        square = omega * self.primal + self.dual / omega - 2 * eta * self.cross
        return jnp.sqrt(jnp.maximum(square, 0) / eta)

    def limit(self, omega: Any) -> Any:
        """The largest admissible eta that this step met; infinite where nothing crossed."""
        crossed = 2 * jnp.abs(self.cross)
        moved = omega * self.primal + self.dual / omega
        return jnp.where(crossed > 0, moved / jnp.where(crossed > 0, crossed, 1), jnp.inf)


class Size(NamedTuple):
    """The step size eta, how many steps were tried, and whether the latest was accepted."""

    eta: Any
    tried: Any
    accepted: Any

    def steps(self, omega: Any) -> Steps:
        """Primal and dual step sizes for a primal weight."""
        return Steps(self.eta / omega, self.eta * omega)


@record
class ConstantStep:
    """`eta = share / |A|_2`, never changed: no reduction inside the loop.

    Attributes:
        share: in (0, 1]; 0.998 leaves room for the power iteration, which approaches the norm from below (cuPDLPx).
    """

    share: Any = 0.998
    adapts = False

    def validate(self) -> None:
        """Raise `InvalidOption` for a share outside (0, 1]."""
        require_range("share", self.share, 0.0, 1.0, open_low=True)

    def init(self, norm: Any) -> Size:
        """Size for an operator norm; 1 where the operator is zero."""
        return Size(jnp.where(norm > 0, self.share / jnp.where(norm > 0, norm, 1), 1), jnp.int32(0), jnp.bool_(True))


@record
class AdaptiveStep:
    """Accept a step when eta <= limit, then `eta <- min((1 - k^-0.3) factor limit, (1 + k^-0.6) eta)`, k steps tried.

    Attributes:
        factor: in (0, 1]; share of the limit aimed at. 0.9 with reflection 0.85 (linear spec, section 4b).
        shrink, grow: exponents of k (PDLP: 0.3 and 0.6).
    """

    factor: Any = 0.9
    shrink: Any = 0.3
    grow: Any = 0.6
    adapts = True

    def validate(self) -> None:
        """Raise `InvalidOption` for a factor outside (0, 1] or exponents not positive."""
        require_range("factor", self.factor, 0.0, 1.0, open_low=True)
        require_range("shrink", self.shrink, 0.0, open_low=True)
        require_range("grow", self.grow, 0.0, open_low=True)

    def init(self, norm: Any) -> Size:
        """Start at 1 / norm; 1 where the operator is zero."""
        return Size(jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 1), jnp.int32(0), jnp.bool_(True))

    def update(self, size: Size, movement: Movement, omega: Any) -> Size:
        """The next size; its `accepted` says whether the step just tried may be kept."""
        limit = movement.limit(omega)
        count = (size.tried + 2).astype(size.eta.dtype)
        # A step that met no resistance (limit infinite) may grow, but only at the usual rate.
        eta = jnp.minimum((1 - count**-self.shrink) * self.factor * limit, (1 + count**-self.grow) * size.eta)
        return Size(eta, size.tried + 1, size.eta <= limit)
